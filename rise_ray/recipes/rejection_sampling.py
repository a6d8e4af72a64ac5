"""Rejection-sampling fine-tuning: train on one's own right first answers.

As a control it shows what a method adds to that: with the same problems and as many sampled tokens
as the method has, every different right answer found is used, for as long as its own dev says.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rise_ray.config.recipe import RecipeConfig
from rise_ray.relabel.rules.right_answers import RightAnswers
from rise_ray.run.specs import Episodes
from rise_ray.run.tracks import Track


class RejectionSampling(RecipeConfig):
    """Settings of rejection sampling."""

    name: Literal["rejection_sampling"] = "rejection_sampling"
    samples: int | None = Field(default=None, ge=1)
    """First answers per problem; null, for a control only: as many as cost the tokens that the
    method it is compared with samples."""
    answers: int | None = Field(default=4, ge=1)
    """Most different right answers of a problem to train on; null: all."""
    layout: Literal["single", "chat"] = "single"
    """An answer a row, or a problem's answers as a chat of independent attempts."""
    epochs: Annotated[float, Field(gt=0)] | Literal["equal_tokens"] = 8.0
    """Passes over the answers; `equal_tokens`, for a control: until it has trained on as many
    tokens as the method it is compared with, which may be very often."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate; null: `train.lr`."""

    def execute(self, track: Track) -> None:
        """One iteration after the other; the last model is evaluated."""
        equal = self.epochs == "equal_tokens"
        epochs = None if isinstance(self.epochs, str) else self.epochs
        rule = RightAnswers(answers=self.answers, layout=self.layout)
        episodes = Episodes(
            candidates=None if self.samples is None else self.samples - 1,
            first_state_only=True,
            last_feedback=self.layout == "chat",
        )
        base = policy = track.base()
        for at in track.iterations():
            answers = at.roll("collect", policy, episodes)
            right = at.rows(rule, answers)
            start = track.start(base, policy)
            policy = at.train(right, start, epochs, self.lr, equal_tokens=equal)
            if at.is_last or track.like is None:
                at.evaluate(policy)
