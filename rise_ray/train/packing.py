"""The packing plan: which example lies in which row of which optimizer step.

Fixed before training from the examples' lengths and a seed alone, so every rank knows every
step's loss denominator without asking, and a restarted run goes on at any step. Needs only numpy.
That no example is longer than a row is for the caller to see to.

The plan is one stream of rows: epoch by epoch the parts in a random order, within a part the
examples packed into rows, the rows in a random order. A step is the next `rows_per_step` rows;
only the very last step is filled up with empty rows.

Rows hold examples one after the other, or trees: the examples of a trajectory follow each other in
a part, and each is laid out behind the one before it without the tokens that both begin with. A
row then trains on more tokens than it holds, so a step takes fewer: as many as train on about
`batch_tokens`. A tree that is longer than a row is cut between two of its examples.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from rise_ray.mdp import derive_seed
from rise_ray.store.examples import PartLengths

IntArray = npt.NDArray[np.int64]

_SAVES = 1.1  # trees are worth their mask from this many trained tokens a held one on
_ROOM = 0.9  # whole trees fill rows so far, on average, without being squeezed out of them
# A tree this much longer than its row's share is cut, or steps would outgrow the batch.
_OVER = 1.25


@dataclass(frozen=True, slots=True)
class Layout:
    """What rows hold: examples one after the other, as many as fit, or trees.

    Trees (`fill` is set) are cut where they are longer than `longest_tree`, and spread evenly over
    rows of about `fill` tokens, which hold `row_tokens` at most.
    """

    row_tokens: int
    rows_per_step: int
    fill: int | None = None
    longest_tree: int = 0


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
        return len(self.ends)

    def examples(self, row: int) -> IntArray:
        """The indices in the part of the examples of row `row` (counted within the part)."""
        start = self.ends[row - 1] if row else 0
        return self.order[start : self.ends[row]]

    def shared(self, tokens: IntArray) -> IntArray:
        """How many tokens each example in `order` has in common with the one before it in its row.

        `tokens` are what each of the part's examples shares with the one before it there.
        """
        follows = np.diff(self.order, prepend=-2) == 1
        follows[self.ends[:-1]] = False
        return np.where(follows, tokens[self.order], 0)


@dataclass(frozen=True, slots=True)
class PackingPlan:
    """The whole run's batches.

    `tokens` (trained on), `loss_tokens` and `computed_tokens` (held by rows: fewer than trained on
    where they hold trees) have one entry per step and count no padding.
    """

    row_tokens: int
    rows_per_step: int
    trees: bool
    parts: tuple[PartRows, ...]
    tokens: IntArray
    loss_tokens: IntArray
    computed_tokens: IntArray

    @property
    def steps(self) -> int:
        return len(self.tokens)

    @property
    def rows(self) -> int:
        """Rows that hold examples; the last step's other rows are empty."""
        return self.parts[-1].first_row + self.parts[-1].rows

    def rows_at_once(self, workers: int, most: int) -> int:
        """The largest number of a rank's rows in a step, up to `most`, that divides all of them."""
        rows = self.rows_per_step // workers
        return next(number for number in range(min(most, rows), 0, -1) if rows % number == 0)

    def step_examples(self, step: int) -> list[tuple[int, int]]:
        """(part, index in the part) of every example of a step, row by row."""
        return [
            (rows.part, int(index))
            for rows in self.parts
            for row in range(rows.rows)
            if (rows.first_row + row) // self.rows_per_step == step
            for index in rows.examples(row)
        ]


@dataclass(frozen=True, slots=True)
class Share:
    """The rows of one rank: a contiguous slice of every step's rows, from step `first_step`."""

    rank: int
    world_size: int
    first_step: int = 0

    def rows_per_step(self, plan: PackingPlan) -> int:
        return plan.rows_per_step // self.world_size

    def select(self, plan: PackingPlan, first_row: int, rows: int) -> IntArray:
        """Which of `rows` rows from the stream's row `first_row` on are this rank's (from 0)."""
        stream = np.arange(first_row, first_row + rows)
        owner = stream % plan.rows_per_step // self.rows_per_step(plan)
        started = stream >= self.first_step * plan.rows_per_step
        return np.flatnonzero((owner == self.rank) & started)


def choose_layout(
    lengths: Sequence[PartLengths],
    *,
    batch_tokens: int,
    row_tokens: int,
    workers: int,
    shared_prefixes: bool,
) -> Layout:
    """Trees where they are allowed and save tokens, else rows of examples one after the other.

    A step trains on about `batch_tokens`, a row holds `row_tokens` at most, and each of the
    `workers` has as many rows of a step.
    """
    separate = Layout(row_tokens, batch_tokens // row_tokens)
    tokens = sum(int(part.tokens.sum()) for part in lengths)
    if not shared_prefixes:
        return separate
    longest_tree, layout, held = row_tokens, separate, tokens
    for _ in range(2):  # how long trees may be rests on what they save, and that on how long
        held = sum(int(_trees(part, longest_tree)[1].sum()) for part in lengths)
        rank_tokens = batch_tokens * held / tokens / workers
        rows = math.ceil(rank_tokens / (_ROOM * row_tokens))
        fill = max(1, round(rank_tokens / rows))
        layout = Layout(row_tokens, rows * workers, fill, longest_tree)
        longest_tree = min(longest_tree, round(_OVER * fill))
    return layout if tokens >= _SAVES * held else separate


def plan_epochs(
    lengths: Sequence[PartLengths], layout: Layout, *, epochs: float, seed: int
) -> PackingPlan:
    """The batches of `epochs` passes; of a last fraction, that share of the epoch's rows."""
    whole, fraction = int(epochs), epochs - int(epochs)
    parts: list[PartRows] = []
    for epoch in range(whole + (fraction > 0)):
        new = list(_epoch(lengths, layout, _rows(parts), seed, epoch))
        if epoch == whole:
            total = sum(rows.rows for rows in new)
            new = _truncate(new, _rows(parts) + max(1, round(fraction * total)))
        parts += new
    return _plan(lengths, layout, parts)


def plan_tokens(
    lengths: Sequence[PartLengths], layout: Layout, *, tokens: int, seed: int
) -> PackingPlan:
    """The batches of as many whole steps as come closest to `tokens` trained on, at least one.

    Goes through the data as often as it takes.
    """
    parts: list[PartRows] = []
    reached = np.zeros(0, np.int64)
    # Until a whole step lies beyond the target, to see which side is closer.
    while len(reached) < 2 or reached[-2] < tokens:
        epoch = len(parts) // len(lengths)
        parts += _epoch(lengths, layout, _rows(parts), seed, epoch)
        reached = np.cumsum(_plan(lengths, layout, parts).tokens)
    steps = 1 + int(np.argmin(np.abs(reached - tokens)))
    return _plan(lengths, layout, _truncate(parts, steps * layout.rows_per_step))


def pack(lengths: IntArray, row_tokens: int, rng: np.random.Generator) -> list[list[int]]:
    """Assign examples to rows by best fit, longest first; ties and the rows' order are random.

    `lengths` are the tokens of each example, at most `row_tokens`. Returns the rows, each a list of
    indices into `lengths`; every index occurs exactly once.
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


def spread(
    lengths: IntArray, fill: int, row_tokens: int, rng: np.random.Generator
) -> list[list[int]]:
    """Assign trees to rows of about `fill` tokens each, as evenly as whole trees allow.

    Arguments and result are otherwise those of `pack`, with trees for examples.
    """
    shuffled = rng.permutation(len(lengths))
    longest_first = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    rows: list[list[int]] = [[] for _ in range(max(1, round(int(lengths.sum()) / fill)))]
    emptiest = [(0, row) for row in range(len(rows))]
    for tree in longest_first.tolist():
        held, row = emptiest[0]
        if held + int(lengths[tree]) > row_tokens:
            heapq.heappush(emptiest, (int(lengths[tree]), len(rows)))
            rows.append([tree])
        else:
            heapq.heapreplace(emptiest, (held + int(lengths[tree]), row))
            rows[row].append(tree)
    return [rows[row] for row in rng.permutation(len(rows)) if rows[row]]


def _trees(part: PartLengths, longest: int) -> tuple[IntArray, IntArray]:
    """The first example of each of a part's trees, and the tokens that a tree takes.

    A tree goes on while examples share tokens with the one before and it is no longer than
    `longest` tokens.
    """
    first: list[int] = []
    held: list[int] = []
    each = zip(part.tokens.tolist(), part.shared_tokens.tolist(), strict=True)
    for example, (tokens, shared) in enumerate(each):
        if shared and held[-1] + tokens - shared <= longest:
            held[-1] += tokens - shared
        else:
            first.append(example)
            held.append(tokens)
    return np.array(first, np.int64), np.array(held, np.int64)


def _epoch(
    lengths: Sequence[PartLengths], layout: Layout, first_row: int, seed: int, epoch: int
) -> Iterator[PartRows]:
    order = np.random.default_rng(derive_seed(seed, "parts", epoch)).permutation(len(lengths))
    for part in order.tolist():
        rng = np.random.default_rng(derive_seed(seed, "rows", epoch, part))
        if layout.fill is None:
            first = np.arange(len(lengths[part].tokens))
            rows = pack(lengths[part].tokens, layout.row_tokens, rng)
        else:
            first, held = _trees(lengths[part], layout.longest_tree)
            rows = spread(held, layout.fill, layout.row_tokens, rng)
        counts = np.diff(first, append=len(lengths[part].tokens))
        trees = [np.arange(first[tree], first[tree] + counts[tree]) for row in rows for tree in row]
        ends = np.cumsum([sum(counts[row]) for row in rows], dtype=np.int64)
        yield PartRows(part, first_row, np.concatenate(trees), ends)
        first_row += len(rows)


def _plan(lengths: Sequence[PartLengths], layout: Layout, parts: list[PartRows]) -> PackingPlan:
    trees = layout.fill is not None
    steps = -(-_rows(parts) // layout.rows_per_step)
    tokens, loss_tokens, computed = np.zeros((3, steps), np.int64)
    longest_row = 0
    for rows in parts:
        part = lengths[rows.part]
        row = np.repeat(np.arange(rows.rows), np.diff(rows.ends, prepend=0))
        step = (rows.first_row + row) // layout.rows_per_step
        held = part.tokens[rows.order] - (rows.shared(part.shared_tokens) if trees else 0)
        np.add.at(tokens, step, part.tokens[rows.order])
        np.add.at(loss_tokens, step, part.loss_tokens[rows.order])
        np.add.at(computed, step, held)
        longest_row = max(longest_row, int(np.bincount(row, held).max()))
    row_tokens = longest_row if trees else layout.row_tokens
    return PackingPlan(
        row_tokens, layout.rows_per_step, trees, tuple(parts), tokens, loss_tokens, computed
    )


def _rows(parts: Sequence[PartRows]) -> int:
    return parts[-1].first_row + parts[-1].rows if parts else 0


def _truncate(parts: list[PartRows], rows: int) -> list[PartRows]:
    kept = ((part, part.ends[: max(0, rows - part.first_row)]) for part in parts)
    return [
        replace(part, order=part.order[: ends[-1]], ends=ends) for part, ends in kept if len(ends)
    ]
