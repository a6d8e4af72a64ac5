"""Paired comparisons: common problems only, the standard pairs, the control's better vote."""

from __future__ import annotations

import json

import pytest

from rise_ray.evaluate.compare import paired, standard_comparisons
from rise_ray.evaluate.metrics import EvalResult, evaluate
from tests.unit.evaluate.builders import trajectory


def result(rows: list[tuple[str, str]], *, first: int = 0) -> EvalResult:
    runs = [
        trajectory(answers, parallel, problem=f"p{first + i:02d}")
        for i, (answers, parallel) in enumerate(rows)
    ]
    return evaluate(runs, turns=3, parallel=3, bootstrap=200, seed=0)


WEAK = result([("5 5 5", "5 5 5")] * 15 + [("7 7 7", "7 7 7")] * 5)
STRONG = result([("5 7 7", "5 5 7")] * 10 + [("5 5 5", "5 5 5")] * 5 + [("7 7 7", "7 7 7")] * 5)
SEQUENTIAL_CONTROL = result([("5 7 7", "5 5 5")] * 20)
PARALLEL_CONTROL = result([("7 5 5", "7 7 7")] * 20)


def test_a_metric_minus_itself_is_zero_and_not_distinguishable() -> None:
    m = STRONG.values["m1@t3"]
    found = paired(m, m, bootstrap=500, seed=0)
    assert found.value == 0
    assert found.low <= 0 <= found.high
    assert found.n == 20


def test_swapping_the_sides_mirrors_the_difference() -> None:
    a, b = STRONG.values["m1@t3"], WEAK.values["m1@t3"]
    there, back = paired(a, b, bootstrap=500, seed=0), paired(b, a, bootstrap=500, seed=0)
    assert there.value == pytest.approx(0.5)
    assert there.low > 0
    mirrored = (-back.value, -back.high, -back.low)
    assert (there.value, there.low, there.high) == pytest.approx(mirrored)


def test_only_problems_that_both_sides_have_are_compared() -> None:
    a = result([("7 7 7", "7 7 7")] * 4)  # p00 to p03
    b = result([("5 5 5", "5 5 5")] * 2 + [("! 7 7", "7 7 7")] * 2, first=1)  # p01 to p04
    found = paired(a.values["m1@t3"], b.values["m1@t3"], bootstrap=100, seed=0)
    assert found.n == 2  # p01 and p02: p03's check failed in b, p00 and p04 are in one alone
    assert found.value == 1.0


def test_without_a_common_problem_there_is_no_difference() -> None:
    elsewhere = result([("7 7 7", "7 7 7")], first=50)
    found = paired(WEAK.values["m1@t3"], elsewhere.values["m1@t3"], bootstrap=100, seed=0)
    assert (found.value, found.low, found.high, found.n) == (None, None, None, 0)


def pairs(results: dict[str, EvalResult]) -> list[str]:
    own = [model for model in results if model not in ("control", "other")]
    found = standard_comparisons(results, own, bootstrap=200, seed=0)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return [
        " ".join(f"{c[side]['model']} {c[side]['metric']}" for side in ("left", "right"))
        for c in found
    ]


def test_the_standard_comparisons_are_of_the_last_iteration() -> None:
    results = {"base": WEAK, "iteration-1": WEAK, "iteration-2": STRONG}
    assert pairs({**results, "control": SEQUENTIAL_CONTROL, "other": PARALLEL_CONTROL}) == [
        "iteration-2 m1@t3 base m1@t3",
        "iteration-2 m1@t3 iteration-2 m3@t1",
        "iteration-2 m1@t3 control m1@t3",
        "iteration-2 m1@t1 control m1@t1",
        "iteration-2 m1@t3 other m3@t1",
        "iteration-2 m1@t1 other m1@t1",
        "iteration-2 p1@t3 iteration-2 pass@3",
        "iteration-2 acc@t3 iteration-2 acc@t1",
    ]


def test_the_control_is_given_its_better_vote() -> None:
    assert "base m1@t3 control m1@t3" in pairs({"base": WEAK, "control": SEQUENTIAL_CONTROL})
    assert "base m1@t3 control m3@t1" in pairs({"base": WEAK, "control": PARALLEL_CONTROL})


def test_a_base_alone_is_compared_with_itself_only() -> None:
    assert pairs({"base": WEAK}) == [
        "base m1@t3 base m3@t1",
        "base p1@t3 base pass@3",
        "base acc@t3 base acc@t1",
    ]


def test_a_run_that_costs_more_tokens_is_also_compared_at_equal_tokens() -> None:
    runs = [  # a set costs 27 tokens: two turns of 10 fit, three do not
        trajectory("5 7 7", "5 5 7", problem=f"p{i}", parallel_tokens=9) for i in range(4)
    ]
    longer = evaluate(runs, turns=3, parallel=3, bootstrap=100, seed=0)
    assert pairs({"base": longer})[:2] == ["base m1@t3 base m3@t1", "base m1@t2 base m3@t1"]
