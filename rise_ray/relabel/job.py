"""Relabeling as a streaming Ray Data job: trajectory parts in, an examples folder out.

    read and verify a part -> relabel each trajectory (a pure function) -> random order -> parts

Trajectories are never read by the process that drives the job; examples pass through it one part at
a time.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from rise_ray.errors import TrainError, user_error
from rise_ray.mdp import Place, derive_seed
from rise_ray.relabel.examples import Relabeled, relabel_all
from rise_ray.relabel.rule import Rule, RuleContext
from rise_ray.store.examples import (
    EXAMPLE_SCHEMA,
    EXAMPLES_PER_PART,
    MANIFEST,
    ExampleManifest,
    ExamplePart,
    example_weight,
    examples_to_table,
    write_manifest,
    write_part,
)
from rise_ray.store.files import Folder
from rise_ray.store.trajectories import TrajectoryStore, read_part, trajectory_from_row

_TASK_CPUS = 0.25  # light tasks: they run beside idle rollout workers on small machines
_PARTS_PER_PARTITION = 8
_ROWS_AT_ONCE = 64  # trajectories as Python objects: they take several times their bytes
_NO_EXAMPLE = -1  # the `order` of a row that only carries counts

# A row is an example with its place in the random order and its weight, or counts alone.
_ROW_SCHEMA = pa.schema(
    [
        *(field.with_nullable(True) for field in EXAMPLE_SCHEMA),
        pa.field("order", pa.int64()),
        pa.field("weight", pa.float64()),
        pa.field("dropped", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class RelabelResult:
    """What the job wrote, and the responses that entered no example, by reason."""

    manifest: ExampleManifest
    dropped: dict[str, int]


def write_relabeled(
    store: TrajectoryStore,
    sealed: Mapping[Place, str],
    rule: Rule,
    max_tokens: int,
    seed: int,
    output: Folder,
) -> RelabelResult:
    """Relabel the stored trajectories of some places into the examples folder `output`.

    The result depends on the trajectories, the rule and the seed only: not on their parts, the
    cluster, or an earlier try.

    Args:
        store: what to read from.
        sealed: what to read: places, each with the digest that sealed it.
        rule: which responses become examples.
        max_tokens: longest example.
        seed: of the examples' order and of the rule's draws.
        output: an examples folder; replaced.

    At least one whole CPU has to be free: without it Ray Data waits for ever.

    Raises:
        TrainError: no response passed the rule.
        StoreError: a part is damaged, or was lost, added or replaced since its phase was sealed.
    """
    parts = [
        {"folder": store.folder_of(place).uri, "name": name}
        for place, digest in sealed.items()
        for name in store.parts(place, digest)
    ]
    if not parts:
        raise TrainError(f"{store.folder.uri}: no trajectories to relabel")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # the console has its own
    context.execution_no_progress_timeout_s = -1  # the caller has a deadline
    rows = (
        ray.data.from_items(parts, override_num_blocks=len(parts))
        .map_batches(
            _relabel_part,
            fn_kwargs={"rule": rule, "max_tokens": max_tokens, "seed": seed},
            batch_size=1,
            batch_format="numpy",
            num_cpus=_TASK_CPUS,
        )
        # Orders are hashes, even over their range: no sampling is needed to cut it evenly. Each
        # sort task asks for a whole CPU, and Ray Data (2.60) has no way to ask for less.
        .sort("order", boundaries=_boundaries(-(-len(parts) // _PARTS_PER_PARTITION)))
    )
    try:
        return _write(rows, output)
    except ray.exceptions.RayError as error:
        raise user_error(error) or error from error


def _boundaries(partitions: int) -> list[int]:
    return [number * 2**63 // partitions for number in range(1, partitions)]


def _relabel_part(
    part: dict[str, Any], rule: Rule, max_tokens: int, seed: int
) -> Iterator[pa.Table]:
    """The rows of one part, which is verified by the task that reads it."""
    table = read_part(Folder(str(part["folder"][0])), str(part["name"][0]))
    for batch in table.to_batches(_ROWS_AT_ONCE):
        trajectories = map(trajectory_from_row, batch.to_pylist())
        yield _rows(relabel_all(trajectories, rule, max_tokens, RuleContext(seed)), seed)


def _rows(result: Relabeled, seed: int) -> pa.Table:
    examples = examples_to_table(result.examples)
    columns: dict[str, Any] = {name: examples[name] for name in EXAMPLE_SCHEMA.names}
    columns["order"] = pa.array([derive_seed(seed, e.id) for e in result.examples], pa.int64())
    columns["weight"] = pa.array([example_weight(e) for e in result.examples], pa.float64())
    columns["dropped"] = pa.nulls(len(result.examples), pa.string())
    counts = {"order": _NO_EXAMPLE, "dropped": json.dumps(result.dropped)}
    return pa.concat_tables(
        [
            pa.Table.from_pydict(columns, schema=_ROW_SCHEMA),
            pa.Table.from_pylist([counts], schema=_ROW_SCHEMA),
        ]
    )


def _write(rows: Any, output: Folder) -> RelabelResult:
    output.remove(MANIFEST)  # parts are about to change: until the new manifest, unfinished
    dropped: Counter[str] = Counter()
    weights: list[float] = []
    parts: list[ExamplePart] = []
    pending: pa.Table | None = None
    for batch in rows.iter_batches(batch_size=EXAMPLES_PER_PART, batch_format="pyarrow"):
        for counts in batch["dropped"].drop_null().to_pylist():
            dropped.update(json.loads(counts))
        table = batch.filter(pc.not_equal(batch["order"], _NO_EXAMPLE))
        pending = table if pending is None else pa.concat_tables([pending, table])
        while pending.num_rows >= EXAMPLES_PER_PART:
            parts.append(_part(output, len(parts), pending.slice(0, EXAMPLES_PER_PART), weights))
            pending = pending.slice(EXAMPLES_PER_PART)
    if pending is not None and pending.num_rows:
        parts.append(_part(output, len(parts), pending, weights))
    if not parts:
        raise TrainError(
            f"relabeling left no example to train on; responses dropped by reason: {dict(dropped)}"
        )
    manifest = write_manifest(output, parts, math.fsum(weights))
    return RelabelResult(manifest, dict(dropped))


def _part(output: Folder, index: int, table: pa.Table, weights: list[float]) -> ExamplePart:
    weights += table["weight"].to_pylist()
    return write_part(output, index, table.select(EXAMPLE_SCHEMA.names))
