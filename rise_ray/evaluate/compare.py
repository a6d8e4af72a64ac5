"""Paired comparisons of models on the same problems: the sentences of the report, as numbers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rise_ray.evaluate.intervals import Interval, Metric, Statistic, bootstrap_difference
from rise_ray.evaluate.metrics import EvalResult

TRAINED = "the trained model against the untrained one"
CONTROLS_VOTE = "a control's better vote"
"""The notes on two comparisons: what was gained, and what of it a control gains, too."""


@dataclass(frozen=True, slots=True)
class Difference(Interval):
    """One metric minus another with its 95% interval, on `n` common problems."""

    n: int


@dataclass(frozen=True, slots=True)
class Figure:
    """A metric of a model."""

    model: str
    metric: str


def paired(a: Metric, b: Metric, *, bootstrap: int, seed: int) -> Difference:
    """Metric `a` minus metric `b` on the problems that both have, by a paired bootstrap.

    Of two ratios, a problem without a case of either metric (left out because of errors, or nothing
    to fix in a fix rate) is left out of both. Without a common problem value, low and high are
    None.
    """
    if isinstance(a, Statistic) or isinstance(b, Statistic):
        interval = bootstrap_difference(a, b, bootstrap=bootstrap, seed=seed)
        return Difference(**asdict(interval), n=min(a.n, b.n))
    known = set(itertools.compress(b.problem_ids, b.denominator > 0))
    common = tuple(i for i in itertools.compress(a.problem_ids, a.denominator > 0) if i in known)
    if not common:
        return Difference(None, None, None, 0)
    interval = bootstrap_difference(a.at(common), b.at(common), bootstrap=bootstrap, seed=seed)
    return Difference(**asdict(interval), n=len(common))


def standard_comparisons(
    results: Mapping[str, EvalResult], own: Sequence[str], *, bootstrap: int, seed: int
) -> list[dict[str, Any]]:
    """The report's comparisons, as plain data.

    Args:
        results: by model.
        own: the models of the run's own track in order, the base first; the others are controls'.

    Returns:
        For each comparison `left` and `right` (model, metric, value), a `note` on it, and the
        difference left minus right: `value`, `low`, `high`, `n`. Left is the last of `own`.
    """
    comparisons = []
    for left, right, note in standard_pairs(results, own):
        a = results[left.model].values[left.metric]
        b = results[right.model].values[right.metric]
        comparisons.append(
            {
                "left": {**asdict(left), "value": a.value},
                "right": {**asdict(right), "value": b.value},
                "note": note,
                **asdict(paired(a, b, bootstrap=bootstrap, seed=seed)),
            }
        )
    return comparisons


def standard_pairs(
    results: Mapping[str, EvalResult], own: Sequence[str]
) -> Iterator[tuple[Figure, Figure, str]]:
    """The standard pairs that these results allow, with a note on each; see
    `standard_comparisons`. One turn leaves nothing sequential."""
    base, last = own[0], own[-1]
    yield from _of_sureness(results, own)
    turns, parallel = results[last].turns, results[last].parallel
    voted = Figure(last, f"m1@t{turns}")
    if last != base:
        yield voted, Figure(base, voted.metric), TRAINED
    if turns > 1 and parallel > 1:
        vote = Figure(last, f"m{parallel}@t1")
        yield voted, vote, "one sequential run against a parallel vote of the same model"
        shorter = _affordable_turns(results[last])
        if shorter is not None:
            yield Figure(last, f"m1@t{shorter}"), vote, "within the same generated tokens"
    for control in (model for model in results if model not in own):
        votes = (f"m{results[control].parallel}@t1", f"m1@t{results[control].turns}")
        # Giving it the choice keeps the comparison honest.
        better = max(votes, key=lambda name: results[control].values[name].value or 0.0)
        yield voted, Figure(control, better), CONTROLS_VOTE
        if turns > 1:
            yield Figure(last, "m1@t1"), Figure(control, "m1@t1"), "first answers alone"
    if turns > 1:
        oracle = Figure(last, f"p1@t{turns}")
        yield oracle, Figure(last, f"pass@{parallel}"), "oracle figures, both"
        yield Figure(last, f"acc@t{turns}"), Figure(last, "acc@t1"), "last turn against first"


def _of_sureness(
    results: Mapping[str, EvalResult], own: Sequence[str]
) -> Iterator[tuple[Figure, Figure, str]]:
    """How well P(right) ranks the last model's answers, where it was asked; and what it picks."""
    last = own[-1]
    values, parallel = results[last].values, results[last].parallel
    sure = Figure(last, "ap(sure)")
    if sure.metric not in values:
        return
    yield sure, Figure(last, "ap(likelihood)"), "asked, against how likely the answer was"
    if "ap(claim)" in values:
        yield sure, Figure(last, "ap(claim)"), "asked, against what the answer says of itself"
    for control in (model for model in results if model not in own):
        ways = [name for name in results[control].values if name.startswith("ap(")]
        # The ranking that suits it, also if it was never taught to answer the question.
        better = max(ways, key=lambda name: results[control].values[name].value or 0.0)
        yield sure, Figure(control, better), "a control's best ranking"
    if parallel > 1:
        surest = Figure(last, f"best{parallel}@t1(sure)")
        yield surest, Figure(last, f"m{parallel}@t1"), "the surest of its answers against a vote"


def _affordable_turns(result: EvalResult) -> int | None:
    """Turns that cost no more generated tokens than the parallel set, on average.

    None if not even one does, or the whole run does: then the comparison at equal samples
    already spends no more.
    """
    budget = result.values["tokens_parallel"].value
    spent = [result.values[f"tokens@t{turn}"].value for turn in range(1, result.turns + 1)]
    if budget is None:
        return None
    turns = sum(tokens is not None and tokens <= budget for tokens in spent)
    return turns if 1 <= turns < result.turns else None
