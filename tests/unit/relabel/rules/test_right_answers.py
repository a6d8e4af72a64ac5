"""Rejection sampling: which right answers are trained on, and how they are laid out."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from rise_ray.mdp import Span, Trajectory
from rise_ray.relabel.rule import Row, RuleContext
from rise_ray.relabel.rules.right_answers import RightAnswers
from tests.unit.relabel.builders import FEEDBACK, PROMPT, rolled


def _rows(trajectory: Trajectory, seed: int = 0, **settings: Any) -> tuple[list[Row], Counter[str]]:
    dropped: Counter[str] = Counter()
    rows = list(RightAnswers(**settings).rows(trajectory, RuleContext(seed), dropped))
    return rows, +dropped


def _chosen(trajectory: Trajectory, seed: int = 0, **settings: Any) -> list[int]:
    return [row.candidate for row in _rows(trajectory, seed, **settings)[0]]


def test_every_different_right_first_answer_is_a_row_of_weight_one() -> None:
    rows, dropped = _rows(rolled("7 | 6 7 7- ! ~7 7+", "6 | 7+"), answers=None)
    assert {row.candidate for row in rows} == {-1, 2, 5}  # the second `7` is the first again
    assert {span.weight for row in rows for span in row.spans} == {1.0}
    assert {row.rule for row in rows} == {"rejection_sampling"}
    assert dropped == {}
    for without in (rolled("6 | ! ~7"), rolled()):
        assert _chosen(without) == []


def test_those_that_call_themselves_right_come_first_and_the_rest_is_counted() -> None:
    trajectory = rolled("7 | 7- 7+")
    assert _chosen(trajectory, answers=1) == [1]
    rows, dropped = _rows(trajectory, answers=2)
    assert (len(rows), rows[0].candidate, dropped) == (2, 1, {"more_right_answers": 1})


def test_which_of_equals_is_drawn_evenly_by_the_seed_and_the_trajectory_alone() -> None:
    trajectory = rolled("7 | 7-")
    drawn = Counter(_chosen(trajectory, seed, answers=1)[0] for seed in range(400))
    assert set(drawn) == {-1, 0}
    assert all(150 < count < 250 for count in drawn.values())
    assert _chosen(trajectory, 3) == _chosen(trajectory, 3)


def test_degenerate_answers_are_dropped_where_asked() -> None:
    trajectory = rolled("7 |")
    turn = trajectory.turns[0]
    loop = replace(turn.attempt, text="so " * 151)
    trajectory = replace(trajectory, turns=(replace(turn, attempt=loop),))
    assert _rows(trajectory) == ([], {"degenerate": 1})
    assert _chosen(trajectory, drop_degenerate=False) == [-1]


def test_what_was_right_at_any_turn_becomes_an_answer_to_the_bare_problem() -> None:
    trajectory = rolled("6 | 7 5", "7- | 7 7+", "6 | 7+")
    rows, _ = _rows(trajectory, turns="all", answers=None)
    found = [(row.turn, row.candidate) for row in rows]
    assert found[0] == (1, 1)  # says so of itself
    assert set(found) == {(0, 0), (1, -1), (1, 1)}
    assert {row.input_ids for row in rows} == {(*PROMPT, *a) for a in (b"7", b"7-", b"7+")}
    assert all(row.spans == (Span(2, len(row.input_ids), 1.0),) for row in rows)
    assert _chosen(trajectory, answers=None) == [0]  # of the first turn alone


@pytest.mark.parametrize("attempt", ["6", "~6"])
def test_a_chat_is_a_row_of_independent_answers_with_loss_on_each(attempt: str) -> None:
    trajectory = rolled(f"{attempt} | 7- 7+")
    # After an answer that was cut off, the end of its turn is part of what follows it.
    end = () if attempt == "6" else (ord("+"),)
    turn = replace(trajectory.turns[0], feedback_ids=(*end, *FEEDBACK))
    (row,), _ = _rows(replace(trajectory, turns=(turn,)), layout="chat")
    assert row.input_ids == (*PROMPT, *b"7+", *FEEDBACK, *b"7-")
    assert row.spans == (Span(2, 4, 1.0), Span(5, 7, 1.0))
    assert (row.turn, row.candidate) == (0, 0)  # the last span's
    assert _rows(rolled("6 |"), layout="chat")[0] == []
