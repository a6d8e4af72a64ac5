"""Runs that differ in their seed alone, as one result: means over seeds, with intervals.

A figure of all seeds is the mean of the seeds' figures. Its interval is a bootstrap on two levels:
a resample draws as many seeds as there are, with replacement, and one set of problems for all of
them, since the seeds are measured on the same problems and an easy draw is easy for each.

Three seeds show whether an effect comes again when everything random is drawn anew. They do not
show how widely it varies: a resample is a mean of the same three, so the part of the interval that
is the seeds' is too narrow (by the square root of 2/3, and for want of a t quantile, 4.3 in place
of 2). Three that agree in sign do so one time in four where there is no effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from rise_ray.evaluate.compare import Figure, paired, standard_pairs
from rise_ray.evaluate.intervals import (
    Array,
    Interval,
    Metric,
    ProblemValues,
    Statistic,
    difference_scale,
    percentile_interval,
    resampled,
)
from rise_ray.evaluate.metrics import EvalResult

Results = Mapping[str, EvalResult]
"""One run's results by model."""


def seed_metrics(
    runs: Sequence[Results], *, bootstrap: int, seed: int
) -> dict[str, dict[str, Interval]]:
    """Every metric of every model over all seeds.

    `runs` has one for each, with the same models, problems and protocol.
    """
    return {
        model: {
            name: _interval(_values(runs, Figure(model, name)), bootstrap, seed)
            for name in runs[0][model].values
        }
        for model in runs[0]
    }


def seed_comparisons(
    runs: Sequence[Results], own: Sequence[str], *, bootstrap: int, seed: int
) -> list[dict[str, Any]]:
    """The standard comparisons over all seeds, and of each.

    What is compared is chosen once, by the means over the seeds. See `standard_comparisons` for
    the arguments and the form; here each also has `seeds`, the difference of each run in order.
    """
    comparisons = []
    for left, right, note in standard_pairs(_together(runs), own):
        a, b = _values(runs, left), _values(runs, right)
        each = [paired(x, y, bootstrap=bootstrap, seed=seed) for x, y in zip(a, b, strict=True)]
        common = [_common(x, y) for x, y in zip(a, b, strict=True)]
        comparisons.append(
            {
                "left": {**asdict(left), "value": _mean([values.value for values in a])},
                "right": {**asdict(right), "value": _mean([values.value for values in b])},
                "note": note,
                **asdict(_difference(common, bootstrap, seed)),
                "n": min(one.n for one in each),
                "seeds": [asdict(one) for one in each],
            }
        )
    return comparisons


def _interval(values: Sequence[Metric], bootstrap: int, seed: int) -> Interval:
    mean = _mean([one.value for one in values])
    drawn = _over_drawn_seeds(resampled(values, bootstrap, seed), seed)
    return percentile_interval(mean, drawn, values[0].scale, min(one.n for one in values))


def _difference(pairs: Sequence[tuple[Metric, Metric]], bootstrap: int, seed: int) -> Interval:
    """The mean of the pairs' differences, left minus right."""
    means = [None if a.value is None or b.value is None else a.value - b.value for a, b in pairs]
    ratios = resampled([side for pair in pairs for side in pair], bootstrap, seed)
    drawn = _over_drawn_seeds(ratios[:, ::2] - ratios[:, 1::2], seed)
    scale = difference_scale(*pairs[0])
    return percentile_interval(_mean(means), drawn, scale, min(a.n for a, _ in pairs))


def _over_drawn_seeds(figures: Array, seed: int) -> Array:
    """Each resample's mean over seeds drawn with replacement; `figures` is [resamples, seeds]."""
    seeds = figures.shape[1]
    drawn = np.random.default_rng([seed, seeds]).integers(0, seeds, size=figures.shape)
    return np.take_along_axis(figures, drawn, axis=1).mean(axis=1)


def _together(runs: Sequence[Results]) -> dict[str, EvalResult]:
    """Each model's sums over the runs, from which what is compared is chosen."""
    return {
        model: replace(
            result,
            values={name: _sum(_values(runs, Figure(model, name))) for name in result.values},
        )
        for model, result in runs[0].items()
    }


def _sum(values: Sequence[Metric]) -> Metric:
    """Of ratios their sums, of statistics their mean."""
    ratios = [one for one in values if isinstance(one, ProblemValues)]
    if not ratios:
        each = [one for one in values if isinstance(one, Statistic)]
        return replace(each[0], of=lambda weights: _mean([one.of(weights) for one in each]))
    numerator = np.sum([one.numerator for one in ratios], axis=0)
    denominator = np.sum([one.denominator for one in ratios], axis=0)
    return replace(ratios[0], numerator=numerator, denominator=denominator)


def _values(runs: Sequence[Results], figure: Figure) -> list[Metric]:
    return [run[figure.model].values[figure.metric] for run in runs]


def _common(a: Metric, b: Metric) -> tuple[Metric, Metric]:
    """Both sides without the problems that have no case of one of them; a statistic needs all."""
    if isinstance(a, Statistic) or isinstance(b, Statistic):
        return a, b
    both = (a.denominator > 0) & (b.denominator > 0)
    left, right = (
        replace(side, numerator=side.numerator * both, denominator=side.denominator * both)
        for side in (a, b)
    )
    return left, right


def _mean(values: Sequence[float | None]) -> float | None:
    """None where a seed's is missing: a mean of the others would be of other seeds."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
