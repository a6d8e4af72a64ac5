"""The pictures' colours tell a run's own models from its base and its controls."""

from __future__ import annotations

from rise_ray.report.plots import model_colours


def test_the_base_the_iterations_and_the_controls_each_have_a_colour() -> None:
    names = ["warm-start", "base", "iteration-1", "iteration-2", "rejection_sampling-2", "mine-1"]
    warm_start, base, first, last, *controls = (model_colours(names)[name] for name in names)
    assert warm_start == base
    assert len({base, first, last, *controls}) == 4
    assert len(set(controls)) == 1
