"""A run's stages are declared by its recipes, without doing any of them."""

from __future__ import annotations

import pytest

from rise_ray.config.loading import parse_config
from rise_ray.config.recipe import RecipeConfig
from rise_ray.config.settings import RunConfig
from rise_ray.errors import ConfigError
from rise_ray.mdp import Place
from rise_ray.run.plans import of_kind
from rise_ray.run.specs import BASE, Episodes, Rows, Train, Weights
from rise_ray.run.tracks import Track, stages_of


def _config(*overrides: str) -> RunConfig:
    text = "{name: demo, task: {name: countdown}, model: {path: m}, iterations: 2}"
    return parse_config(text, list(overrides), source="test")


class Twice(RecipeConfig):
    """A recipe that gives two phases one name."""

    def execute(self, track: Track) -> None:
        for at in track.iterations():
            at.roll("ask", track.base(), Episodes())
            at.roll("ask", track.base(), Episodes(turns=2))


def test_the_stages_are_those_of_the_recipe_and_then_of_each_control() -> None:
    of_track = [f"{{}}-{n}/{phase}" for n in (1, 2) for phase in ("collect", "relabel", "train")]
    rise = [key.format("iteration") for key in of_track]
    rise[3:3], rise[7:7] = ["iteration-1/eval"], ["iteration-2/eval"]
    keys = [spec.key for spec in stages_of(_config())]
    assert keys == ["base/eval", *rise, "run/report"]
    two = "controls=[{name: rejection_sampling}, {name: rejection_sampling, track: chats}]"
    keys = [spec.key for spec in stages_of(_config(two))]
    controls = [
        [*(key.format(track) for key in of_track), f"{track}-2/eval"]
        for track in ("rejection_sampling", "chats")
    ]
    assert keys == ["base/eval", *rise, *controls[0], *controls[1], "run/report"]


def test_a_warm_start_comes_first_and_without_iterations_nothing_is_trained_after_it() -> None:
    keys = [s.key for s in stages_of(_config("warm_start={examples: 10}", "iterations=0"))]
    assert keys == ["warm-start/train", "base/eval", "run/report"]


@pytest.mark.parametrize(("data", "sources"), [("pooled", [1, 2]), ("fresh", [2])])
def test_rows_are_of_this_iteration_or_of_all_until_now(data: str, sources: list[int]) -> None:
    rows = of_kind(Rows, stages_of(_config(f"data={data}")))[-1]
    assert rows.place == Place("iteration", 2, "relabel")
    assert rows.sources == tuple(Place("iteration", n, "collect") for n in sources)


@pytest.mark.parametrize(
    ("start_from", "start"), [("base", BASE), ("last", Weights("iteration", 1))]
)
def test_an_iteration_starts_from_the_base_or_the_last_one(start_from: str, start: Weights) -> None:
    training = of_kind(Train, stages_of(_config(f"start_from={start_from}")))[-1]
    assert (training.start, training.weights) == (start, Weights("iteration", 2))


@pytest.mark.parametrize(
    ("epochs", "expected"), [("3", (3.0, None)), ("equal_tokens", (None, "iteration"))]
)
def test_a_control_trains_for_epochs_of_its_own_or_on_equal_tokens(
    epochs: str, expected: tuple[float | None, str | None]
) -> None:
    control = f"controls=[{{name: rejection_sampling, epochs: {epochs}}}]"
    training = of_kind(Train, stages_of(_config(control)))[-1]
    assert (training.epochs, training.like) == expected


def test_a_recipe_on_its_own_cannot_take_the_budget_of_another() -> None:
    with pytest.raises(ConfigError, match="iteration-1/collect samples"):
        stages_of(_config("recipe={name: rejection_sampling}"))
    alone = stages_of(_config("recipe={name: rejection_sampling, samples: 8}"))
    assert "iteration-1/eval" in [spec.key for spec in alone]


def test_two_stages_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="iteration-1/ask is declared twice"):
        stages_of(_config(f"recipe={{name: '{__name__}:Twice'}}"))
