"""Which responses `revision` chooses, against tables worked by hand."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from rise_ray.mdp import Span, Trajectory
from rise_ray.relabel.rule import RuleContext
from rise_ray.relabel.rules.revision import Revision
from tests.unit.relabel.builders import rolled

Chosen = list[tuple[int, int]]  # (turn, candidate)


def _revised(trajectory: Trajectory) -> tuple[list[tuple[int, int, str]], dict[str, int]]:
    dropped: Counter[str] = Counter()
    rows = Revision().rows(trajectory, RuleContext(0), dropped)
    return [(row.turn, row.candidate, row.rule) for row in rows], dict(dropped)


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
    rule = Revision(wrong_weight=1.25, tau=1)
    weights = [row.spans[0].weight for row in rule.rows(trajectory, RuleContext(0), Counter())]
    assert weights == [math.exp(1), 1.25]


def test_a_wrong_weight_of_zero_takes_no_wrong_ones() -> None:
    rule = Revision(wrong_weight=0)
    rows = list(rule.rows(rolled("6 | 7 5"), RuleContext(0), Counter()))
    assert [row.rule for row in rows] == ["revision_right"]


@pytest.mark.parametrize(("wrong_tokens", "masked"), [(None, 0), (2, 1), (3, 0), (9, 0)])
def test_a_wrong_one_may_have_loss_on_its_end_alone(wrong_tokens: int | None, masked: int) -> None:
    rule = Revision(tau=None, wrong_weight=0.5, wrong_tokens=wrong_tokens)
    right, wrong = rule.rows(rolled("5 | 46- 7+"), RuleContext(0), Counter())
    start = len(wrong.input_ids) - 3  # of the response
    assert wrong.spans == (Span(start + masked, start + 3, 0.5),)
    assert right.spans == (Span(len(right.input_ids) - 2, len(right.input_ids), 1.0),)


@pytest.mark.parametrize(
    ("turns", "chosen"),
    [
        (["6 | 7 7+ 5 7+ 7-"], [(0, 1), (0, 0), (0, 4)]),  # those that say so first, equals once
        (["7 |", "5 | 7+ 7 6"], [(1, 1)]),  # a copy is alone
        (["7 |", "5 | 7- 7+ 6"], [(1, 1), (1, 0)]),  # no copy
    ],
)
def test_a_state_may_have_several_different_right_ones(
    turns: list[str], chosen: list[tuple[int, int]]
) -> None:
    rule = Revision(answers=3)
    rows = rule.rows(rolled(*turns), RuleContext(0), Counter())
    assert [(r.turn, r.candidate) for r in rows if r.rule == "revision_right"] == chosen
