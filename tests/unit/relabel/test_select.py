"""Which responses the rules choose, against tables worked by hand."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from rise_ray.config.settings import RelabelConfig
from rise_ray.mdp import Phase, Trajectory
from rise_ray.relabel.select import improved, rejection_sampled, revision
from tests.unit.relabel.builders import rolled

Chosen = list[tuple[int, int]]  # (turn, candidate)


def _improved(trajectory: Trajectory, **settings: Any) -> tuple[Chosen, dict[str, int]]:
    dropped: Counter[str] = Counter()
    config = RelabelConfig(**settings)
    chosen = [(s.turn, s.candidate) for s in improved(trajectory, config, dropped)]
    return chosen, dict(dropped)


def test_the_best_candidate_of_every_state_is_kept_and_of_equals_the_first() -> None:
    trajectory = rolled("6 | 5 7 7", "5 | ? 4 3", "4 | ? ?")
    assert _improved(trajectory, unparseable_reward=-1) == ([(0, 1), (1, 1), (2, 0)], {})
    assert _improved(trajectory) == ([(0, 1), (1, 0), (2, 0)], {})  # `?` is worth a wrong answer


def test_states_last_keeps_the_attempts_before_and_relabels_the_last() -> None:
    trajectory = rolled("6 | 7", "5 | 7", "4 | 3 7")
    assert _improved(trajectory, states="last") == ([(0, -1), (1, -1), (2, 1)], {})


@pytest.mark.parametrize(
    ("name", "chosen", "filtered"),
    [
        ("all", [(0, 0), (1, 0), (2, 1), (3, 0)], 0),
        ("better", [(0, 0), (2, 1)], 2),  # turn 1: 0 after 0; turn 3: 1 after 1
        ("best", [(0, 0), (1, 0), (2, 1), (3, 0)], 0),
        ("success", [(2, 1), (3, 0)], 2),
    ],
)
def test_filters_compare_with_the_attempts_before(name: str, chosen: Chosen, filtered: int) -> None:
    trajectory = rolled("6 | 5", "4 | 3", "7 | 2 7", "1 | 7")
    expected = {"filtered": filtered} if filtered else {}
    assert _improved(trajectory, filter=name) == (chosen, expected)


def test_best_refuses_what_is_worse_than_any_earlier_attempt() -> None:
    trajectory = rolled("7 | 7", "6 | 5", "4 | 3")
    assert _improved(trajectory, filter="best") == ([(0, 0)], {"filtered": 2})
    # Turn 2: 0 is not above the 0 of turn 1 either.
    assert _improved(trajectory, filter="better") == ([(0, 0)], {"filtered": 2})


def test_responses_without_a_reward_are_never_chosen_and_are_counted() -> None:
    trajectory = rolled("6 | ! 7", "5 | ! ~7", "4 |")
    assert _improved(trajectory) == ([(0, 1)], {"no_candidate_with_reward": 2})
    own = rolled("! | 7", "~7 | 7", "6 | 7")
    assert _improved(own, states="last") == ([(2, 0)], {"no_reward": 2})


def test_a_comparison_with_an_unknown_reward_is_no_success() -> None:
    trajectory = rolled("! | 7", "6 | 7", "5 | 7")
    unknown = {"earlier_reward_unknown": 1}
    assert _improved(trajectory, filter="better") == ([(0, 0), (2, 0)], unknown)
    assert _improved(trajectory, filter="best") == ([(0, 0)], {"earlier_reward_unknown": 2})


def _revised(trajectory: Trajectory) -> tuple[list[tuple[int, int, str]], dict[str, int]]:
    dropped: Counter[str] = Counter()
    config = RelabelConfig(filter="revision")
    chosen = [(s.turn, s.candidate, s.rule) for s in revision(trajectory, config, dropped)]
    return chosen, dict(dropped)


@pytest.mark.parametrize(
    ("candidates", "chosen"),
    [
        ("7 7", 0),  # the first
        ("7- 7 7+", 2),  # one that says so itself
        ("7+ 7+", 0),
        ("6 7-", 1),
    ],
)
def test_the_right_one_says_so_itself_or_is_the_first(candidates: str, chosen: int) -> None:
    found, _ = _revised(rolled(f"6 | {candidates}"))
    assert (0, chosen, "revision_right") in found


@pytest.mark.parametrize(
    ("turns", "chosen"),
    [
        (["7 |", "5 | 7+ 7 6"], 1),  # a copy comes before one that says so itself
        (["7 |", "5 | 7- 7+"], 1),  # no copy: one that says so itself
        (["6 |", "7 | 6 7"], 1),  # a copy of a wrong answer is nothing
        (["! |", "7 | 7 7+"], 1),  # nor one of an answer that may be wrong
    ],
)
def test_after_a_right_answer_a_copy_of_it_is_preferred(turns: list[str], chosen: int) -> None:
    assert (1, chosen, "revision_right") in _revised(rolled(*turns))[0]


def test_without_a_right_candidate_a_right_answer_is_not_made_up() -> None:
    assert _revised(rolled("7 |", "5 | 6"))[0] == []


@pytest.mark.parametrize(
    ("turns", "wrong"),
    [
        (["6 | 5 4"], [(0, 0)]),
        (["6 | 5+ 4"], [(0, 1)]),  # one that claims to be correct is not taken
        (["6 | ? 7 4-"], [(0, 2)]),  # nor one without an answer, nor a right one
        (["6 |", "5 | 6 4"], [(1, 1)]),  # what was said before is not new
        (["6 |", "5 | 6 6-"], []),
        (["7 |", "5 | 4"], []),  # a right answer was shown
        (["! |", "5 | 4"], []),  # it may have been
        (["? |", "5 | 4"], [(1, 0)]),
    ],
)
def test_the_wrong_one_is_new_and_knows_that_it_is_wrong(turns: list[str], wrong: Chosen) -> None:
    found, _ = _revised(rolled(*turns))
    assert [(turn, n) for turn, n, rule in found if rule == "revision_wrong"] == wrong


def test_only_what_the_window_shows_counts_as_said() -> None:
    turns = ["7 |", "6 |", "5 | 4"]
    assert _revised(rolled(*turns, window=2))[0] == [(2, 0, "revision_wrong")]
    assert _revised(rolled(*turns, window=3))[0] == []


def test_revision_counts_candidates_without_a_reward_and_weights_the_wrong_one() -> None:
    trajectory = rolled("6 | ! ~7 7 5")
    found, dropped = _revised(trajectory)
    assert found == [(0, 2, "revision_right"), (0, 3, "revision_wrong")]
    assert dropped == {"no_reward": 2}
    config = RelabelConfig(filter="revision", wrong_weight=1.25)
    assert [s.factor for s in revision(trajectory, config, Counter())] == [1.0, 1.25]


def test_the_control_draws_evenly_from_all_right_first_answers() -> None:
    trajectory = rolled("7 | 6 7 ! ~7 7", phase=Phase.CONTROL)
    rng = random.Random(0)
    drawn = Counter(s.candidate for _ in range(3000) for s in rejection_sampled(trajectory, rng))
    assert set(drawn) == {-1, 1, 4}
    assert all(900 < count < 1100 for count in drawn.values())
    for without in (rolled("6 | ! ~7"), rolled()):
        assert list(rejection_sampled(without, rng)) == []
