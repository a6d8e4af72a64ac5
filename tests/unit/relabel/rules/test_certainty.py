"""Reference answers, and labels on them or on the model's own answers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from rise_ray.mdp import Attempt, Span, Trajectory
from rise_ray.relabel.rule import Asked, Asking, Row, RuleContext
from rise_ray.relabel.rules.certainty import Certainty
from tests.unit.relabel.builders import PROMPT, response, rolled

END, YES, NO = 90, 91, 92
ASKED = Asked((END, 80, 81), END, (YES, NO))


def taught(attempt: str, reference: str = "7") -> Trajectory:
    """An attempt, and a teacher's answer beside it."""
    trajectory = rolled(f"{attempt} |")
    (turn,) = trajectory.turns
    answer = replace(response(reference), weight_version=-1, role="teacher")
    return replace(trajectory, turns=(replace(turn, candidates=(answer,)),))


def rows_of(trajectory: Trajectory, **settings: Any) -> tuple[list[Row], dict[str, int]]:
    dropped: Counter[str] = Counter()
    rule = Certainty.model_validate(settings)
    assert isinstance(rule, Asking)
    return list(rule.rows(trajectory, RuleContext(0, asked=ASKED), dropped)), dict(dropped)


def ids(shorthand: str) -> tuple[int, ...]:
    return response(shorthand).token_ids


def test_own_answers_are_asked_about_with_loss_on_the_label_alone() -> None:
    rows, dropped = rows_of(rolled("7 | 6 ? ~7 !"), label_weight=2.0)
    assert [(row.candidate, row.reward) for row in rows] == [(-1, 1.0), (0, 0.0), (1, 0.0)]
    assert [row.input_ids for row in rows] == [
        (*PROMPT, *ids("7"), *ASKED.ids, YES),
        (*PROMPT, *ids("6"), *ASKED.ids, NO),
        (*PROMPT, *ids("?"), *ASKED.ids, NO),
    ]
    for row in rows:
        end = len(row.input_ids)
        assert row.spans == (Span(end - 1, end, 2.0),)
    assert dropped == {"unknown": 2}  # one was cut off, one could not be checked


def test_a_reference_answer_beside_own_ones_is_learned_as_it_is() -> None:
    rows, _ = rows_of(taught("6"))
    assert rows[0].input_ids == (*PROMPT, *ids("6"), *ASKED.ids, NO)
    start = len(PROMPT)
    assert rows[1].input_ids == (*PROMPT, *ids("7"))
    assert rows[1].spans == (Span(start, start + len(ids("7")), 1.0),)


@pytest.mark.parametrize(("attempt", "label"), [("7", YES), ("6", NO), ("?", NO)])
def test_the_papers_label_on_the_reference_is_whether_the_attempt_was_right(
    attempt: str, label: int
) -> None:
    (row,), _ = rows_of(taught(attempt), labels_on="reference")
    assert row.input_ids == (*PROMPT, *ids("7"), *ASKED.ids, label)
    start, end = len(PROMPT), len(row.input_ids)
    assert row.spans == (Span(start, start + len(ids("7")), 1.0), Span(end - 1, end, 1.0))


def test_an_attempt_of_which_nothing_is_known_gives_no_label() -> None:
    assert rows_of(taught("!"), labels_on="reference") == ([], {"unknown": 1})


def test_without_labels_reference_answers_alone_are_learned() -> None:
    (row,), dropped = rows_of(taught("6"), labels_on="none")
    assert (row.input_ids, dropped) == ((*PROMPT, *ids("7")), {})


def test_a_reference_that_the_verifier_does_not_call_right_is_not_learned() -> None:
    for labels_on in ("own", "reference", "none"):
        rows, dropped = rows_of(taught("6", reference="5"), labels_on=labels_on)
        assert dropped == {"wrong_reference": 1}
        assert len(rows) == (labels_on == "own")


def test_a_response_that_ended_its_turn_itself_is_not_ended_again() -> None:
    def after(*token_ids: int) -> tuple[int, ...]:
        return ASKED.after(replace(response("7"), token_ids=token_ids))

    assert after(5, END) == (80, 81)
    assert after(5, 6) == (END, 80, 81)
    plain = Asked((80, 81), END, (YES, NO))  # a template without such a token
    ended: Attempt = replace(response("7"), token_ids=(5, END))
    assert plain.after(ended) == (80, 81)
