"""Training examples on storage: Parquet parts in a seeded random order, and their manifest.

An examples folder holds `part-00000.parquet`, ... and `manifest.json`. The manifest is written
last, so a folder without one is unfinished; it names every part with its SHA-256, and that of its
lengths, which are read alone: a damaged or replaced part is an error and never data. Parts come in
a random order of the examples because the packing plan (`rise_ray.train.packing`) shuffles only
within a part.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from rise_ray.errors import DataError, StoreError, TrainError
from rise_ray.mdp import Example, Place, Provenance, Span, derive_seed
from rise_ray.store.files import Folder
from rise_ray.store.parquet import from_bytes, sha256, to_bytes

SCHEMA_VERSION = "4"
EXAMPLES_PER_PART = 1024
MANIFEST = "manifest.json"
_READERS = 16  # parts opened at once when only lengths are read: object stores have latency

_REMEDY = "delete the folder and go on with --resume: it is made again"

_SPAN = pa.struct([("start", pa.int32()), ("end", pa.int32()), ("weight", pa.float64())])
EXAMPLE_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("input_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("spans", pa.list_(_SPAN), nullable=False),
        # Derived from the others, so that a packing plan reads numbers only.
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("loss_tokens", pa.int32(), nullable=False),
        pa.field("shared_tokens", pa.int32(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("rule", pa.string(), nullable=False),
        pa.field("trajectory_id", pa.string(), nullable=False),
        pa.field("problem_id", pa.string(), nullable=False),
        pa.field("track", pa.string(), nullable=False),
        pa.field("iteration", pa.int32(), nullable=False),
        pa.field("phase", pa.string(), nullable=False),
        pa.field("turn", pa.int32(), nullable=False),
        pa.field("candidate", pa.int32(), nullable=False),
        pa.field("reward", pa.float64()),  # null: a demonstration, which was never checked
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("weight_version", pa.int32(), nullable=False),
        pa.field("verifier_version", pa.string(), nullable=False),
    ],
    metadata={"schema_version": SCHEMA_VERSION},
)
_LENGTHS = ("tokens", "loss_tokens", "shared_tokens")
_PLACE = tuple(f.name for f in fields(Place))
_PROVENANCE = tuple(f.name for f in fields(Provenance) if f.name != "place")
_FROM_ROWS = TypeAdapter(list[Example])


@dataclass(frozen=True, slots=True)
class ExamplePart:
    """One Parquet file of an examples folder."""

    name: str
    examples: int
    sha256: str
    """Of the whole file."""
    lengths_sha256: str
    """Of the columns `tokens`, `loss_tokens` and `shared_tokens`."""


@dataclass(frozen=True, slots=True)
class ExampleManifest:
    """What an examples folder holds.

    `mean_weight` is the mean over the examples of each example's mean span weight. Training
    divides every weight by it, so that weights have mean 1 over the data set and the learning
    rate means the same whatever tau was.
    """

    parts: tuple[ExamplePart, ...]
    mean_weight: float
    schema_version: str = SCHEMA_VERSION

    @property
    def examples(self) -> int:
        return sum(part.examples for part in self.parts)


@dataclass(frozen=True, slots=True)
class PartLengths:
    """Of each example of one part, in file order: its tokens and those that carry loss.

    `shared_tokens`: the tokens that it and the example before it begin with alike, where that is
    of the same trajectory.
    """

    tokens: npt.NDArray[np.int64]
    loss_tokens: npt.NDArray[np.int64]
    shared_tokens: npt.NDArray[np.int64]


def loss_token_count(spans: Iterable[Span]) -> int:
    """Tokens that carry loss: those in spans with a weight, but not the first: it has no prefix."""
    return sum(span.end - max(span.start, 1) for span in spans if span.end > 1 and span.weight)


def examples_to_table(examples: Sequence[Example]) -> pa.Table:
    """Examples as a table of `EXAMPLE_SCHEMA`, in the order given.

    Raises:
        DataError: an example's spans are out of range, overlap, or carry a weight that is not
            finite (names the example).
    """
    for example in examples:
        _check(example)
    columns: dict[str, list[object]] = {
        "id": [e.id for e in examples],
        "input_ids": [e.input_ids for e in examples],
        "spans": [[asdict(span) for span in e.spans] for e in examples],
        "tokens": [len(e.input_ids) for e in examples],
        "loss_tokens": [loss_token_count(e.spans) for e in examples],
        "shared_tokens": [0] * len(examples),
    }
    for name in _PROVENANCE:
        columns[name] = [getattr(e.provenance, name) for e in examples]
    for name in _PLACE:
        columns[name] = [getattr(e.provenance.place, name) for e in examples]
    return _with_shared_tokens(pa.Table.from_pydict(columns, schema=EXAMPLE_SCHEMA))


def examples_from_table(table: pa.Table) -> list[Example]:
    """The inverse of `examples_to_table`."""
    # Provenance and place are columns of the row; what a value has no field for is left out.
    rows = [row | {"provenance": row | {"place": row}} for row in table.to_pylist()]
    return _FROM_ROWS.validate_python(rows)


def example_weight(example: Example) -> float:
    """The mean weight of an example's spans: its share in the data set's `mean_weight`."""
    return math.fsum(span.weight for span in example.spans) / len(example.spans)


def write_example_parts(folder: Folder, examples: Sequence[Example], seed: int) -> ExampleManifest:
    """Write a data set that fits in memory, shuffled by a hash of (seed, trajectory id).

    A trajectory's examples stay together, in the order of their tokens. The result depends only on
    the set of examples and the seed, so writing again is idempotent.

    Raises:
        TrainError: see `write_manifest`.
        DataError: two examples have the same id, or one is malformed.
    """
    ids = Counter(example.id for example in examples)
    if len(ids) < len(examples):
        raise DataError(f"two training examples have the same id: {ids.most_common(1)[0][0]}")

    def place(example: Example) -> tuple[int, str, tuple[int, ...], str]:
        trajectory = example.provenance.trajectory_id
        return derive_seed(seed, trajectory), trajectory, example.input_ids, example.id

    ordered = sorted(examples, key=place)
    folder.remove(MANIFEST)  # parts are about to change: until the new manifest, unfinished
    parts = [
        write_part(folder, index, examples_to_table(ordered[start : start + EXAMPLES_PER_PART]))
        for index, start in enumerate(range(0, len(ordered), EXAMPLES_PER_PART))
    ]
    return write_manifest(folder, parts, math.fsum(example_weight(e) for e in ordered))


def write_part(folder: Folder, index: int, table: pa.Table) -> ExamplePart:
    """Write part number `index` of a folder whose manifest comes later."""
    table = _with_shared_tokens(table)  # it came from several, or in another order
    content = to_bytes(table, EXAMPLE_SCHEMA)
    name = f"part-{index:05d}.parquet"
    folder.write(name, content)
    return ExamplePart(name, table.num_rows, sha256(content), _lengths(table)[1])


def write_manifest(
    folder: Folder, parts: Sequence[ExamplePart], weight_sum: float
) -> ExampleManifest:
    """Finish an examples folder; `weight_sum` is the sum of `example_weight` over all parts.

    Raises:
        TrainError: there are no examples, or their mean weight is not positive.
    """
    count = sum(part.examples for part in parts)
    if not count:
        raise TrainError(f"{folder.uri}: there are no examples to train on")
    manifest = ExampleManifest(tuple(parts), weight_sum / count)
    if not (manifest.mean_weight > 0 and math.isfinite(manifest.mean_weight)):
        raise TrainError(
            f"{folder.uri}: the examples' mean weight is {manifest.mean_weight}; it must be > 0"
        )
    content = asdict(manifest)
    folder.write(MANIFEST, json.dumps({**content, "sha256": _seal(content)}, indent=1).encode())
    return manifest


def read_manifest(folder: Folder) -> ExampleManifest:
    """What a finished examples folder holds.

    Raises:
        StoreError: the folder is unfinished, unreadable or of another schema version.
    """
    try:
        content = json.loads(folder.read(MANIFEST))
        if content["schema_version"] != SCHEMA_VERSION:
            raise StoreError(
                f"{folder.uri}: examples of schema version {content['schema_version']}; "
                f"this rise-ray reads {SCHEMA_VERSION}"
            )
        if content.pop("sha256") != _seal(content):
            raise ValueError("its SHA-256 is not that of its content")
        return TypeAdapter(ExampleManifest).validate_python(content)
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{folder.uri}/{MANIFEST}: damaged: {error!r}; {_REMEDY}") from error


def read_part(folder: Folder, part: ExamplePart) -> pa.Table:
    """One part, verified against the manifest.

    Raises:
        StoreError: it is missing or is not the file that the manifest names.
    """
    content, where = folder.read(part.name), f"{folder.uri}/{part.name}"
    if sha256(content) != part.sha256:
        raise StoreError(f"{where}: damaged: its SHA-256 is not what {MANIFEST} names; {_REMEDY}")
    return from_bytes(content, EXAMPLE_SCHEMA, where)


def read_lengths(folder: Folder, manifest: ExampleManifest) -> list[PartLengths]:
    """Each part's example lengths; reads only these columns of numbers.

    Raises:
        StoreError: a part is missing, or its lengths are not those that the manifest names.
    """
    filesystem = folder.arrow()

    def read(part: ExamplePart) -> PartLengths:
        path, where = f"{folder.path}/{part.name}", f"{folder.uri}/{part.name}"
        try:
            table = pq.read_table(path, columns=list(_LENGTHS), filesystem=filesystem)
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"{where}: cannot be read: {error}; {_REMEDY}") from error
        lengths, digest = _lengths(table)
        if digest != part.lengths_sha256:
            raise StoreError(f"{where}: damaged: its lengths are not {MANIFEST}'s; {_REMEDY}")
        return lengths

    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(read, manifest.parts))


def _seal(manifest: dict[str, Any]) -> str:
    return sha256(json.dumps(manifest, sort_keys=True).encode())


def _lengths(table: pa.Table) -> tuple[PartLengths, str]:
    """The lengths of a part's examples, and the SHA-256 of them."""
    columns = [table[name].to_numpy().astype("<i8") for name in _LENGTHS]
    return PartLengths(*columns), sha256(b"".join(column.tobytes() for column in columns))


def _with_shared_tokens(table: pa.Table) -> pa.Table:
    """The table with `shared_tokens` as its order of examples has them."""
    of = table["trajectory_id"].to_pylist()
    ids = [row.values.to_numpy() for row in table["input_ids"]]
    shared = np.zeros(len(ids), np.int32)
    for at in range(1, len(ids)):
        if of[at] == of[at - 1]:
            both = min(len(ids[at - 1]), len(ids[at]))
            differ = np.flatnonzero(ids[at - 1][:both] != ids[at][:both])
            shared[at] = differ[0] if len(differ) else both
    name = "shared_tokens"
    return table.set_column(
        table.schema.get_field_index(name), EXAMPLE_SCHEMA.field(name), [shared]
    )


def _check(example: Example) -> None:
    end = 0
    for span in example.spans:
        if not end <= span.start < span.end <= len(example.input_ids):
            raise DataError(
                f"example {example.id}: span {span.start}-{span.end} overlaps another or leaves "
                f"its {len(example.input_ids)} tokens"
            )
        if not math.isfinite(span.weight):
            raise DataError(f"example {example.id}: weight {span.weight} is not finite")
        end = span.end
    if not loss_token_count(example.spans):
        raise DataError(f"example {example.id}: no token with a prefix carries loss")
