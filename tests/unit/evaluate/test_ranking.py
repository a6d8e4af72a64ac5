"""Average precision: worked by hand, by brute force, and with intervals as any metric."""

from __future__ import annotations

import random

import numpy as np
import pytest

from rise_ray.evaluate.intervals import bootstrap_difference, bootstrap_intervals
from rise_ray.evaluate.ranking import Item, average_precision, average_precision_of


def items(*scored: tuple[float, int]) -> list[Item]:
    """One problem each."""
    return [Item(f"p{i}", score, bool(right)) for i, (score, right) in enumerate(scored)]


@pytest.mark.parametrize(
    ("scored", "expected"),
    [
        ([(0.9, 1), (0.8, 1), (0.1, 0)], 1.0),
        ([(0.9, 0), (0.8, 1)], 1 / 2),
        ([(0.1, 1), (0.9, 1), (0.5, 0)], (1 + 2 / 3) / 2),
        # All of one score enter together: precision 2/4 at full recall, whatever their order.
        ([(0.5, 1), (0.5, 0), (0.5, 0), (0.5, 1)], 1 / 2),
        ([(0.9, 1), (0.5, 0), (0.5, 1), (0.2, 0)], (1 + 2 / 3) / 2),
        ([(0.9, 0), (0.8, 0)], None),
        ([], None),
    ],
)
def test_worked_by_hand(scored: list[tuple[float, int]], expected: float | None) -> None:
    assert average_precision(items(*scored)) == (
        None if expected is None else pytest.approx(expected)
    )


def brute_force(ranked: list[Item]) -> float:
    """The definition, level by level."""
    total, area, recall = sum(item.right for item in ranked), 0.0, 0.0
    for level in sorted({item.score for item in ranked}, reverse=True):
        taken = [item for item in ranked if item.score >= level]
        right = sum(item.right for item in taken)
        area += (right / total - recall) * right / len(taken)
        recall = right / total
    return area


def random_items(rng: random.Random, problems: int, shift: float = 0.4) -> list[Item]:
    drawn = []
    for n in range(problems):
        for _ in range(rng.randint(1, 4)):
            right = rng.random() < 0.4
            drawn.append(Item(f"p{n}", round(rng.random() + shift * right, 1), right))
    return drawn


@pytest.mark.parametrize("seed", range(20))
def test_weights_are_repetitions(seed: int) -> None:
    rng = random.Random(seed)
    ranked, ids = random_items(rng, 15), tuple(f"p{n}" for n in range(15))
    counts = {problem_id: rng.randint(0, 3) for problem_id in ids}
    repeated = [item for item in ranked for _ in range(counts[item.problem_id])]
    statistic = average_precision_of(ranked, ids)
    assert statistic.value == pytest.approx(brute_force(ranked))
    assert statistic.of(np.array(list(counts.values()), float)) == pytest.approx(
        brute_force(repeated)
    )


def test_it_has_an_interval_and_a_resample_without_a_right_item_is_left_out() -> None:
    ranked, ids = random_items(random.Random(0), 80), tuple(f"p{n}" for n in range(80))
    found = bootstrap_intervals({"ap": average_precision_of(ranked, ids)}, bootstrap=500, seed=0)
    interval = found["ap"]
    assert interval.value == pytest.approx(brute_force(ranked))
    assert interval.value - 0.2 < interval.low < interval.value < interval.high
    # A third of the draws lacks the one right item; the others have it first.
    few = average_precision_of(items((0.9, 1), (0.5, 0), (0.1, 0)), ("p0", "p1", "p2"))
    alone = bootstrap_intervals({"ap": few}, bootstrap=500, seed=0)["ap"]
    assert alone.value == 1.0
    assert alone.low > 0.4  # not 0: Wilson's at 3 of 3


def test_a_paired_difference_says_which_of_two_scores_ranks_better() -> None:
    rng, ids = random.Random(1), tuple(f"p{n}" for n in range(100))
    good = random_items(rng, 100, shift=0.8)
    blind = [item._replace(score=rng.random()) for item in good]
    a, b = average_precision_of(good, ids), average_precision_of(blind, ids)
    found = bootstrap_difference(a, b, bootstrap=500, seed=0)
    assert found.low > 0
    nothing = average_precision_of([], ids)
    assert bootstrap_difference(a, nothing, bootstrap=100, seed=0).value is None


def test_a_score_that_is_not_a_number_ranks_nothing() -> None:
    with pytest.raises(ValueError, match="not a number"):
        average_precision(items((float("nan"), 1)))
