"""What P(right) is worth: does it put right answers first, is it as often right as it says, and
what choosing and stopping by it give. R-Tuning's metrics (arXiv 2311.09677), and calibration.

Every response of an evaluation with a `question` has the score `sure`, log P(the word for right)
of the two. All here is of first answers, of the same sequential runs and parallel sets as RISE's
metrics (`rise_ray.evaluate.metrics`). An answer that is as likely one way as the other is not sure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from rise_ray.evaluate.intervals import Array, Metric, Scale, Score, Statistic
from rise_ray.evaluate.ranking import Item, average_precision_of
from rise_ray.mdp import Attempt, Outcome, Trajectory

SURE = "sure"
"""The name of the score."""

_BINS = 10
_THRESHOLD = 0.5
_CLAIMS = {True: 2.0, None: 1.0, False: 0.0}


def p_right(answer: Attempt) -> float:
    """What the model says of an answer of its own, 0 to 1. Raises KeyError if it was not asked."""
    return math.exp(answer.scores[SURE])


def likelihood(answer: Attempt) -> float:
    """The mean probability of the answer's tokens (their geometric mean), its end included."""
    return math.exp(answer.scores["logprob"] / len(answer.token_ids))


def was_asked(runs: Sequence[Trajectory]) -> bool:
    """Whether the evaluation asked about its answers."""
    return any(SURE in turn.attempt.scores for run in runs for turn in run.turns)


def sequential_sureness(attempts: Sequence[Attempt], turns: int) -> dict[str, Score]:
    """What one sequential run adds: answering only when sure, and stopping as soon as sure.

    No attempts: it overflowed, and gave no answer.
    """
    right = [attempt.verdict.outcome is Outcome.CORRECT for attempt in attempts]
    sure = [p_right(attempt) > _THRESHOLD for attempt in attempts]
    answered = sure[:1] == [True]
    scores: dict[str, Score] = {
        "answered": (answered, 1),
        "acc(answered)": (answered and right[0], answered),
    }
    stop = sure.index(True) if True in sure else len(attempts) - 1
    for turn in range(1, turns + 1):
        last = min(stop, turn - 1)
        tokens = sum(len(attempt.token_ids) for attempt in attempts[: last + 1])
        scores[f"stop@t{turn}(sure)"] = (bool(attempts) and right[last], 1)
        scores[f"tokens_stopped@t{turn}"] = (tokens, 1)
    return scores


def parallel_sureness(answers: Sequence[Attempt], parallel: int) -> dict[str, Score]:
    """What one parallel set adds: of so many answers the surest one, the first of equals."""
    scores: dict[str, Score] = {}
    for size in range(2, parallel + 1):
        surest = max(answers[:size], key=p_right, default=None)
        right = surest is not None and surest.verdict.outcome is Outcome.CORRECT
        scores[f"best{size}@t1(sure)"] = (right, 1)
    return scores


def rankings(
    answers: Sequence[tuple[str, Attempt]], problem_ids: tuple[str, ...]
) -> dict[str, Metric]:
    """Average precision of first answers, by problem id, under each way to rank them; calibration.

    `ap(sure)` ranks by P(right), `ap(likelihood)` by how likely the answer was, `ap(both)` by the
    mean of the two (the paper's), `ap(claim)` by what the answer says of itself, where any does:
    that it is right, nothing, that it is wrong.
    `ece` is the expected calibration error of P(right) in ten bins of equal width.
    """
    ways: dict[str, Callable[[Attempt], float]] = {
        "ap(sure)": p_right,
        "ap(likelihood)": likelihood,
        "ap(both)": lambda answer: (p_right(answer) + likelihood(answer)) / 2,
    }
    if any(answer.verdict.claims_correct is not None for _, answer in answers):
        ways["ap(claim)"] = lambda answer: _CLAIMS[answer.verdict.claims_correct]
    metrics: dict[str, Metric] = {
        name: average_precision_of(_items(answers, score), problem_ids)
        for name, score in ways.items()
    }
    return metrics | {"ece": calibration_error_of(_items(answers, p_right), problem_ids)}


def _items(answers: Sequence[tuple[str, Attempt]], score: Callable[[Attempt], float]) -> list[Item]:
    return [
        Item(problem_id, score(answer), answer.verdict.outcome is Outcome.CORRECT)
        for problem_id, answer in answers
    ]


def calibration_error_of(items: Sequence[Item], problem_ids: tuple[str, ...]) -> Statistic:
    """Expected calibration error (Guo et al., arXiv 1706.04599) as a statistic over problems.

    The mean over answers of how far their bin's mean score is from its share of right answers.
    None without an answer. Raises KeyError for an item of another problem.
    """
    position = {problem_id: i for i, problem_id in enumerate(problem_ids)}
    problem = np.array([position[item.problem_id] for item in items], np.intp)
    score = np.array([item.score for item in items], np.float64)
    gap = np.array([item.right for item in items], np.float64) - score
    bins = np.minimum((score * _BINS).astype(np.intp), _BINS - 1)

    def of(weights: Array) -> float | None:
        drawn = weights[problem]
        total = float(drawn.sum())
        if not total:
            return None
        return float(np.abs(np.bincount(bins, drawn * gap, minlength=_BINS)).sum() / total)

    return Statistic(problem_ids, of, Scale.PROPORTION)
