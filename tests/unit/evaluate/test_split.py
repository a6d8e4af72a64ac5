"""The problems that are measured on are a draw of the split, and larger draws hold smaller ones."""

from __future__ import annotations

import pytest

from rise_ray.evaluate.split import held_out
from rise_ray.mdp import Problem

# As MATH is: sorted by subject.
SORTED = [Problem(f"{subject}-{n}", "t", "q", "a") for subject in "ABCDE" for n in range(100)]


def ids(count: int | None, seed: int = 0) -> list[str]:
    return [problem.id for problem in held_out(SORTED, count, seed)]


def test_a_draw_of_a_sorted_split_has_every_subject() -> None:
    drawn = ids(100)
    assert len(set(drawn)) == 100
    shares = [sum(name.startswith(subject) for name in drawn) for subject in "ABCDE"]
    assert all(10 <= share <= 30 for share in shares)


def test_a_larger_draw_holds_the_smaller_one_and_another_seed_draws_others() -> None:
    assert ids(200)[:50] == ids(50)
    assert set(ids(50)) != set(ids(50, seed=1))


@pytest.mark.parametrize("count", [None, 500, 501])
def test_all_problems_keep_their_order(count: int | None) -> None:
    assert ids(count) == [problem.id for problem in SORTED]
