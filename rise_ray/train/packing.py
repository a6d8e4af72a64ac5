"""The packing plan: which example lies in which row of which optimizer step.

Fixed before training from the examples' lengths and a seed alone, so every rank knows every
step's loss denominator without asking, a restarted run goes on at any step, and the batches do
not depend on the number of ranks. Needs only numpy.

The plan is one stream of rows: epoch by epoch the parts in a random order, within a part the
examples packed into rows by best fit, the rows in a random order. A step is the next
`rows_per_step` rows; only the very last step is filled up with empty rows.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rise_ray.errors import TrainError
from rise_ray.mdp import derive_seed
from rise_ray.store.examples import PartLengths

IntArray = npt.NDArray[np.int64]


class ExampleTooLongError(TrainError):
    """Example `index` of part `part` does not fit a row (the caller knows its id)."""

    def __init__(self, part: int, index: int, tokens: int, row_tokens: int) -> None:
        super().__init__(
            f"example {index} of part {part} has {tokens} tokens; "
            f"a packed row holds `row_tokens` = {row_tokens}"
        )
        self.part = part
        self.index = index


@dataclass(frozen=True, slots=True)
class PartRows:
    """The rows that one part gives in one epoch.

    Row `i` holds the part's examples `order[ends[i - 1] : ends[i]]` (from 0 for the first) and
    is row `first_row + i` of the stream.
    """

    part: int
    first_row: int
    order: IntArray
    ends: IntArray

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.ends)

    def examples(self, row: int) -> IntArray:
        """The indices in the part of the examples of row `row` (counted within the part)."""
        start = self.ends[row - 1] if row else 0
        return self.order[start : self.ends[row]]


@dataclass(frozen=True, slots=True)
class PackingPlan:
    """The whole run's batches. `tokens` and `loss_tokens` have one entry per step (no padding)."""

    row_tokens: int
    rows_per_step: int
    parts: tuple[PartRows, ...]
    tokens: IntArray
    loss_tokens: IntArray

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return len(self.tokens)

    @property
    def rows(self) -> int:
        """Rows that hold examples; the last step's other rows are empty."""
        return self.parts[-1].first_row + self.parts[-1].rows

    def step_examples(self, step: int) -> list[tuple[int, int]]:
        """(part, index in the part) of every example of a step, row by row."""
        first = step * self.rows_per_step
        found = []
        for rows in self.parts:
            low = max(first, rows.first_row) - rows.first_row
            high = min(first + self.rows_per_step, rows.first_row + rows.rows) - rows.first_row
            for row in range(low, high):
                found += [(rows.part, int(index)) for index in rows.examples(row)]
        return found


@dataclass(frozen=True, slots=True)
class Share:
    """The rows of one rank: a contiguous slice of every step's rows, from step `first_step`."""

    rank: int
    world_size: int
    first_step: int = 0

    def rows_per_step(self, plan: PackingPlan) -> int:
        """Rows of this rank in one step."""
        return plan.rows_per_step // self.world_size

    def select(self, plan: PackingPlan, first_row: int, rows: int) -> IntArray:
        """Which of `rows` rows from the stream's row `first_row` on are this rank's (from 0)."""
        stream = np.arange(first_row, first_row + rows)
        owner = stream % plan.rows_per_step // self.rows_per_step(plan)
        started = stream >= self.first_step * plan.rows_per_step
        return np.flatnonzero((owner == self.rank) & started)


def plan_epochs(
    lengths: Sequence[PartLengths], *, row_tokens: int, rows_per_step: int, epochs: float, seed: int
) -> PackingPlan:
    """The batches of `epochs` passes; of a last fraction, that share of the epoch's rows.

    Raises:
        TrainError: an example is longer than a row, or there is none.
    """
    _check(lengths, row_tokens)
    whole, fraction = int(epochs), epochs - int(epochs)
    parts: list[PartRows] = []
    for epoch in range(whole + (fraction > 0)):
        new = list(_epoch(lengths, row_tokens, _rows(parts), seed, epoch))
        if epoch == whole:
            total = sum(rows.rows for rows in new)
            new = _truncate(new, _rows(parts) + max(1, round(fraction * total)))
        parts += new
    return _plan(lengths, parts, row_tokens, rows_per_step)


def plan_tokens(
    lengths: Sequence[PartLengths], *, row_tokens: int, rows_per_step: int, tokens: int, seed: int
) -> PackingPlan:
    """The batches of as many whole steps as come closest to `tokens` real tokens, at least one.

    Goes through the data as often as it takes.

    Raises:
        TrainError: an example is longer than a row, or there is none.
    """
    _check(lengths, row_tokens)
    # Whole epochs until at least one full step beyond the target, to see which side is closer.
    epoch_tokens = sum(int(part.tokens.sum()) for part in lengths)
    epochs = -(-(tokens + rows_per_step * row_tokens) // epoch_tokens)
    parts: list[PartRows] = []
    for epoch in range(epochs):
        parts += _epoch(lengths, row_tokens, _rows(parts), seed, epoch)
    reached = np.cumsum(_plan(lengths, parts, row_tokens, rows_per_step).tokens)
    steps = 1 + int(np.argmin(np.abs(reached - tokens)))
    return _plan(lengths, _truncate(parts, steps * rows_per_step), row_tokens, rows_per_step)


def pack(lengths: IntArray, row_tokens: int, rng: np.random.Generator) -> list[list[int]]:
    """Assign examples to rows by best fit, longest first; ties and the rows' order are random.

    Args:
        lengths: tokens of each example, each at most `row_tokens`.
        row_tokens: length of a row.
        rng: breaks ties, so that each epoch has other neighbours.

    Returns:
        The rows, each a list of indices into `lengths`; every index occurs exactly once.
    """
    shuffled = rng.permutation(len(lengths))
    longest_first = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), sorted: the tightest fit comes first
    for example in longest_first.tolist():
        length = int(lengths[example])
        fit = bisect_left(room, (length, -1))
        if fit == len(room):
            free, row = row_tokens, len(rows)
            rows.append([])
        else:
            free, row = room.pop(fit)
        rows[row].append(example)
        insort(room, (free - length, row))
    return [rows[row] for row in rng.permutation(len(rows))]


def _epoch(
    lengths: Sequence[PartLengths], row_tokens: int, first_row: int, seed: int, epoch: int
) -> Iterator[PartRows]:
    order = np.random.default_rng(derive_seed(seed, "parts", epoch)).permutation(len(lengths))
    for part in order.tolist():
        rng = np.random.default_rng(derive_seed(seed, "rows", epoch, part))
        rows = pack(lengths[part].tokens, row_tokens, rng)
        examples = np.fromiter(itertools.chain.from_iterable(rows), np.int64)
        ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        yield PartRows(part, first_row, examples, ends)
        first_row += len(rows)


def _plan(
    lengths: Sequence[PartLengths], parts: list[PartRows], row_tokens: int, rows_per_step: int
) -> PackingPlan:
    steps = -(-_rows(parts) // rows_per_step)
    tokens, loss_tokens = np.zeros((2, steps), np.int64)
    for rows in parts:
        row = np.repeat(np.arange(rows.rows), np.diff(rows.ends, prepend=0))
        step = (rows.first_row + row) // rows_per_step
        np.add.at(tokens, step, lengths[rows.part].tokens[rows.order])
        np.add.at(loss_tokens, step, lengths[rows.part].loss_tokens[rows.order])
    return PackingPlan(row_tokens, rows_per_step, tuple(parts), tokens, loss_tokens)


def _rows(parts: Sequence[PartRows]) -> int:
    return parts[-1].first_row + parts[-1].rows if parts else 0


def _truncate(parts: list[PartRows], rows: int) -> list[PartRows]:
    kept = []
    for part in parts:
        ends = part.ends[: max(0, rows - part.first_row)]
        if len(ends):
            kept.append(PartRows(part.part, part.first_row, part.order[: ends[-1]], ends))
    return kept


def _check(lengths: Sequence[PartLengths], row_tokens: int) -> None:
    if not sum(len(part.tokens) for part in lengths):
        raise TrainError("there are no examples to train on")
    for number, part in enumerate(lengths):
        for index in np.flatnonzero(part.tokens > row_tokens)[:1].tolist():
            raise ExampleTooLongError(number, index, int(part.tokens[index]), row_tokens)
