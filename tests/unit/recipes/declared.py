"""The stages that a recipe declares on a track, without those that every run has."""

from __future__ import annotations

from rise_ray.config.loading import parse_config
from rise_ray.config.recipe import RecipeConfig
from rise_ray.mdp import MAIN_TRACK
from rise_ray.run.specs import Spec
from rise_ray.run.tracks import stages_of

TEXT = "{name: demo, task: {name: countdown}, model: {path: m}, iterations: 2}"


def declared(recipe: RecipeConfig) -> list[Spec]:
    """Of a run's own recipe."""
    config = parse_config(TEXT, [], source="test")
    return _of_track(stages_of(config.model_copy(update={"recipe": recipe})), MAIN_TRACK)


def declared_by_controls(*controls: RecipeConfig) -> list[Spec]:
    """Of the last one of controls beside RISE."""
    config = parse_config(TEXT, [], source="test")
    stages = stages_of(config.model_copy(update={"controls": controls}))
    return _of_track(stages, controls[-1].track or controls[-1].name)


def _of_track(stages: list[Spec], track: str) -> list[Spec]:
    return [spec for spec in stages if spec.key.startswith(f"{track}-")]
