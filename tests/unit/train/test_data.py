"""Rows as the trainer sees them, and each rank's share of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rise_ray.mdp import Example, Place, Provenance, Span
from rise_ray.store.examples import (
    examples_to_table,
    read_lengths,
    read_manifest,
    write_example_parts,
)
from rise_ray.store.files import Folder
from rise_ray.train.data import PARTS_PER_TASK, PackedRows, fill_rows
from rise_ray.train.packing import PartRows, Share, plan_epochs

PLACE = Place("iteration", 1, "collect")
PROVENANCE = Provenance("candidate", "all", "t", "p", PLACE, 0, 0, 1.0, 0, 0, "")


def test_a_row_holds_its_examples_one_after_the_other() -> None:
    made = [
        Example("a", (11, 12, 13), (Span(0, 2, 4.0),), PROVENANCE),
        Example("b", (21, 22, 23, 24), (Span(1, 2, 1.0), Span(3, 4, 2.0)), PROVENANCE),
    ]
    rows = PartRows(0, 0, np.array([1, 0]), np.array([2]))
    batch = fill_rows(examples_to_table(made), rows, [0], 9, mean_weight=2.0)
    assert batch.input_ids.tolist() == [[21, 22, 23, 24, 11, 12, 13, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1]]
    assert batch.weights.tolist() == [[0, 0.5, 0, 1.0, 0, 2.0, 0, 0, 0]]


@pytest.mark.parametrize("first_step", [0, 3])
def test_the_ranks_read_every_row_once_from_any_step(tmp_path: Path, first_step: int) -> None:
    folder = Folder(str(tmp_path / "examples"))
    made = [
        Example(f"e{n}", (n, *range(n % 7 + 2)), (Span(1, 2, 1.0),), PROVENANCE)
        for n in range(1024 * (PARTS_PER_TASK + 1) + 9)
    ]
    write_example_parts(folder, made, 0)
    manifest = read_manifest(folder)
    plan = plan_epochs(
        read_lengths(folder, manifest), row_tokens=512, rows_per_step=8, epochs=1, seed=0
    )

    def rows(rank: int, world_size: int) -> np.ndarray:
        share = Share(rank, world_size, first_step)
        tasks = PackedRows(folder, manifest, plan, share).get_read_tasks(1)
        blocks = [block for task in tasks for block in task()]
        assert sum(task.metadata.num_rows for task in tasks) == sum(b.num_rows for b in blocks)
        columns = [block["input_ids"].combine_chunks().flatten() for block in blocks]
        matrix = np.concatenate([c.to_numpy() for c in columns]).reshape(-1, 512)
        return matrix.reshape(-1, 8 // world_size, 512)

    one = rows(0, 1)
    assert len(one) == plan.steps - first_step
    assert np.array_equal(np.concatenate([rows(0, 2), rows(1, 2)], axis=1), one)


def test_parts_before_the_first_step_are_not_read(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "examples"))
    made = [Example(f"e{n}", (1, 2, 3, 4), (Span(1, 2, 1.0),), PROVENANCE) for n in range(3 * 1024)]
    manifest = write_example_parts(folder, made, 0)
    plan = plan_epochs(
        read_lengths(folder, manifest), row_tokens=8, rows_per_step=4, epochs=1, seed=0
    )

    def parts(first_step: int) -> list[int]:
        work = PackedRows(folder, manifest, plan, Share(0, 2, first_step)).work()
        return [rows.part for rows, _ in work]

    assert len(parts(0)) == 3
    assert parts(plan.steps - 1) == parts(0)[-1:]
