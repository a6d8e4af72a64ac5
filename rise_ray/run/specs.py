"""The stages of a run as values: what each is to do, from the config alone.

A recipe's `execute` makes them through `rise_ray.run.tracks`; `rise_ray.run.stages` does them; all
else that has to know a run's stages (resume, lineage, checks, the audit, the report) reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rise_ray.config.teacher import NoTeacher, TeacherConfig
from rise_ray.evaluate.metrics import EVALUATION
from rise_ray.mdp import MAIN_TRACK, Place
from rise_ray.relabel.rule import Rule

RELABEL, TRAIN = "relabel", "train"
"""The phases of an iteration's rows and training; further ones are called `train_boost`, say."""

_NOBODY = NoTeacher()


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights by the training that makes them; iteration 0 is the base."""

    track: str
    iteration: int
    phase: str = TRAIN

    @property
    def name(self) -> str:
        """Of their checkpoint's folder."""
        kind = "" if self.phase == TRAIN else f"-{self.phase}"
        return f"{self.track}={self.iteration}{kind}"


BASE = Weights(MAIN_TRACK, 0)


@dataclass(frozen=True, slots=True)
class Episodes:
    """What is rolled on each problem.

    Args:
        turns: attempts.
        window: turns a state shows, the current one included; None shows all.
        stop_on_success: end at the first right answer.
        candidates: responses beside the attempt; None: with it, as many as cost the tokens that
            the track which this one is compared with sampled in the iteration.
        first_state_only: candidates at the first state only, not at every visited one.
        last_feedback: the last attempt has feedback after it, too.
        feedback: what is said between turns, by its name.
        greedy: the likeliest responses, not sampled ones.
        teacher: who answers in the visited states instead of the model.
    """

    turns: int = 1
    window: int | None = None
    stop_on_success: bool = False
    candidates: int | None = 0
    first_state_only: bool = False
    last_feedback: bool = False
    feedback: str = "constant"
    greedy: bool = False
    teacher: TeacherConfig = _NOBODY


@dataclass(frozen=True, slots=True)
class WarmStart:
    """Fine-tune the given model on the task's demonstrations: what comes out is the base."""

    key: ClassVar[str] = "warm-start/train"


@dataclass(frozen=True, slots=True)
class _AtPlace:
    place: Place

    @property
    def key(self) -> str:
        """In the journal."""
        return str(self.place)

    @property
    def name(self) -> str:
        """Of rows or a training, in folders and seeds: their iteration's, if they are its own."""
        kind = "" if self.place.phase in (RELABEL, TRAIN) else f"-{self.place.phase}"
        return f"{self.place.stage}{kind}"


@dataclass(frozen=True, slots=True)
class Roll(_AtPlace):
    """Roll the iteration's problems."""

    weights: Weights
    episodes: Episodes
    like: str | None
    """The track whose sampled tokens this one may spend."""


@dataclass(frozen=True, slots=True)
class Rows(_AtPlace):
    """Turn the trajectories of `sources` into weighted rows."""

    rule: Rule
    sources: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Train(_AtPlace):
    """Fine-tune `start` on the rows of a stage."""

    rows: Place
    start: Weights
    epochs: float | None
    """Passes over the rows; None: `train.epochs`, or the tokens of `like`."""
    lr: float | None
    """Peak learning rate; None: `train.lr`."""
    like: str | None
    """The track on as many tokens as which this one trains in the iteration."""

    @property
    def weights(self) -> Weights:
        """What comes out."""
        return Weights(self.place.track, self.place.iteration, self.place.phase)


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Measure weights on the held-out problems; `model` is what they are called."""

    model: str
    place: Place
    weights: Weights

    @property
    def key(self) -> str:
        """In the journal."""
        return f"{self.model}/{EVALUATION}"


@dataclass(frozen=True, slots=True)
class Report:
    """Compare what was evaluated, and write the page."""

    key: ClassVar[str] = "run/report"


Spec = WarmStart | Roll | Rows | Train | Evaluate | Report
