"""The packing plan: nothing dropped, nothing doubled, the same for any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rise_ray.store.examples import PartLengths
from rise_ray.train.packing import Layout, PackingPlan, Share, pack, plan_epochs, plan_tokens

ROW = 32


def part(tokens: list[int]) -> PartLengths:
    array = np.array(tokens, np.int64)
    return PartLengths(array, np.maximum(array - 1, 1), np.zeros_like(array))


parts = st.lists(
    st.lists(st.integers(2, ROW), min_size=1, max_size=40).map(part), min_size=1, max_size=5
)


def plan(
    lengths: list[PartLengths], epochs: float = 1.0, rows_per_step: int = 4, seed: int = 0
) -> PackingPlan:
    return plan_epochs(lengths, Layout(ROW, rows_per_step), epochs=epochs, seed=seed)


def taken(plan: PackingPlan) -> list[tuple[int, int]]:
    return [example for step in range(plan.steps) for example in plan.step_examples(step)]


def everything(lengths: list[PartLengths]) -> list[tuple[int, int]]:
    return [(number, i) for number, part in enumerate(lengths) for i in range(len(part.tokens))]


@given(parts, st.integers(1, 3), st.integers(0, 3))
@settings(deadline=None)
def test_whole_epochs_take_every_example_exactly_once_each(
    lengths: list[PartLengths], epochs: int, seed: int
) -> None:
    assert sorted(taken(plan(lengths, epochs, seed=seed))) == sorted(everything(lengths) * epochs)


@given(parts)
@settings(deadline=None)
def test_no_row_holds_more_tokens_than_fit(lengths: list[PartLengths]) -> None:
    for rows in plan(lengths).parts:
        for row in range(rows.rows):
            assert 0 < lengths[rows.part].tokens[rows.examples(row)].sum() <= ROW


@given(parts)
@settings(deadline=None)
def test_a_step_s_counts_are_those_of_its_examples(lengths: list[PartLengths]) -> None:
    made = plan(lengths, epochs=2)
    for step in range(made.steps):
        examples = made.step_examples(step)
        assert made.tokens[step] == sum(lengths[p].tokens[i] for p, i in examples)
        assert made.loss_tokens[step] == sum(lengths[p].loss_tokens[i] for p, i in examples) > 0


@given(parts, st.integers(0, 4))
@settings(deadline=None)
def test_ranks_share_each_step_s_rows_whatever_their_number(
    lengths: list[PartLengths], first_step: int
) -> None:
    made = plan(lengths, epochs=2)
    padded = made.steps * made.rows_per_step
    for world_size in (1, 2, 4):
        shares = [Share(rank, world_size, first_step) for rank in range(world_size)]
        rows = [share.select(made, 0, padded) for share in shares]
        per_rank = max(0, made.steps - first_step) * made.rows_per_step // world_size
        assert [len(r) for r in rows] == [per_rank] * world_size
        by_step = np.sort(np.concatenate(rows)).reshape(-1, made.rows_per_step)
        expected = np.arange(first_step * made.rows_per_step, padded)
        assert np.array_equal(by_step.ravel(), expected)


def test_plan_depends_on_the_seed_alone() -> None:
    lengths = [part([3, 30, 7, 9, 9, 12, 2] * 5), part([5, 6, 7])]
    first, again, other = plan(lengths, 2), plan(lengths, 2), plan(lengths, 2, seed=1)
    assert taken(first) == taken(again)
    assert taken(first) != taken(other)


def test_epochs_differ_in_order_and_neighbours() -> None:
    lengths = [part([8] * 64)]
    rows = plan(lengths, epochs=2).parts
    neighbours = [{frozenset(p.examples(r).tolist()) for r in range(p.rows)} for p in rows]
    assert neighbours[0] != neighbours[1]


def test_equal_examples_are_packed_without_waste() -> None:
    rows = pack(np.full(64, 8), ROW, np.random.default_rng(0))
    assert [len(row) for row in rows] == [4] * 16


def test_short_examples_fill_what_long_ones_leave() -> None:
    rows = pack(np.array([30, 2, 20, 12, 31, 1]), ROW, np.random.default_rng(0))
    assert sorted(sorted(row) for row in rows) == [[0, 1], [2, 3], [4, 5]]


def test_a_fraction_of_an_epoch_stops_in_the_middle_without_repeats() -> None:
    lengths = [part([16] * 200)]
    examples = taken(plan(lengths, epochs=1.5))
    assert len(examples) == 300
    counts = np.bincount([i for _, i in examples])
    assert set(counts.tolist()) == {1, 2}


@pytest.mark.parametrize("target", [1, 500, 1600, 4000, 10_000])
def test_a_token_budget_is_met_to_the_nearest_step(target: int) -> None:
    lengths = [part([16, 9, 20, 32, 5] * 20)]
    made = plan_tokens(lengths, Layout(ROW, 4), tokens=target, seed=0)
    reached = made.tokens.sum()
    one_less, step = reached - made.tokens[-1], 4 * ROW
    assert made.steps == 1 or abs(reached - target) <= abs(one_less - target)
    assert reached >= target - step / 2


def test_a_token_budget_beyond_the_data_repeats_them_evenly() -> None:
    lengths = [part([16] * 10)]
    made = plan_tokens(lengths, Layout(ROW, 4), tokens=640, seed=0)
    counts = np.bincount([i for _, i in taken(made)], minlength=10)
    assert counts.tolist() == [4] * 10
