"""RISE's evaluation metrics (arXiv 2407.18219), and SCoRe's beside them, with intervals.

A trajectory of phase `eval` holds one sequential run (its turns, never stopped, always told to
retry) and one parallel set (its first turn's candidates: independent first answers).

What the sources leave open is settled here:
- A check that failed is not a wrong answer. A sequential run with an `error` verdict is left out
  of every sequential metric, a parallel set with one out of every parallel metric, an episode
  that ended as `error` out of both; all are counted by reason.
- A run that overflowed the context has no answer at the turns it did not take: wrong in acc@t
  and in every transition, no vote in m1@tK. It is counted as `context_overflow`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from rise_ray.evaluate.confidence import (
    parallel_sureness,
    rankings,
    sequential_sureness,
    was_asked,
)
from rise_ray.evaluate.intervals import (
    Interval,
    Metric,
    ProblemValues,
    Scale,
    Score,
    bootstrap_intervals,
)
from rise_ray.evaluate.votes import majority_is_right
from rise_ray.mdp import Attempt, FinishReason, Outcome, StopReason, Trajectory

EVALUATION = "eval"
"""The phase of an evaluation's trajectories."""


@dataclass(frozen=True, slots=True)
class EvalResult:
    """One model's metrics on one split.

    `n` is the number of problems, `samples` the repetitions on each; `values` are the metrics
    problem by problem, so that two models can be compared on the same problems.
    """

    turns: int
    parallel: int
    n: int
    samples: int
    metrics: Mapping[str, Interval]
    values: Mapping[str, Metric]
    counts: Mapping[str, Any]


def evaluate(
    trajectories: Iterable[Trajectory], *, turns: int, parallel: int, bootstrap: int, seed: int
) -> EvalResult:
    """All metrics of one model with 95% intervals. The order of the trajectories is irrelevant.

    Args:
        trajectories: of phase `eval`, every sample of every problem once.
        turns: attempts of a sequential run (the K of m1@tK).
        parallel: independent first answers of a parallel set (the K of mK@t1 and pass@K).

    Raises:
        ValueError: there are no trajectories, one is doubled, or one is not an evaluation
            with this many turns and answers.
    """
    runs = sorted(trajectories, key=lambda t: (t.problem.id, t.sample))
    _check(runs, turns, parallel)
    sequences = _usable(runs, _sequential_run)
    sets = _usable(runs, _parallel_set)
    problem_ids = tuple(dict.fromkeys(t.problem.id for t in runs))
    values: dict[str, Metric] = {
        **_per_problem(problem_ids, sequences, partial(sequential_scores, turns=turns)),
        **_per_problem(problem_ids, sets, partial(parallel_scores, parallel=parallel)),
    }
    if was_asked(runs):
        first = [(problem_id, attempts[0]) for problem_id, attempts in sequences if attempts]
        values |= {
            **rankings(first, problem_ids),
            **_per_problem(problem_ids, sequences, partial(sequential_sureness, turns=turns)),
            **_per_problem(problem_ids, sets, partial(parallel_sureness, parallel=parallel)),
        }
    return EvalResult(
        turns=turns,
        parallel=parallel,
        n=len(problem_ids),
        samples=max(Counter(t.problem.id for t in runs).values()),
        metrics=bootstrap_intervals(values, bootstrap=bootstrap, seed=seed),
        values=values,
        counts=_counts(runs, len(sequences), len(sets)),
    )


def eval_record(
    model: str,
    split: str,
    result: EvalResult,
    *,
    feedback: str,
    window: int | None,
    sampling: Mapping[str, Any],
) -> dict[str, Any]:
    """The line of metrics.jsonl for one evaluated model: its result, and how it was measured.

    `model` is `base`, `iteration-1`, ..., `<track>-<iteration>`; the others are settings of the
    evaluation (`rise_ray.config.settings.EvaluationConfig`).
    """
    return {
        "phase": EVALUATION,
        "model": model,
        "split": split,
        "n": result.n,
        "feedback": feedback,
        "window": window,
        "sampling": dict(sampling),
        "samples": result.samples,
        "metrics": {name: asdict(interval) for name, interval in result.metrics.items()},
        "counts": dict(result.counts),
    }


def sequential_scores(attempts: Sequence[Attempt], turns: int) -> dict[str, Score]:
    """What one sequential run adds to each metric; fewer attempts than `turns`: it overflowed."""
    right = [a.verdict.outcome is Outcome.CORRECT for a in attempts]
    right += [False] * (turns - len(attempts))
    verdicts = [a.verdict for a in attempts]
    scores: dict[str, Score] = {"m1@t1": (right[0], 1)}
    for turn in range(2, turns + 1):
        scores[f"m1@t{turn}"] = (majority_is_right(verdicts[:turn]), 1)
    scores[f"p1@t{turns}"] = (any(right), 1)
    for turn in range(1, turns + 1):
        scores[f"acc@t{turn}"] = (right[turn - 1], 1)
    if turns > 1:
        scores |= _transition_scores(attempts, right)
    scores["false_claims"] = _share(
        [
            v.claims_correct
            for v in verdicts
            if v.outcome is Outcome.INCORRECT and v.claims_correct is not None
        ]
    )
    scores["unparseable"] = _share([v.outcome is Outcome.UNPARSEABLE for v in verdicts])
    scores["truncated"] = _share([a.finish_reason is FinishReason.LENGTH for a in attempts])
    for turn in range(1, turns + 1):
        scores[f"tokens@t{turn}"] = (sum(len(a.token_ids) for a in attempts[:turn]), 1)
    return scores


def parallel_scores(answers: Sequence[Attempt], parallel: int) -> dict[str, Score]:
    """What one parallel set adds to each metric; no answers: the prompt overflowed."""
    verdicts = [a.verdict for a in answers]
    scores: dict[str, Score] = {
        f"m{size}@t1": (majority_is_right(verdicts[:size]), 1) for size in range(2, parallel + 1)
    }
    scores[f"pass@{parallel}"] = (any(v.outcome is Outcome.CORRECT for v in verdicts), 1)
    scores["tokens_parallel"] = (sum(len(a.token_ids) for a in answers), 1)
    return scores


def _transition_scores(attempts: Sequence[Attempt], right: Sequence[bool]) -> dict[str, Score]:
    """How answers moved; `right` has all turns, `attempts` those that were taken."""
    first, last, ends = right[0], right[-1], f"(t1,t{len(right)})"
    # A turn that was not taken is no answer to fix or keep, but it is how the one before ended.
    steps = list(pairwise(right))[: len(attempts)]
    answers = [a.verdict.answer for a in attempts if a.verdict.outcome is not Outcome.UNPARSEABLE]
    wrong_again = [
        a.verdict.answer == b.verdict.answer
        for a, b in pairwise(attempts)
        if a.verdict.outcome is Outcome.INCORRECT
    ]
    both_readable = [
        a.verdict.answer != b.verdict.answer
        for a, b in pairwise(attempts)
        if Outcome.UNPARSEABLE not in (a.verdict.outcome, b.verdict.outcome)
    ]
    return {
        f"delta{ends}": (last - first, 1),
        "i->c": (not first and last, 1),
        "c->i": (first and not last, 1),
        "fix_rate": _share([after for before, after in steps if not before]),
        "keep_rate": _share([after for before, after in steps if before]),
        f"fix_rate{ends}": (not first and last, not first),
        f"keep_rate{ends}": (first and last, first),
        "changed": _share(both_readable),
        "repeats_wrong": _share(wrong_again),
        "unique": (len(set(answers)), len(answers)),
    }


def _share(cases: Sequence[bool]) -> Score:
    return sum(cases), len(cases)


def scale_of(name: str) -> Scale:
    """What values the metric `name` can take."""
    if name.startswith("delta("):
        return Scale.DIFFERENCE
    return Scale.AMOUNT if name.startswith("tokens") else Scale.PROPORTION


def _per_problem(
    problem_ids: tuple[str, ...],
    samples: Sequence[tuple[str, Sequence[Attempt]]],
    score: Callable[[Sequence[Attempt]], dict[str, Score]],
) -> dict[str, ProblemValues]:
    """Each problem's mean over its usable samples; problems without one count nowhere."""
    scored = [(problem_id, score(attempts)) for problem_id, attempts in samples]
    row = {problem_id: i for i, problem_id in enumerate(problem_ids)}
    rows = np.array([row[problem_id] for problem_id, _ in scored], dtype=np.intp)
    counts = np.maximum(np.bincount(rows, minlength=len(problem_ids)), 1)
    values = {}
    for name in score([]):
        pairs = np.array([scores[name] for _, scores in scored], float).reshape(-1, 2)
        numerator, denominator = (
            np.bincount(rows, added, minlength=len(problem_ids)) / counts for added in pairs.T
        )
        values[name] = ProblemValues(problem_ids, numerator, denominator, scale_of(name))
    return values


def _usable(
    runs: Sequence[Trajectory], part: Callable[[Trajectory], Sequence[Attempt]]
) -> list[tuple[str, Sequence[Attempt]]]:
    """That part of each run, by the problem's id, where no check of it failed."""
    return [(t.problem.id, part(t)) for t in runs if not _errors(t, part(t))]


def _sequential_run(trajectory: Trajectory) -> Sequence[Attempt]:
    return [turn.attempt for turn in trajectory.turns]


def _parallel_set(trajectory: Trajectory) -> Sequence[Attempt]:
    return trajectory.turns[0].candidates if trajectory.turns else ()


def _errors(trajectory: Trajectory, attempts: Sequence[Attempt]) -> list[str]:
    """Why these attempts, a run or a set of the trajectory, are not usable; empty if they are."""
    if trajectory.stop_reason is StopReason.ERROR:
        return [_reason("episode", trajectory.error)]
    verdicts = [a.verdict for a in attempts]
    return [_reason("verdict", v.reason) for v in verdicts if v.outcome is Outcome.ERROR]


def _reason(where: str, text: str | None) -> str:
    """A short name to count an error by: the first line of what was said."""
    lines = (text or "").strip().splitlines()
    return f"{where}: {lines[0][:160] if lines else 'no reason given'}"


def _counts(runs: Sequence[Trajectory], scored_turns: int, scored_sets: int) -> dict[str, Any]:
    """Trajectories behind the metrics, and those left out by reason (once per reason each)."""
    reasons: Counter[str] = Counter()
    for t in runs:
        reasons.update({*_errors(t, _sequential_run(t)), *_errors(t, _parallel_set(t))})
    return {
        "trajectories": len(runs),
        "excluded_sequential": len(runs) - scored_turns,
        "excluded_parallel": len(runs) - scored_sets,
        "context_overflow": sum(t.stop_reason is StopReason.CONTEXT_OVERFLOW for t in runs),
        "errors": dict(sorted(reasons.items())),
    }


def _check(runs: Sequence[Trajectory], turns: int, parallel: int) -> None:
    if not runs:
        raise ValueError("there are no trajectories to evaluate")
    for before, after in pairwise(runs):
        if (before.problem.id, before.sample) == (after.problem.id, after.sample):
            raise ValueError(f"{after.id}: a second trajectory of the same problem and sample")
    for trajectory in runs:
        if found := _not_an_evaluation(trajectory, turns, parallel):
            raise ValueError(f"{trajectory.id}: {found}")


def _not_an_evaluation(trajectory: Trajectory, turns: int, parallel: int) -> str | None:
    """What is wrong with the trajectory for this protocol, or None."""
    reason, taken = trajectory.stop_reason, len(trajectory.turns)
    answers = len(_parallel_set(trajectory))
    if trajectory.place.phase != EVALUATION:
        return f"its phase is `{trajectory.place.phase}`, not an evaluation's"
    if reason is StopReason.ERROR:
        return None
    if reason is StopReason.SUCCESS:
        return "it stopped at a right answer; an evaluation never stops"
    if taken > turns or (taken < turns and reason is not StopReason.CONTEXT_OVERFLOW):
        return f"it has {taken} turns, not {turns}, and stopped as `{reason.value}`"
    responses = [a for turn in trajectory.turns for a in (turn.attempt, *turn.candidates)]
    if any(response.verdict.outcome is Outcome.PARTIAL for response in responses):
        return "it has a `partial` response, which is no answer"
    if taken and answers != parallel:
        return f"its first turn has {answers} candidates, not {parallel}"
    return None
