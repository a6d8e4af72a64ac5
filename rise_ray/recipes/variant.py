"""Another training on what a track of the run has rolled: an ablation without rolling again.

As a control of a run it takes another rule, or other settings of the training, to the same
trajectories as the track `of`, from the base, and its model is evaluated like the others.
So many settings are tried on `dev` for the price of one collection:

    controls:
    - {name: variant, track: uniform, rule: {name: revision, tau: null}}
    - {name: variant, track: boosted, rule: {name: revision}, boost: {epochs: 8}}

It shows what a rule makes of given trajectories, not what the method would be with that rule: the
models that sampled them were trained by the track's own.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rise_ray.config.recipe import RecipeConfig
from rise_ray.errors import ConfigError
from rise_ray.mdp import MAIN_TRACK, Place
from rise_ray.recipes.rise import Boost, improve
from rise_ray.relabel.rules.improved import Improved
from rise_ray.relabel.rules.revision import Revision
from rise_ray.relabel.rules.right_answers import RightAnswers
from rise_ray.run.tracks import Track


class Variant(RecipeConfig):
    """Settings of a variant."""

    name: Literal["variant"] = "variant"
    of: str = MAIN_TRACK
    """The track whose trajectories it trains on: the run's own, or an earlier control's."""
    phase: str = "collect"
    """In which that track rolled them; a recipe of your own may call it otherwise."""
    rule: Annotated[Improved | Revision | RightAnswers, Field(discriminator="name")]
    """Which responses are trained on, with what weights."""
    boost: Boost | None = None
    """Train on right first answers before."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the rule's rows; null: `train.epochs`."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate; null: `train.lr`."""

    def execute(self, track: Track) -> None:
        """One training from the base, on what there is in the last iteration."""
        if track.like is None:
            raise ConfigError("`recipe`: a `variant` is a control: it rolls nothing of its own")
        for at in track.iterations():
            if at.is_last:
                rolled = Place(self.of, at.iteration, self.phase)
                start = track.base()
                at.evaluate(improve(at, rolled, start, self.rule, self.boost, self.epochs, self.lr))
