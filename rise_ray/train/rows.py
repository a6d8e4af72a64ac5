"""A packed row, token by token: examples one after the other, or trees of them.

A tree holds each token that several examples begin with once. It is laid out depth first, so the
tokens that follow from one, whatever comes between, are a run: up to its `ends`. Attention needs no
more than that: a token sees itself and those before it whose run it lies in. Needs only numpy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from rise_ray.train.packing import PartRows


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Packed rows, each array of shape [rows, row_tokens].

    `position_ids` restart at 0 for each example or tree (and for the padding at a row's end) and
    count what a token sees before it. `parents` say where in the row the token before it lies; -1
    for a first one. `ends` say where in the row the run of those that see a token ends; 0 is
    padding. `weights` holds, for each token, the loss weight of predicting it, summed over the
    examples that do, divided by the data set's mean weight; `predicted` counts them.
    """

    input_ids: npt.NDArray[np.int32]
    position_ids: npt.NDArray[np.int32]
    parents: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    predicted: npt.NDArray[np.int32]

    def joined(self) -> RowBatch:
        """The rows as a single one, without padding; one token of it if there is nothing else."""
        rows, length = self.ends.shape
        offsets = length * np.arange(rows, dtype=np.int32)[:, None]
        kept = self.ends.ravel() > 0
        kept[0] |= not kept.any()
        moved = np.cumsum(kept, dtype=np.int32)  # how many are kept, up to each token
        parents = np.where(self.parents < 0, -1, moved[np.maximum(self.parents + offsets, 0)] - 1)
        ends = np.where(self.ends > 0, moved[np.maximum(self.ends + offsets - 1, 0)], 0)
        changed = {"parents": parents, "ends": ends}
        columns = (changed.get(name, getattr(self, name)).ravel()[kept][None] for name in COLUMNS)
        return RowBatch(*columns)


COLUMNS = tuple(field.name for field in fields(RowBatch))


def empty_rows(rows: int, row_tokens: int) -> RowBatch:
    """Rows of padding only."""
    ids, ends, predicted = np.zeros((3, rows, row_tokens), np.int32)
    positions = np.tile(np.arange(row_tokens, dtype=np.int32), (rows, 1))
    weights = np.zeros((rows, row_tokens), np.float32)
    return RowBatch(ids, positions, positions - 1, ends, weights, predicted)


def fill_rows(
    table: Any,
    rows: PartRows,
    wanted: Iterable[int],
    row_tokens: int,
    mean_weight: float,
    trees: bool,
) -> RowBatch:
    """Lay a part's examples out in the rows `wanted` (numbers within the part).

    The part is an Arrow table of `EXAMPLE_SCHEMA`. Every weight is divided by `mean_weight`, which
    is the data set's. With `trees`, tokens that examples share are laid out once.
    """
    tokens, starts = _lists(table, "input_ids")
    ids = tokens.to_numpy()
    values, span_starts = _lists(table, "spans")
    columns = (values.field(name).to_pylist() for name in ("start", "end", "weight"))
    spans = list(zip(*columns, strict=True))
    shared = rows.shared(table["shared_tokens"].to_numpy() * trees)
    wanted = list(wanted)
    batch = empty_rows(len(wanted), row_tokens)
    for i, row in enumerate(wanted):
        last = int(rows.ends[row])
        first = last - len(rows.examples(row))
        at, path = 0, np.zeros(0, np.int64)  # where the tokens of the last example lie
        for example, common in zip(rows.order[first:last], shared[first:last], strict=True):
            new = ids[starts[example] + common : starts[example + 1]]
            batch.ends[i, path[common:]] = at
            path = np.concatenate([path[:common], np.arange(at, at + len(new))])
            at += len(new)
            laid = path[common:]
            batch.input_ids[i, laid] = new
            batch.position_ids[i, laid] = np.arange(common, len(path))
            batch.parents[i, laid[:1]] = path[common - 1] if common else -1
            for start, end, weight in spans[span_starts[example] : span_starts[example + 1]]:
                # A first token has no prefix: predicting it from the row's neighbour is no loss.
                batch.weights[i, path[max(start, 1) : end]] += weight / mean_weight
                batch.predicted[i, path[max(start, 1) : end]] += weight != 0
        batch.ends[i, path] = at
        batch.position_ids[i, at:] = np.arange(row_tokens - at)
        batch.parents[i, at : at + 1] = -1
    return batch


def _lists(table: Any, name: str) -> tuple[Any, npt.NDArray[np.int32]]:
    """A list column as the Arrow array of its values, and where each list starts in them."""
    lists = table.column(name).combine_chunks()
    return lists.values, lists.offsets.to_numpy()
