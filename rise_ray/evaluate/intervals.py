"""95% intervals by a bootstrap over problems.

Problems are the independent unit: a problem's samples are averaged first, then problems are drawn
with replacement. Nearly every metric is a ratio of two per-problem sums (`ProblemValues`): all of
them share one matrix of draws and cost one matrix product. What is no ratio (a ranking, a macro
average) is a `Statistic`, computed anew for each draw. In this room `bootstrap` is the number of
resamples, and `seed` that of their draws: equal seeds and problems give equal intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

Z_95 = 1.959963984540054
"""The normal quantile of a two-sided 95% interval."""

_PERCENTILES = (2.5, 97.5)
_NO_WIDTH = 1e-12
_DRAWS_AT_ONCE = 2_000_000


class Scale(StrEnum):
    """What values a metric can take; it decides the interval where the bootstrap has no width."""

    PROPORTION = "proportion"
    """0 to 1: Wilson's interval."""
    DIFFERENCE = "difference"
    """-1 to 1, of two proportions: Wilson's bound of a difference nobody showed."""
    AMOUNT = "amount"
    """Unbounded (token counts): the interval stays a point."""


@dataclass(frozen=True, slots=True, eq=False)
class ProblemValues:
    """One metric on every problem: the metric is `sum(numerator) / sum(denominator)`.

    A plain mean has denominator 1; a conditional rate counts its cases there; 0 leaves the
    problem out. All three have one entry per problem, in the same order.
    """

    problem_ids: tuple[str, ...]
    numerator: Array
    denominator: Array
    scale: Scale

    @property
    def value(self) -> float | None:
        """The metric, or None if no problem has a case of it."""
        total = float(self.denominator.sum())
        return float(self.numerator.sum()) / total if total > 0 else None

    @property
    def n(self) -> int:
        """Problems that have a case of the metric."""
        return int(np.count_nonzero(self.denominator))

    def at(self, problem_ids: tuple[str, ...]) -> ProblemValues:
        """The values of these problems, in this order. Raises KeyError for an unknown id."""
        position = {problem_id: i for i, problem_id in enumerate(self.problem_ids)}
        rows = [position[problem_id] for problem_id in problem_ids]
        return ProblemValues(problem_ids, self.numerator[rows], self.denominator[rows], self.scale)


@dataclass(frozen=True, slots=True, eq=False)
class Statistic:
    """A metric that is any function of how often each problem was drawn."""

    problem_ids: tuple[str, ...]
    of: Callable[[Array], float | None]
    """Weights (one per problem, in their order; all 1 for the data as they are) to the metric,
    or None where it is undefined."""
    scale: Scale

    @property
    def value(self) -> float | None:
        return self.of(np.ones(self.n))

    @property
    def n(self) -> int:
        return len(self.problem_ids)


Metric = ProblemValues | Statistic

Score = tuple[float, float]
"""What one run adds to the numerator and denominator of a metric that is a ratio."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and its 95% interval; all three are None for a metric without a single case."""

    value: float | None
    low: float | None
    high: float | None


def bootstrap_intervals(
    metrics: Mapping[str, Metric], *, bootstrap: int, seed: int
) -> dict[str, Interval]:
    """The 95% percentile interval of each metric, all on the same problems in the same order.

    A resample in which a metric is undefined (no case of a conditional rate) says nothing about it
    and is left out. The interval always contains the value. Where the resamples do not differ (all
    problems agree), `point_interval` takes their place.
    """
    if not metrics:
        return {}
    drawn = resampled(list(metrics.values()), bootstrap, seed)
    return {
        name: percentile_interval(metric.value, drawn[:, column], metric.scale, metric.n)
        for column, (name, metric) in enumerate(metrics.items())
    }


def bootstrap_difference(a: Metric, b: Metric, *, bootstrap: int, seed: int) -> Interval:
    """The 95% percentile interval of metric `a` minus metric `b` on the same problems, paired.

    Raises:
        ValueError: the problems differ.
    """
    if a.problem_ids != b.problem_ids:
        raise ValueError("a paired difference needs the same problems in the same order")
    left, right = a.value, b.value
    if left is None or right is None:
        return Interval(None, None, None)
    drawn = resampled([a, b], bootstrap, seed)
    difference, scale = drawn[:, 0] - drawn[:, 1], difference_scale(a, b)
    return percentile_interval(left - right, difference, scale, min(a.n, b.n))


def point_interval(value: float, scale: Scale, n: int) -> Interval:
    """The 95% interval where all `n` problems agree on `value`.

    A proportion gets Wilson's interval. A difference gets `value` plus and minus
    z^2 / (n + z^2), clipped to -1 and 1: the largest share of problems that could differ and
    still not show among n, which is Wilson's upper bound at 0 of n.
    """
    if scale is Scale.AMOUNT:
        return Interval(value, value, value)
    spread = Z_95**2 / n
    if scale is Scale.DIFFERENCE:
        unseen = spread / (1 + spread)
        return Interval(value, max(-1.0, value - unseen), min(1.0, value + unseen))
    centre = (value + spread / 2) / (1 + spread)
    half = float(np.sqrt(value * (1 - value) * spread + spread**2 / 4)) / (1 + spread)
    # At 0 and 1 rounding can put a bound a hair beyond the value.
    return Interval(value, max(0.0, min(value, centre - half)), min(1.0, max(value, centre + half)))


def resampled(metrics: Sequence[Metric], bootstrap: int, seed: int) -> Array:
    """Metrics of the resamples, [bootstrap, metrics]; NaN where a resample leaves one undefined.

    All metrics see the same draws of the same problems.
    """
    draws = _draws(len(metrics[0].problem_ids), bootstrap, np.random.default_rng(seed))
    return np.concatenate([_at(some, metrics) for some in draws])


def _at(draws: Array, metrics: Sequence[Metric]) -> Array:
    """The metrics at each of these draws, [draws, metrics]."""
    found = np.full((len(draws), len(metrics)), np.nan)
    ratios = {i: m for i, m in enumerate(metrics) if isinstance(m, ProblemValues)}
    if ratios:
        top = draws @ np.stack([values.numerator for values in ratios.values()], axis=1)
        bottom = draws @ np.stack([values.denominator for values in ratios.values()], axis=1)
        undefined = np.full_like(top, np.nan)
        found[:, list(ratios)] = np.divide(top, bottom, out=undefined, where=bottom > 0)
    for i, metric in enumerate(metrics):
        if isinstance(metric, Statistic):
            values = [metric.of(weights) for weights in draws]
            found[:, i] = [np.nan if value is None else value for value in values]
    return found


def _draws(n: int, bootstrap: int, rng: np.random.Generator) -> Iterator[Array]:
    """How often each of n problems was drawn, [some resamples, n], in blocks of bounded size."""
    block = max(1, _DRAWS_AT_ONCE // n)
    for start in range(0, bootstrap, block):
        rows = min(block, bootstrap - start)
        drawn = rng.integers(0, n, size=(rows, n)) + n * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * n)
        yield counts.reshape(rows, n).astype(np.float64)


def percentile_interval(value: float | None, drawn: Array, scale: Scale, n: int) -> Interval:
    """`value` with the 95% percentile interval of its resamples, NaN left out.

    See `bootstrap_intervals`; `n` is the number of problems.
    """
    if value is None:
        return Interval(None, None, None)
    known = drawn[~np.isnan(drawn)]
    low, high = np.percentile(known, _PERCENTILES) if known.size else (value, value)
    if high - low < _NO_WIDTH:
        return point_interval(value, scale, n)
    return Interval(value, min(value, float(low)), max(value, float(high)))


def difference_scale(a: Metric, b: Metric) -> Scale:
    """What values metric `a` minus metric `b` can take."""
    return Scale.AMOUNT if Scale.AMOUNT in (a.scale, b.scale) else Scale.DIFFERENCE
