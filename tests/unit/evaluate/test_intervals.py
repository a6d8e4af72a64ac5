"""Intervals: percentile bootstrap over problems, Wilson where it has no width, fast enough."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rise_ray.evaluate.intervals import (
    Interval,
    ProblemValues,
    Scale,
    bootstrap_difference,
    bootstrap_intervals,
    point_interval,
)


def values(
    numerator: list[float],
    denominator: list[float] | None = None,
    scale: Scale = Scale.PROPORTION,
) -> ProblemValues:
    ids = tuple(f"p{i}" for i in range(len(numerator)))
    ones = [1.0] * len(numerator)
    return ProblemValues(ids, np.array(numerator, float), np.array(denominator or ones), scale)


def interval(metric: ProblemValues, bootstrap: int = 4000, seed: int = 0) -> Interval:
    return bootstrap_intervals({"m": metric}, bootstrap=bootstrap, seed=seed)["m"]


def test_the_interval_of_a_mean_is_close_to_the_normal_one() -> None:
    found = interval(values([1.0] * 160 + [0.0] * 240), bootstrap=20_000)
    half = 1.96 * (0.4 * 0.6 / 400) ** 0.5
    assert found.value == pytest.approx(0.4)
    assert found.low == pytest.approx(0.4 - half, abs=0.004)
    assert found.high == pytest.approx(0.4 + half, abs=0.004)


def test_the_interval_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(300):
        found = interval(values(list(rng.binomial(1, 0.3, 150))), bootstrap=300, seed=trial)
        covered += found.low <= 0.3 <= found.high
    assert 0.91 <= covered / 300 <= 0.98


def test_equal_seeds_give_equal_intervals_and_other_seeds_do_not() -> None:
    metric = values(list(np.random.default_rng(1).random(50)))
    assert interval(metric, seed=1) == interval(metric, seed=1)
    assert interval(metric, seed=1) != interval(metric, seed=2)


def test_resamples_do_not_depend_on_the_block_they_are_drawn_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metric = values(list(np.random.default_rng(1).random(50)))
    whole = interval(metric)
    monkeypatch.setattr("rise_ray.evaluate.intervals._DRAWS_AT_ONCE", 500)
    assert interval(metric) == whole


@pytest.mark.parametrize(
    ("value", "n", "low", "high"),
    [  # Wilson's interval, worked by hand: z^2 = 3.8415
        (0.0, 10, 0.0, 0.2775),
        (1.0, 10, 0.7225, 1.0),
        (0.5, 10, 0.2366, 0.7634),
        (1.0, 542, 0.9930, 1.0),
    ],
)
def test_where_all_problems_agree_the_interval_is_wilsons(
    value: float, n: int, low: float, high: float
) -> None:
    found = interval(values([value] * n))
    assert found.low == pytest.approx(low, abs=1e-4)
    assert found.high == pytest.approx(high, abs=1e-4)
    assert found.value == value


def test_a_difference_that_no_problem_shows_is_not_called_certain() -> None:
    unseen = 3.8415 / (10 + 3.8415)
    found = point_interval(0.0, Scale.DIFFERENCE, 10)
    assert (found.low, found.high) == pytest.approx((-unseen, unseen), abs=1e-4)
    assert point_interval(1.0, Scale.DIFFERENCE, 10).high == 1.0


def test_amounts_that_do_not_vary_stay_a_point() -> None:
    assert interval(values([28.0] * 5, scale=Scale.AMOUNT)) == Interval(28.0, 28.0, 28.0)


def test_a_ratio_counts_cases_and_not_problems() -> None:
    found = interval(values([1, 0, 0], [1, 3, 0]))
    assert found.value == pytest.approx(1 / 4)


def test_wilsons_n_is_the_problems_with_a_case() -> None:
    assert interval(values([1, 1, 0], [1, 1, 0])).low == pytest.approx(
        point_interval(1.0, Scale.PROPORTION, 2).low
    )


def test_a_metric_without_a_case_is_missing() -> None:
    assert interval(values([0, 0], [0.0, 0.0])) == Interval(None, None, None)


def test_pairing_removes_what_both_sides_share() -> None:
    rng = np.random.default_rng(0)
    hard = list(rng.binomial(1, 0.5, 300).astype(float))
    better = [min(1.0, x + float(rng.random() < 0.1)) for x in hard]
    a, b = values(better), values(hard)
    found = bootstrap_difference(a, b, bootstrap=2000, seed=0)
    assert found.low > 0
    assert interval(a).low < interval(b).high  # unpaired, the two overlap


def test_a_difference_of_other_problems_is_refused() -> None:
    with pytest.raises(ValueError, match="same problems"):
        bootstrap_difference(values([1, 0]), values([1, 0, 1]), bootstrap=100, seed=0)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=12)
)
@settings(max_examples=100, deadline=None)
def test_an_interval_contains_its_value_and_stays_a_proportion(
    cases: list[tuple[float, float]],
) -> None:
    metric = values([share * den for share, den in cases], [den for _, den in cases])
    found = interval(metric, bootstrap=100)
    if found.value is not None:
        assert 0 <= found.low <= found.value <= found.high <= 1 + 1e-12


def test_the_quick_starts_bootstrap_takes_less_than_two_seconds() -> None:
    rng = np.random.default_rng(0)
    metrics = {f"m{i}": values(list(rng.random(542))) for i in range(20)}
    start = time.process_time()
    bootstrap_intervals(metrics, bootstrap=2000, seed=0)
    assert time.process_time() - start < 2.0
