"""RISE: Recursive Introspection (arXiv 2407.18219).

The model answers over several turns; at the states it visited an improved response is sampled from
the model itself (self-distillation) or asked of a teacher (distillation); the model is fine-tuned
on these by reward-weighted regression; and so on.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rise_ray.config.base import Settings
from rise_ray.config.recipe import RecipeConfig
from rise_ray.config.teacher import NoTeacher, TeacherConfig
from rise_ray.mdp import Place
from rise_ray.relabel.rule import Rule
from rise_ray.relabel.rules.improved import Improved
from rise_ray.relabel.rules.rehearsed import Rehearsed
from rise_ray.relabel.rules.revision import Revision
from rise_ray.relabel.rules.right_answers import RightAnswers
from rise_ray.run.specs import Episodes, Weights
from rise_ray.run.tracks import At, Track


class Boost(Settings):
    """A training before the improving one: on right answers to the bare problem, found anywhere.

    Every right response of a trajectory is one, of whatever turn. A better first answer is what
    the improving rows alone give least of, of which each state has one.
    """

    answers: int | None = Field(default=4, ge=1)
    """Most different right answers of a problem; null: all."""
    epochs: float = Field(default=8.0, gt=0)
    """Passes over them."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate; null: `train.lr`."""
    of: str | None = None
    """An earlier track of the run whose boosted weights are taken instead of training them again:
    for a `variant` that tries other settings of what comes after it."""
    rehearse: bool = False
    """Have the improving training see them once more, among its own rows."""

    @model_validator(mode="after")
    def _trained_once(self) -> Boost:
        own = (self.epochs, self.lr) != (type(self).model_fields["epochs"].default, None)
        if self.of is not None and own:
            raise ValueError(
                f"`of: {self.of}` is trained already: it takes no `epochs` and no `lr`"
            )
        return self

    @property
    def right_answers(self) -> RightAnswers:
        return RightAnswers(answers=self.answers, turns="all")

    def train(self, at: At, tried: Place, start: Weights) -> Weights:
        """From `start`, on the right answers among what was tried."""
        if self.of is not None:
            return at.trained_by(self.of, name="boost")
        right = at.rows(self.right_answers, tried, name="boost")
        return at.train(right, start, self.epochs, self.lr)

    def improving(self, rule: Improved | Revision | RightAnswers) -> Rule:
        """What the training after it is on, where `rule` alone would be without it."""
        return Rehearsed(rule=rule, right=self.right_answers) if self.rehearse else rule


class LastTraining(Settings):
    """Settings of the last iteration's training, where they are others than of those before it.

    The models before it sample what it is trained on. One that was trained for long on few answers
    repeats them, so what it samples teaches less; the last one samples nothing.
    """

    rule: Annotated[Improved | Revision, Field(discriminator="name")]
    """Which improved responses are trained on, with what weights."""
    boost: Boost | None = None
    """Train on right first answers before."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the rule's rows; null: `train.epochs`."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate; null: `train.lr`."""


def improve(
    at: At,
    tried: Place,
    start: Weights,
    rule: Improved | Revision | RightAnswers,
    boost: Boost | None,
    epochs: float | None = None,
    lr: float | None = None,
) -> Weights:
    """From `start`, on what the rule makes of what was tried, after the boost if there is one."""
    if boost is None:
        return at.train(at.rows(rule, tried), start, epochs, lr)
    boosted = boost.train(at, tried, start)
    return at.train(at.rows(boost.improving(rule), tried), boosted, epochs, lr)


class Rise(RecipeConfig):
    """Settings of RISE."""

    name: Literal["rise"] = "rise"
    turns: int = Field(default=2, ge=1)
    """Attempts per trajectory (the paper: 2 in the first iterations, up to 5)."""
    window: int | None = Field(default=None, ge=1)
    """Turns a state shows, the current one included; null shows all."""
    stop_on_success: bool = True
    """End a trajectory at its first right answer."""
    candidates: int = Field(default=16, ge=0)
    """Improved responses sampled at every visited state (RISE's N); unused with a teacher."""
    feedback: str = "constant"
    """What is said between turns: `constant` (the paper's), `neutral`, `oracle`, a task's own."""
    teacher: TeacherConfig = NoTeacher()
    """Who improves: nobody else (self-distillation), or a teacher (distillation)."""
    rule: Annotated[Improved | Revision, Field(discriminator="name")] = Improved()
    """Which improved responses are trained on, with what weights."""
    boost: Boost | None = None
    """Train on right first answers before; null: on the rule's rows alone."""
    last: LastTraining | None = None
    """The last iteration's training; null: as the others."""

    @model_validator(mode="after")
    def _consistent(self) -> Rise:
        if self.teacher.kind == "none" and not self.candidates:
            raise ValueError("without a `teacher` RISE needs `candidates` >= 1")
        rules = [self.rule] if self.last is None else [self.rule, self.last.rule]
        if self.teacher.kind != "none" and any(isinstance(rule, Revision) for rule in rules):
            raise ValueError("`rule: revision` chooses among candidates: it takes no `teacher`")
        return self

    def execute(self, track: Track) -> None:
        episodes = Episodes(
            turns=self.turns,
            window=self.window,
            stop_on_success=self.stop_on_success,
            candidates=self.candidates if self.teacher.kind == "none" else 0,
            feedback=self.feedback,
            teacher=self.teacher,
        )
        base = policy = track.base()
        for at in track.iterations():
            tried = at.roll("collect", policy, episodes)
            start = track.start(base, policy)
            if at.is_last and self.last is not None:
                last = self.last
                policy = improve(at, tried, start, last.rule, last.boost, last.epochs, last.lr)
            else:
                policy = improve(at, tried, start, self.rule, self.boost)
            at.evaluate(policy)
