"""R-Tuning (arXiv 2311.09677): answers, and what the model is to say when asked if one is right.

A row asks about the answer that stands in it, and the model learns to say one of two words, the
probability of the first of which is P(right).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from rise_ray.config.base import Settings
from rise_ray.config.settings import CertaintyQuestion
from rise_ray.mdp import Attempt, Span, Trajectory
from rise_ray.relabel.rewards import reward_of
from rise_ray.relabel.rule import Asked, Row, RuleContext, response_row

_RULE = "certainty"


class Certainty(Settings):
    """Reference answers to learn, and labels on them (the paper) or on the model's own answers.

    Reference answers are a teacher's, in the trajectories that have them. Labels are not balanced:
    how often an answer is right is a part of P(right).
    """

    name: Literal["certainty"] = "certainty"
    labels_on: Literal["own", "reference", "none"] = "own"
    """`own`: each answer that the model sampled, by its own verdict, with loss on the label alone.
    `reference`: the reference answer, by whether the model's attempt was right: is this the kind
    of question that it gets right? `none`: reference answers without labels."""
    label_weight: float = Field(default=1.0, gt=0)
    """Loss weight of a label, where a token of a reference answer has 1."""
    question: CertaintyQuestion = CertaintyQuestion()
    """What is asked, and the two labels."""

    drop_duplicates: ClassVar[bool] = False
    """How often an answer is given, and with what label, is what is learned."""
    needs_tally: ClassVar[bool] = False
    """Every label weighs alike."""

    def rows(
        self, trajectory: Trajectory, context: RuleContext, dropped: Counter[str]
    ) -> Iterator[Row]:
        for turn, at in enumerate(trajectory.turns):
            for candidate, response in enumerate((at.attempt, *at.candidates), start=-1):
                reference = response.weight_version < 0
                if reference and reward_of(response, 0.0) != 1.0:
                    dropped["wrong_reference"] += 1
                elif reference and self.labels_on != "reference":
                    yield _answer(trajectory, turn, candidate)
                elif reference or self.labels_on == "own":
                    right = reward_of(at.attempt if reference else response, 0.0)
                    if right is None:
                        dropped["unknown"] += 1
                    else:
                        answer = _answer(trajectory, turn, candidate)
                        yield self._asked(answer, response, right, context.asked, reference)

    def _asked(
        self, row: Row, answer: Attempt, right: float, asked: Asked | None, learned: bool
    ) -> Row:
        """The answer's row with the question and its label; is the answer `learned`, too?"""
        assert asked is not None, "the rule is `Asking`"
        label = asked.labels[0 if right == 1.0 else 1]
        ids = (*row.input_ids, *asked.after(answer), label)
        labelled = Span(len(ids) - 1, len(ids), self.label_weight)
        spans = (*row.spans, labelled) if learned else (labelled,)
        return replace(row, reward=right, input_ids=ids, spans=spans)


def _answer(trajectory: Trajectory, turn: int, candidate: int) -> Row:
    return response_row(trajectory, turn, candidate, rule=_RULE, reward=1.0, weight=1.0)
