"""R-Tuning (arXiv 2311.09677): teach a model to say how sure it is of an answer.

The model answers the problems; it is fine-tuned on reference answers, and on what to say when it is
asked whether an answer is right (`evaluation.question`). How likely it then says so is P(right) of
any answer: for choosing among answers, and for stopping.

Open in the paper, and chosen here: loss is on answers and labels, not on questions; with
`labels_on: own` further iterations ask about the new model's answers, which are others than the
base's: what tells right from wrong among those need not among its own. Its `unknown` and
`uncertain` labels (refusals; by the entropy of samples) are not there.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rise_ray.config.recipe import RecipeConfig
from rise_ray.config.teacher import ReferenceTeacher
from rise_ray.errors import ConfigError
from rise_ray.mdp import Place
from rise_ray.relabel.rules.certainty import Certainty
from rise_ray.run.specs import Episodes
from rise_ray.run.tracks import Track


class RTuning(RecipeConfig):
    """Settings of R-Tuning."""

    name: Literal["r_tuning"] = "r_tuning"
    labels_on: Literal["own", "reference", "none"] = "own"
    """What is asked about: the model's own answers, each by its verdict; the reference answer, by
    whether the model's greedy answer was right (the paper); nothing, which is plain fine-tuning on
    reference answers."""
    samples: int = Field(default=8, ge=1)
    """Own answers per problem, beside the greedy one."""
    label_weight: float = Field(default=1.0, gt=0)
    """Loss weight of a label, where a token of a reference answer has 1."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the rows; null: `train.epochs`."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate; null: `train.lr`."""
    of: str | None = None
    """An earlier track of this recipe whose answers are taken; null: it rolls its own."""

    def execute(self, track: Track) -> None:
        question = track.config.evaluation.question
        if question is None:
            raise ConfigError(
                "`evaluation.question` is null: `r_tuning` teaches to answer it; {} is the default"
            )
        rule = Certainty(
            labels_on=self.labels_on, label_weight=self.label_weight, question=question
        )
        phases = {
            "reference": Episodes(greedy=True, teacher=ReferenceTeacher(kind="reference")),
            "answers": Episodes(candidates=self.samples - 1),
        }
        base = policy = track.base()
        for at in track.iterations():
            answers = [
                Place(self.of, at.iteration, phase)
                if self.of is not None
                else at.roll(phase, policy, episodes)
                for phase, episodes in phases.items()
            ]
            rows = at.rows(rule, *answers)
            policy = at.train(rows, track.start(base, policy), self.epochs, self.lr)
            if at.is_last or track.like is None:
                at.evaluate(policy)
