"""Over seeds: means of the seeds, and intervals that know both that problems and seeds vary."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rise_ray.evaluate.metrics import EvalResult, evaluate
from rise_ray.evaluate.seeds import seed_comparisons, seed_metrics
from tests.unit.evaluate.builders import trajectory

METRIC = "m1@t2"


def result(part: float, parallel: str = "5 5", failed: int = 0) -> EvalResult:
    """Right at both turns on this part of 100 problems; the checks of the first `failed` failed."""
    runs = [
        trajectory(
            "! 7" if i < failed else "7 7" if i < 100 * part else "5 5",
            parallel,
            problem=f"p{i:03d}",
        )
        for i in range(100)
    ]
    return evaluate(runs, turns=2, parallel=2, bootstrap=100, seed=0)


def figure(*parts: float) -> tuple[float, float, float]:
    runs = [{"base": result(part)} for part in parts]
    found = seed_metrics(runs, bootstrap=2000, seed=0)["base"][METRIC]
    assert found.value is not None
    assert found.low is not None
    assert found.high is not None
    return found.value, found.low, found.high


def comparison(note: str, runs: list[dict[str, EvalResult]]) -> dict[str, Any]:
    own = [model for model in runs[0] if model != "control"]
    found = seed_comparisons(runs, own, bootstrap=1000, seed=0)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return next(one for one in found if one["note"].startswith(note))


def trained(*gains: float) -> dict[str, Any]:
    runs = [{"base": result(0.3), "iteration-1": result(0.3 + gain)} for gain in gains]
    return comparison("the trained model", runs)


def test_a_figure_is_the_mean_of_the_seeds() -> None:
    assert figure(0.2, 0.4, 0.9)[0] == pytest.approx(0.5)


def test_equal_seeds_are_no_more_than_one_since_their_problems_are_drawn_together() -> None:
    assert figure(0.5, 0.5, 0.5) == pytest.approx(figure(0.5))


def test_seeds_that_differ_widen_the_interval() -> None:
    _, low, high = figure(0.2, 0.5, 0.8)
    assert low < 0.3 < figure(0.5)[1]
    assert high > 0.7 > figure(0.5)[2]


def test_a_difference_is_paired_within_each_seed_and_averaged() -> None:
    found = trained(0.1, 0.3, 0.2)
    assert (found["left"]["metric"], found["right"]["metric"]) == (METRIC, METRIC)
    assert [seed["value"] for seed in found["seeds"]] == pytest.approx([0.1, 0.3, 0.2])
    assert (found["left"]["value"], found["right"]["value"]) == pytest.approx((0.5, 0.3))
    assert found["value"] == pytest.approx(0.2)
    assert found["low"] > 0


def test_an_effect_of_one_seed_alone_is_not_distinguishable_though_its_own_interval_says_so() -> (
    None
):
    found = trained(0.6, 0.0, 0.0)
    assert found["seeds"][0]["low"] > 0.4
    assert found["low"] <= 0 < found["value"]


def test_the_controls_better_vote_is_chosen_once_by_all_seeds() -> None:
    sequential, parallel = result(0.9), result(0.2, "7 7")
    runs = [{"base": result(0.3), "control": control} for control in (sequential,) * 3]
    assert comparison("a control's", runs)["right"]["metric"] == METRIC
    runs[0] = {**runs[0], "control": parallel}
    found = comparison("a control's", runs)  # in this seed alone, the other vote is better
    assert found["right"]["metric"] == METRIC
    assert found["seeds"][0]["value"] == pytest.approx(0.3 - 0.2)


def test_a_problem_without_a_case_in_one_seed_is_left_out_there_alone() -> None:
    whole = result(0.5)
    runs = [
        {"base": whole, "iteration-1": whole},
        {"base": result(0.5, failed=10), "iteration-1": whole},
    ]
    found = comparison("the trained model", runs)
    assert [seed["n"] for seed in found["seeds"]] == [100, 90]
    assert found["value"] == 0.0
