"""Rejection sampling: right answers to the bare problem, each with weight 1.

The strongest simple thing that RISE is compared with (and its "boost" where the base is weak).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from rise_ray.config.base import Settings
from rise_ray.mdp import FinishReason, Span, Trajectory
from rise_ray.relabel.rewards import is_degenerate, reward_of
from rise_ray.relabel.rule import Row, RuleContext, response_at, response_row

_RULE = "rejection_sampling"


class RightAnswers(Settings):
    """At most `answers` different right answers of a problem.

    Those that say of themselves that they are right come first, the others in a seeded order.
    """

    name: Literal["right_answers"] = "right_answers"
    answers: int | None = Field(default=4, ge=1)
    """Most of one problem, different in their tokens; null: all."""
    turns: Literal["first", "all"] = "first"
    """Of which turns of a trajectory they are: what was right later is an answer to the bare
    problem, too, and becomes one to it."""
    layout: Literal["single", "chat"] = "single"
    """`single`: a row for each answer. `chat`: one row, a chat of independent answers with the
    feedback between them and loss on each (needs feedback after a trajectory's last turn)."""
    drop_degenerate: bool = True
    """Drop a response with a word more than 150 times or longer than 300 characters."""

    drop_duplicates: ClassVar[bool] = True
    """Equal answers are one; problems that come again in a later iteration give theirs once."""
    needs_tally: ClassVar[bool] = False
    """Every weight is 1."""

    def rows(
        self, trajectory: Trajectory, context: RuleContext, dropped: Counter[str]
    ) -> Iterator[Row]:
        chosen = self._choose(trajectory, context, dropped)
        if self.layout == "chat":
            if chosen:
                yield _chat(trajectory, chosen)
            return
        for turn, candidate in chosen:
            yield response_row(
                trajectory, turn, candidate, rule=_RULE, reward=1.0, weight=1.0, state_of=0
            )

    def _choose(
        self, trajectory: Trajectory, context: RuleContext, dropped: Counter[str]
    ) -> list[tuple[int, int]]:
        """Turn and candidate of each."""
        right: dict[tuple[int, ...], tuple[int, int]] = {}
        for number, turn in enumerate(trajectory.turns[: 1 if self.turns == "first" else None]):
            for candidate, response in enumerate((turn.attempt, *turn.candidates), start=-1):
                if reward_of(response, 0.0) != 1.0:
                    continue
                if self.drop_degenerate and is_degenerate(response.text):
                    dropped["degenerate"] += 1
                    continue
                right.setdefault(response.token_ids, (number, candidate))
        different = sorted(right.values())
        context.draw(trajectory).shuffle(different)
        different.sort(key=lambda at: not response_at(trajectory, *at).verdict.claims_correct)
        if self.answers is not None:
            dropped["more_right_answers"] += max(0, len(different) - self.answers)
        return different[: self.answers]


def _chat(trajectory: Trajectory, chosen: Sequence[tuple[int, int]]) -> Row:
    ids: list[int] = list(trajectory.prompt_ids)
    spans = []
    for number, (turn, candidate) in enumerate(chosen):
        if number:
            ids += _feedback(trajectory, ids[-1])
        answer = response_at(trajectory, turn, candidate).token_ids
        spans.append(Span(len(ids), len(ids) + len(answer), 1.0))
        ids += answer
    return Row(_RULE, *chosen[-1], 1.0, tuple(ids), tuple(spans))


def _feedback(trajectory: Trajectory, end: int) -> tuple[int, ...]:
    """What follows an answer that ended by itself with the token `end`.

    It is what followed the attempt, whose turn it had to end first if that was cut off.
    """
    turn = trajectory.turns[0]
    assert turn.feedback_ids, f"{trajectory.id}: was rolled without feedback after its last turn"
    cut_off = turn.attempt.finish_reason is FinishReason.LENGTH
    if cut_off and turn.feedback_ids[0] == end:
        return turn.feedback_ids[1:]
    return turn.feedback_ids
