"""A recipe in a config: its name picks the class, whose settings the other keys are.

    recipe: {name: rise, turns: 5, candidates: 8}
    controls: [{name: rejection_sampling, answers: 4}, {name: "my.module:Mine", track: mine}]

The core imports no recipe: it finds them by name, the user's own by import path.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SerializeAsAny

from rise_ray.config.base import Settings, named_class

DEFAULT = "rise"
BUILT_IN = {
    "rise": "rise_ray.recipes.rise:Rise",
    "rejection_sampling": "rise_ray.recipes.rejection_sampling:RejectionSampling",
    "variant": "rise_ray.recipes.variant:Variant",
    "r_tuning": "rise_ray.recipes.r_tuning:RTuning",
}


class RecipeConfig(Settings):
    """What every recipe has; a recipe adds its own settings, and `execute(track)`."""

    name: str
    """Of a recipe in `rise_ray/recipes/`, or the import path of your own."""
    track: str | None = Field(default=None, pattern=r"^[a-z][a-z0-9_]*$")
    """Of a control: the name of its line of weights; null, for a recipe of rise-ray: its name."""

    def execute(self, track: Any) -> None:
        """Declare all iterations on a `rise_ray.run.tracks.Track`; the base is evaluated before."""
        raise NotImplementedError


def recipe_class(name: str) -> type[RecipeConfig]:
    """The recipe that `name` stands for.

    Raises:
        ValueError: there is none; says what is allowed.
    """
    found: type[RecipeConfig] = named_class(name, BUILT_IN, "recipe", RecipeConfig)
    if found.execute is RecipeConfig.execute:
        raise ValueError(f"`{name}`: `{found.__name__}` has no method `execute(track)`")
    return found


def load_recipe(settings: Any) -> RecipeConfig:
    """A recipe from its mapping of settings.

    Raises:
        ValueError: there is no such recipe, or (pydantic's) a setting is not one of its own.
    """
    if isinstance(settings, RecipeConfig):
        return settings
    if not isinstance(settings, Mapping) or not isinstance(settings.get("name"), str):
        raise ValueError("a recipe is a mapping with a `name`")
    return recipe_class(settings["name"]).model_validate(dict(settings))


def load_own_recipe(settings: Any) -> RecipeConfig:
    """The run's own recipe, which is RISE where no name is given."""
    if isinstance(settings, Mapping):
        settings = {"name": DEFAULT} | dict(settings)
    return load_recipe(settings)


AnyRecipe = Annotated[SerializeAsAny[RecipeConfig], BeforeValidator(load_recipe)]
OwnRecipe = Annotated[SerializeAsAny[RecipeConfig], BeforeValidator(load_own_recipe)]
