"""Rewards, means, weights and filters against numbers worked by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest

from rise_ray.mdp import Place, StopReason
from rise_ray.relabel.rewards import (
    center_of,
    is_degenerate,
    mean_reward,
    passes,
    problem_mean,
    reward_of,
    tally_of,
    weight_of,
)
from tests.unit.relabel.builders import response, rolled

Filter = Literal["all", "better", "best", "success"]


@pytest.mark.parametrize(
    ("shorthand", "reward"),
    [("7", 1.0), ("6", 0.0), ("?", -1.0), *((no, None) for no in ("!", "_", "~7", "~6", "~?"))],
)
def test_what_was_not_judged_and_what_is_truncated_has_no_reward(
    shorthand: str, reward: float | None
) -> None:
    assert reward_of(response(shorthand), unparseable_reward=-1.0) == reward


def test_what_has_no_reward_is_in_no_mean() -> None:
    assert mean_reward([response(r) for r in ("7", "6", "!", "~7", "?")], -0.5) == 0.5 / 3
    assert mean_reward([response("!"), response("~6")], 0.0) is None


def test_a_weight_is_the_exponential_of_the_centred_reward_over_tau() -> None:
    # The released code's tau: e^2.5 and e^0; then a reward of 1 against a mean of 1/4 at 1/2.
    assert weight_of(1.0, 0.0, 0.4) == pytest.approx(12.18249396)
    assert weight_of(0.0, 0.0, 0.4) == 1.0
    assert weight_of(1.0, 0.25, 0.5) == pytest.approx(4.48168907)
    assert weight_of(-1.0, 0.0, 0.4) == pytest.approx(0.08208500)


def test_a_centre_is_nothing_or_the_mean_of_the_problem_or_of_the_state() -> None:
    trajectory = rolled("6 | 7 6 ! ~7", "7 | 7 7 ? 6")
    assert center_of(trajectory, 0, "none", -1.0, None) == 0.0
    assert center_of(trajectory, 0, "state", -1.0, None) == 1 / 2
    assert center_of(trajectory, 1, "state", -1.0, None) == (1 + 1 - 1 + 0) / 4
    # Attempts 0 and 1; candidates 1, 0 and 1, 1, -1, 0: eight known rewards that sum to 3.
    assert center_of(trajectory, 1, "problem", -1.0, tally_of([trajectory])) == 3 / 8
    unknown = rolled("6 | ! ~7")
    assert center_of(unknown, 0, "state", 0.0, None) is None
    assert center_of(unknown, 0, "problem", 0.0, tally_of([unknown])) == 0.0
    assert center_of(rolled("! | ~7"), 0, "problem", 0.0, tally_of([rolled("! | ~7")])) is None


def test_a_problems_mean_is_of_all_its_trajectories_and_of_no_other_problem() -> None:
    first, second = rolled("6 | 7 6"), rolled("7 | 7 ?", place=Place("iteration", 2, "collect"))
    other = rolled("6 | 6", problem="p1")
    tally = tally_of([first, other, second])
    assert problem_mean(tally, "p0", -1.0) == (1 + 2 - 1) / 6
    assert problem_mean(tally, "p1", 0.0) == 0.0
    assert problem_mean(tally, "p2", 0.0) is None
    assert tally == tally_of([second]) + tally_of([other]) + tally_of([first])


def test_what_no_model_of_the_run_sampled_and_failed_episodes_are_in_no_mean() -> None:
    taught = rolled("6 | 7 7")
    turn = taught.turns[0]
    gold = tuple(replace(candidate, weight_version=-1) for candidate in turn.candidates)
    taught = replace(taught, turns=(replace(turn, candidates=gold),))
    failed = rolled("7 | 7", stop_reason=StopReason.ERROR)
    given = rolled("7 | 6")
    start = replace(given.turns[0].attempt, given=1)
    given = replace(given, turns=(replace(given.turns[0], attempt=start),))
    assert problem_mean(tally_of([taught, failed, given]), "p0", 0.0) == 0.0


# Columns: the reward, those of the attempts before it, and what each filter says.
@pytest.mark.parametrize(
    ("reward", "earlier", "better", "best", "success"),
    [
        (0.0, [], True, True, False),
        (1.0, [], True, True, True),
        (1.0, [0.0], True, True, True),
        (0.0, [0.0], False, True, False),
        (0.0, [-1.0], True, True, False),
        (0.0, [1.0], False, False, False),
        (1.0, [1.0], False, True, True),
        (0.0, [1.0, -1.0], True, False, False),
        (1.0, [None], None, None, True),
        (1.0, [None, 0.0], True, None, True),
        (0.0, [None, 1.0], False, False, False),
        (1.0, [0.0, None], None, None, True),
    ],
)
def test_filters(
    reward: float,
    earlier: list[float | None],
    better: bool | None,
    best: bool | None,
    success: bool,
) -> None:
    names: tuple[Filter, ...] = ("all", "better", "best", "success")
    verdicts = [passes(name, reward, earlier) for name in names]
    assert verdicts == [True, better, best, success]


@pytest.mark.parametrize(
    ("text", "degenerate"),
    [
        ("", False),
        ("word " * 150, False),
        ("word " * 151, True),
        ("a " * 150 + "b " * 150, False),
        ("x" * 300, False),
        ("x" * 301, True),
    ],
)
def test_degenerate_responses(text: str, degenerate: bool) -> None:
    assert is_degenerate(text) is degenerate
