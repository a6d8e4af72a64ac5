"""The words of a recipe (see `execute` of `rise_ray.recipes.rise`): tracks and their iterations.

Each call is one stage, a value that is handed to a function `do`. Where that only takes note,
nothing is done: so a run declares its stages beforehand (`stages_of`). What `execute` does may
therefore depend on the config, never on what a stage found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rise_ray.config.settings import RunConfig
from rise_ray.errors import ConfigError
from rise_ray.evaluate.metrics import EVALUATION
from rise_ray.mdp import MAIN_TRACK, Place
from rise_ray.relabel.rule import Rule
from rise_ray.run.specs import (
    BASE,
    RELABEL,
    TRAIN,
    Episodes,
    Evaluate,
    Report,
    Roll,
    Rows,
    Spec,
    Train,
    WarmStart,
    Weights,
)

Do = Callable[[Spec], None]
"""Does a stage, or only takes note of it; it returns when the stage is done."""


@dataclass(frozen=True, slots=True)
class Track:
    """A named line of weights: `iteration` for the run's own recipe.

    `like` is the track that it is compared with, and whose budget it has, if there is one.
    """

    config: RunConfig
    do: Do
    name: str
    like: str | None = None

    def base(self) -> Weights:
        """The weights that every track starts from."""
        return BASE

    def start(self, base: Weights, last: Weights) -> Weights:
        """What an iteration's training starts from, by `start_from`."""
        return base if self.config.start_from == "base" else last

    def iterations(self) -> Iterator[At]:
        """Its iterations in order, `iterations` of them."""
        for iteration in range(1, self.config.iterations + 1):
            yield At(self, iteration)


@dataclass(frozen=True, slots=True)
class At:
    """One iteration of a track."""

    track: Track
    iteration: int

    @property
    def is_last(self) -> bool:
        """Whether no iteration follows."""
        return self.iteration == self.track.config.iterations

    def roll(self, phase: str, weights: Weights, episodes: Episodes) -> Place:
        """Roll the iteration's problems with `weights`; the trajectories are stored there."""
        place = self._place(phase)
        self.track.do(Roll(place, weights, episodes, self.track.like))
        return place

    def rows(self, rule: Rule, *rolled: Place, name: str = "") -> Place:
        """Weighted rows of what was rolled: in this iteration, or until now (`data: pooled`).

        An iteration may have several sets of rows, each with a `name` of its own.
        """
        first = 1 if self.track.config.data == "pooled" else self.iteration
        sources = tuple(
            Place(place.track, iteration, place.phase)
            for place in rolled
            for iteration in range(first, self.iteration + 1)
        )
        place = self._place(f"{RELABEL}_{name}" if name else RELABEL)
        self.track.do(Rows(place, rule, sources))
        return place

    def train(
        self,
        rows: Place,
        start: Weights,
        epochs: float | None = None,
        lr: float | None = None,
        equal_tokens: bool = False,
    ) -> Weights:
        """Fine-tune `start` for `epochs` passes over the rows (None: `train.epochs`, `train.lr`).

        With `equal_tokens`, for as many tokens as the compared track's trainings instead.

        Raises:
            ConfigError: `equal_tokens`, and there is no track to compare with.
        """
        place = self._place(rows.phase.replace(RELABEL, TRAIN, 1))
        like = self.track.like if equal_tokens else None
        if equal_tokens and like is None:
            raise ConfigError(
                f"`recipe`: nothing says on how many tokens {place} trains: on its own, a recipe "
                "cannot take the budget of another"
            )
        spec = Train(place, rows, start, epochs, lr, like)
        self.track.do(spec)
        return spec.weights

    def trained_by(self, track: str, name: str = "") -> Weights:
        """What an earlier track has trained in this iteration, on its rows of that `name`."""
        return Weights(track, self.iteration, f"{TRAIN}_{name}" if name else TRAIN)

    def evaluate(self, weights: Weights) -> None:
        """Measure weights on the held-out problems, as the model `<track>-<iteration>`."""
        place = self._place(EVALUATION)
        self.track.do(Evaluate(place.stage, place, weights))

    def _place(self, phase: str) -> Place:
        return Place(self.track.name, self.iteration, phase)


def execute(config: RunConfig, do: Do) -> None:
    """A whole run: the base, the recipe, its controls beside it, the report."""
    if config.warm_start:
        do(WarmStart())
    do(Evaluate("base", Place(BASE.track, BASE.iteration, EVALUATION), BASE))
    config.recipe.execute(Track(config, do, MAIN_TRACK))
    for control in config.controls:
        control.execute(Track(config, do, control.track or control.name, like=MAIN_TRACK))
    do(Report())


def stages_of(config: RunConfig) -> list[Spec]:
    """Every stage of a run, in order.

    Raises:
        ConfigError: two stages of the recipes have the same name, or the run's own recipe takes
            the budget of another, or rows are made of what no earlier stage rolls, or a training
            starts from what none before it makes.
    """
    declared: dict[str, Spec] = {}

    def declare(spec: Spec) -> None:
        if spec.key in declared:
            raise ConfigError(
                f"`recipe`, `controls`: the stage {spec.key} is declared twice; each phase of an "
                "iteration needs a name of its own"
            )
        if isinstance(spec, Roll) and spec.episodes.candidates is None and spec.like is None:
            raise ConfigError(
                f"`recipe`: nothing says how many responses {spec.key} samples: on its own, a "
                "recipe cannot take the budget of another"
            )
        for place in spec.sources if isinstance(spec, Rows) else ():
            if str(place) not in declared:
                raise ConfigError(
                    f"`recipe`, `controls`: {spec.key} is made of {place}, which no stage before "
                    "it rolls"
                )
        if isinstance(spec, Train):
            made = {BASE, *(s.weights for s in declared.values() if isinstance(s, Train))}
            if spec.start not in made:
                raise ConfigError(
                    f"`recipe`, `controls`: {spec.key} starts from {spec.start.name}, which no "
                    "training before it makes"
                )
        declared[spec.key] = spec

    execute(config, declare)
    return list(declared.values())
