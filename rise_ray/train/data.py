"""Each rank's own stream of packed rows, read and packed by Ray Data tasks while training runs.

A rank reads the parts in the order of the packing plan, keeps its share of every step's rows and
can start at any step, skipping the parts before it unread. Every rank has its own Dataset rather
than a split of a shared one: a split hands blocks to whichever rank asks first, so batches would
depend on timing and on the number of ranks. The rank builds it itself rather than through
`ray.train.DataConfig.configure`, because that runs before a restarted rank has its checkpoint
and so knows the step to go on from.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

import pyarrow as pa
import ray.data
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from rise_ray.store.examples import ExampleManifest, read_part
from rise_ray.store.files import Folder
from rise_ray.train.packing import PackingPlan, PartRows, Share
from rise_ray.train.rows import COLUMNS, RowBatch, empty_rows, fill_rows

PARTS_PER_TASK = 8  # a read task yields a block per part; more parts per task, fewer tasks to start
PREFETCH_STEPS = 8


class PackedRows(Datasource):
    """One rank's rows of a packing plan as a Ray Data source, in the plan's order."""

    def __init__(
        self, folder: Folder, manifest: ExampleManifest, plan: PackingPlan, share: Share
    ) -> None:
        super().__init__()
        self._folder = folder
        self._manifest = manifest
        self._plan = plan
        self._share = share

    def estimate_inmemory_data_size(self) -> int:
        return sum(task.metadata.size_bytes for task in self.get_read_tasks(1))

    def get_read_tasks(self, parallelism: int, *_: object, **__: object) -> list[ReadTask]:
        """A task for each run of parts of which this rank needs rows, and one for padding."""
        work, plan, tasks = self.work(), self._plan, []
        for at in range(0, len(work), PARTS_PER_TASK):
            group = work[at : at + PARTS_PER_TASK]
            # A closure over what the task needs, not over the plan of the whole run.
            read = functools.partial(
                _read_rows, self._folder, self._manifest, group, plan.row_tokens, plan.trees
            )
            tasks.append(self._task(read, sum(len(wanted) for _, wanted in group)))
        missing = plan.steps * plan.rows_per_step - plan.rows
        padding = len(self._share.select(plan, plan.rows, missing))
        if padding:
            row_tokens = plan.row_tokens
            tasks.append(self._task(lambda: [_block(empty_rows(padding, row_tokens))], padding))
        return tasks

    def work(self) -> list[tuple[PartRows, list[int]]]:
        """The parts to read in order, each with the rows this rank needs of it."""
        selected = (
            (rows, self._share.select(self._plan, rows.first_row, rows.rows).tolist())
            for rows in self._plan.parts
        )
        return [(rows, wanted) for rows, wanted in selected if wanted]

    def _task(self, read: Callable[[], Iterable[pa.Table]], rows: int) -> ReadTask:
        size_bytes = rows * 4 * len(COLUMNS) * self._plan.row_tokens
        return ReadTask(read, BlockMetadata(rows, size_bytes, exec_stats=None))


def stream_rows(
    folder: Folder,
    manifest: ExampleManifest,
    plan: PackingPlan,
    share: Share,
    rows_per_pass: int,
    deadline_s: float,
) -> Iterator[RowBatch]:
    """This rank's forward passes in order, `rows_per_pass` rows each.

    The same passes come again for the same arguments, whatever happened in between. Reading that
    makes no progress for `deadline_s` seconds is an error of Ray Data's.
    """
    source = PackedRows(folder, manifest, plan, share)
    tasks = len(source.get_read_tasks(1))
    if not tasks:
        return
    # The ranks hold the cluster's CPUs for as long as they train: a task that asked for one
    # would wait for ever. What limits reading is the store's back pressure.
    dataset = ray.data.read_datasource(source, override_num_blocks=tasks, num_cpus=0, concurrency=1)
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    dataset.context.execution_no_progress_timeout_s = deadline_s
    per_step = share.rows_per_step(plan)
    for table in dataset.iter_batches(
        batch_size=per_step, batch_format="pyarrow", prefetch_batches=PREFETCH_STEPS
    ):
        flat = [table.column(name).combine_chunks().flatten().to_numpy() for name in COLUMNS]
        columns = [column.reshape(-1, plan.row_tokens) for column in flat]
        for at in range(0, per_step, rows_per_pass):
            yield RowBatch(*(column[at : at + rows_per_pass] for column in columns))


def _read_rows(
    folder: Folder,
    manifest: ExampleManifest,
    work: Sequence[tuple[PartRows, list[int]]],
    row_tokens: int,
    trees: bool,
) -> Iterator[pa.Table]:
    for rows, wanted in work:
        table = read_part(folder, manifest.parts[rows.part])
        yield _block(fill_rows(table, rows, wanted, row_tokens, manifest.mean_weight, trees))


def _block(batch: RowBatch) -> pa.Table:
    def column(name: str) -> pa.Array:
        matrix = getattr(batch, name)
        return pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), matrix.shape[1])

    return pa.table({name: column(name) for name in COLUMNS})
