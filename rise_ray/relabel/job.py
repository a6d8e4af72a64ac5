"""Relabeling as a job: trajectory parts in, an examples folder out.

    read and verify a part -> relabel each trajectory (a pure function) -> random order -> parts

A rule that asks for it has all trajectories tallied before, in a pass of their own.

Few parts are relabeled in the calling process, in less time than Ray Data takes to start. More of
them stream through Ray Data: trajectories are then never read by the process that drives the job,
and examples pass through it one part at a time.

The order is random by trajectory: the examples of one stay together.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from rise_ray.errors import TrainError, user_error
from rise_ray.mdp import Example, Outcome, Place, Trajectory, derive_seed
from rise_ray.relabel.examples import Relabeled, relabel
from rise_ray.relabel.rewards import Tally, tally_of
from rise_ray.relabel.rule import Asked, Rule, RuleContext
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
_PARTS_IN_PROCESS = 8  # some 2,000 trajectories
_INDEX_BITS = 16  # of an order: the place of an example among its trajectory's
_ROWS_AT_ONCE = 64  # trajectories as Python objects: they take several times their bytes
_NO_EXAMPLE = -1  # the `order` of a row that only carries counts

Part = dict[str, str]
"""`folder` and `name` of a part of trajectories."""

_TALLY_SCHEMA = pa.schema(
    [("problem_id", pa.string()), ("outcome", pa.string()), ("count", pa.int64())]
)
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
    data_tokens: int
    """Tokens of one pass over the examples."""
    dropped: dict[str, int]


def write_relabeled(
    store: TrajectoryStore,
    sealed: Mapping[Place, str],
    rule: Rule,
    max_tokens: int,
    seed: int,
    output: Folder,
    asked: Asked | None = None,
) -> RelabelResult:
    """Relabel the stored trajectories of some places into the examples folder `output`.

    The result depends on the trajectories, the rule and the seed only: not on their parts, the
    cluster, or an earlier try.

    `sealed` has the digest that sealed each of the places; `seed` is of the examples' order and of
    the rule's draws; `asked` is the question of a rule that is `Asking`. What `output` held is
    replaced. No example is longer than `max_tokens`.

    For many parts one whole CPU has to be free: without it Ray Data waits for ever.

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
    few = len(parts) <= _PARTS_IN_PROCESS
    relabeled = _in_this_process if few else _by_ray_data
    try:
        tally = _tally(parts, few) if rule.needs_tally else None
        context = RuleContext(seed, tally, asked)
        arguments = {"rule": rule, "max_tokens": max_tokens, "context": context}
        return _write(relabeled(parts, arguments), output, rule.drop_duplicates)
    except ray.exceptions.RayError as error:
        raise user_error(error) or error from error


def _in_this_process(parts: Sequence[Part], arguments: dict[str, Any]) -> Iterator[pa.Table]:
    tables = [table for part in parts for table in _relabel_part(part, **arguments)]
    yield pa.concat_tables(tables).sort_by("order")


def _by_ray_data(parts: Sequence[Part], arguments: dict[str, Any]) -> Iterator[pa.Table]:
    # Orders are hashes, even over their range: no sampling is needed to cut it evenly. Each sort
    # task asks for a whole CPU, and Ray Data (2.60) has no way to ask for less.
    partitions = -(-len(parts) // _PARTS_PER_PARTITION)
    boundaries = [number * 2**63 // partitions for number in range(1, partitions)]
    rows = _mapped(parts, _relabel_part, arguments).sort("order", boundaries=boundaries)
    yield from rows.iter_batches(batch_size=EXAMPLES_PER_PART, batch_format="pyarrow")


def _mapped(
    parts: Sequence[Part], work: Callable[..., Iterator[pa.Table]], arguments: dict[str, Any]
) -> ray.data.Dataset:
    """`work` of each part, in a Ray Data task of its own."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # the console has its own
    context.execution_no_progress_timeout_s = -1  # the caller has a deadline
    return ray.data.from_items(list(parts), override_num_blocks=len(parts)).map_batches(
        _of_batch,
        fn_kwargs={"work": work, "arguments": arguments},
        batch_size=1,
        batch_format="numpy",
        num_cpus=_TASK_CPUS,
    )


def _of_batch(
    batch: dict[str, Any], work: Callable[..., Iterator[pa.Table]], arguments: dict[str, Any]
) -> Iterator[pa.Table]:
    yield from work({"folder": str(batch["folder"][0]), "name": str(batch["name"][0])}, **arguments)


def _tally(parts: Sequence[Part], few: bool) -> Tally:
    """What was sampled on each problem, in all parts."""
    tables = (
        (table for part in parts for table in _tally_part(part))
        if few
        else _mapped(parts, _tally_part, {}).iter_batches(batch_format="pyarrow")
    )
    total: Counter[tuple[str, Outcome]] = Counter()
    for table in tables:
        columns = (table[name].to_pylist() for name in _TALLY_SCHEMA.names)
        for problem_id, outcome, count in zip(*columns, strict=True):
            total[problem_id, Outcome(outcome)] += count
    return total


def _tally_part(part: Part) -> Iterator[pa.Table]:
    for trajectories in _trajectories(part):
        counts = tally_of(trajectories).items()
        rows = [{"problem_id": key[0], "outcome": key[1], "count": count} for key, count in counts]
        yield pa.Table.from_pylist(rows, schema=_TALLY_SCHEMA)


def _relabel_part(
    part: Part, rule: Rule, max_tokens: int, context: RuleContext
) -> Iterator[pa.Table]:
    for trajectories in _trajectories(part):
        yield _rows(relabel(trajectories, rule, max_tokens, context), context.seed)


def _trajectories(part: Part) -> Iterator[Iterator[Trajectory]]:
    """Of one part, which is verified where it is read, some at a time."""
    table = read_part(Folder(part["folder"]), part["name"])
    for batch in table.to_batches(_ROWS_AT_ONCE):
        yield map(trajectory_from_row, batch.to_pylist())


def _rows(result: Relabeled, seed: int) -> pa.Table:
    examples = examples_to_table(result.examples)
    columns: dict[str, Any] = {name: examples[name] for name in EXAMPLE_SCHEMA.names}
    columns["order"] = _orders(result.examples, seed)
    columns["weight"] = [example_weight(e) for e in result.examples]
    columns["dropped"] = [None] * len(result.examples)
    rows = pa.Table.from_pydict(columns, schema=_ROW_SCHEMA)
    counts = {"order": _NO_EXAMPLE, "dropped": json.dumps(result.dropped)}
    return pa.concat_tables([rows, pa.Table.from_pylist([counts], schema=_ROW_SCHEMA)])


def _orders(examples: Sequence[Example], seed: int) -> list[int]:
    """A random number for each trajectory, whose last bits count its examples.

    By their tokens: two that begin alike lie next to each other.
    """
    counts: Counter[str] = Counter()
    orders = [0] * len(examples)
    for at in sorted(range(len(examples)), key=lambda at: examples[at].input_ids):
        trajectory = examples[at].provenance.trajectory_id
        draw = derive_seed(seed, trajectory) >> _INDEX_BITS << _INDEX_BITS
        orders[at] = draw + counts[trajectory]
        counts[trajectory] += 1
    return orders


def _write(rows: Iterator[pa.Table], output: Folder, drop_duplicates: bool) -> RelabelResult:
    output.remove(MANIFEST)  # parts are about to change: until the new manifest, unfinished
    dropped: Counter[str] = Counter()
    weights: list[float] = []
    data_tokens = 0
    parts: list[ExamplePart] = []
    pending: pa.Table | None = None
    seen: set[bytes] = set()
    for batch in rows:
        for counts in batch["dropped"].drop_null().to_pylist():
            dropped.update(json.loads(counts))
        table = batch.filter(pc.not_equal(batch["order"], _NO_EXAMPLE))
        if drop_duplicates:
            new = _unseen(table, seen)
            dropped["duplicate"] += len(new) - sum(new)
            table = table.filter(pa.array(new, pa.bool_()))
        data_tokens += sum(table["tokens"].to_pylist())
        weights += table["weight"].to_pylist()
        table = table.select(EXAMPLE_SCHEMA.names)
        pending = table if pending is None else pa.concat_tables([pending, table])
        while pending.num_rows >= EXAMPLES_PER_PART:
            parts.append(write_part(output, len(parts), pending.slice(0, EXAMPLES_PER_PART)))
            pending = pending.slice(EXAMPLES_PER_PART)
    if pending is not None and pending.num_rows:
        parts.append(write_part(output, len(parts), pending))
    if not parts:
        raise TrainError(
            f"relabeling left no example to train on; responses dropped by reason: {dict(+dropped)}"
        )
    manifest = write_manifest(output, parts, math.fsum(weights))
    return RelabelResult(manifest, data_tokens, dict(+dropped))


def _unseen(table: pa.Table, seen: set[bytes]) -> list[bool]:
    """Whether each row has tokens and spans that none before it had; `seen` keeps their digests.

    A row may come again in a later iteration of pooled data, or from another sample of a problem.
    """
    new = []
    for ids, spans in zip(table["input_ids"].to_pylist(), table["spans"].to_pylist(), strict=True):
        loss = [(span["start"], span["end"]) for span in spans]
        digest = hashlib.blake2b(repr((ids, loss)).encode(), digest_size=16).digest()
        new.append(digest not in seen)
        seen.add(digest)
    return new
