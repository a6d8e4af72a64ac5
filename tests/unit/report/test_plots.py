"""Colours say whose a line is: no control looks like another, the base or an iteration."""

from __future__ import annotations

from rise_ray.report.plots import model_colours


def test_every_control_has_a_colour_of_its_own() -> None:
    models = ["base", "iteration-1", "iteration-2", "rejection_sampling-2", "chat-2", "other-2"]
    colours = model_colours(models)
    assert list(colours) == models
    assert len(set(colours.values())) == len(models)


def test_a_warm_start_is_as_the_base_and_more_controls_than_colours_are_drawn() -> None:
    colours = model_colours(["base", "warm-start", *(f"c-{n}" for n in range(9))])
    assert colours["warm-start"] == colours["base"]
    assert colours["base"] not in {colours[f"c-{n}"] for n in range(9)}
