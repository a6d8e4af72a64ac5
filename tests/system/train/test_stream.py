"""A rank's stream over several parts: all of its rows, and the same ones after a restart."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from rise_ray.mdp import Example
from rise_ray.store import examples as store
from rise_ray.store.examples import read_lengths, write_example_parts
from rise_ray.store.files import Folder
from rise_ray.train.data import PARTS_PER_TASK, RowBatch, stream_rows
from rise_ray.train.packing import Share, plan_epochs

pytestmark = pytest.mark.usefixtures("ray_runtime")

ROW_TOKENS, ROWS_PER_STEP, RANKS, EPOCHS = 64, 4, 2, 2
PASSES = ROWS_PER_STEP // RANKS  # of a rank in a step, one row each


def test_two_ranks_get_every_example_and_a_restart_the_same_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_examples: Callable[..., list[Example]]
) -> None:
    monkeypatch.setattr(store, "EXAMPLES_PER_PART", 6)
    made, folder = make_examples(60), Folder(str(tmp_path / "examples"))
    manifest = write_example_parts(folder, made, seed=0)
    assert len(manifest.parts) > PARTS_PER_TASK  # so that there are several read tasks, too
    plan = plan_epochs(
        read_lengths(folder, manifest),
        row_tokens=ROW_TOKENS,
        rows_per_step=ROWS_PER_STEP,
        epochs=EPOCHS,
        seed=0,
    )

    def passes(rank: int, first_step: int) -> list[RowBatch]:
        share = Share(rank, RANKS, first_step)
        return list(stream_rows(folder, manifest, plan, share, rows_per_pass=1, deadline_s=600.0))

    whole = [passes(rank, 0) for rank in range(RANKS)]
    assert [len(stream) for stream in whole] == [plan.steps * PASSES] * RANKS
    for step in range(plan.steps):
        rows = [batch for stream in whole for batch in stream[step * PASSES :][:PASSES]]
        assert sum(np.count_nonzero(b.weights) for b in rows) == plan.loss_tokens[step]
    trained = sorted(ids for stream in whole for batch in stream for ids in sequences(batch))
    assert trained == sorted([example.input_ids for example in made] * EPOCHS)

    middle = plan.steps // 2
    for rank, stream in enumerate(whole):
        again = passes(rank, middle)
        assert len(again) == (plan.steps - middle) * PASSES
        for found, expected in zip(again, stream[middle * PASSES :], strict=True):
            for name in RowBatch.__slots__:
                assert np.array_equal(getattr(found, name), getattr(expected, name)), name


def sequences(batch: RowBatch) -> Iterable[tuple[int, ...]]:
    """The examples in a pass's rows, split where positions restart; padding is of zeros."""
    for ids, positions in zip(batch.input_ids, batch.position_ids, strict=True):
        for part in np.split(ids, np.flatnonzero(positions == 0)[1:]):
            if part.any():
                yield tuple(part.tolist())
