"""How well scores put right answers before wrong ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rise_ray.evaluate.intervals import Array, Scale, Statistic


class Item(NamedTuple):
    """A scored answer to a problem."""

    problem_id: str
    score: float
    right: bool


def average_precision(items: Sequence[Item]) -> float | None:
    """The area under precision over recall: the sum of each level's gain in recall times the
    precision there, from the highest score down. Items of one score are one level.

    None without a right item. Raises ValueError for a score that is not a number.
    """
    return average_precision_of(items, tuple({item.problem_id: None for item in items})).value


def average_precision_of(items: Sequence[Item], problem_ids: tuple[str, ...]) -> Statistic:
    """`average_precision` as a statistic over problems: an item counts as often as its problem.

    There may be any number of items per problem; all of `problem_ids` are drawn from.

    Raises:
        ValueError: a score is not a number.
        KeyError: an item's problem is none of these.
    """
    scores = np.array([item.score for item in items], np.float64)
    if np.isnan(scores).any():
        raise ValueError("a score is not a number")
    order = np.argsort(-scores, kind="stable")
    position = {problem_id: i for i, problem_id in enumerate(problem_ids)}
    problem = np.array([position[item.problem_id] for item in items], np.intp)[order]
    right = np.array([item.right for item in items], np.float64)[order]
    level_ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True)[: len(items)])

    def of(weights: Array) -> float | None:
        drawn = weights[problem]
        found = np.cumsum(drawn * right)[level_ends]
        if not found.size or found[-1] == 0:
            return None
        seen = np.cumsum(drawn)[level_ends]
        # A level before the first drawn item has no precision, and gains no recall.
        precision = np.divide(found, seen, out=np.zeros_like(found), where=seen > 0)
        return float(np.diff(found, prepend=0.0) @ precision / found[-1])

    return Statistic(problem_ids, of, Scale.PROPORTION)
