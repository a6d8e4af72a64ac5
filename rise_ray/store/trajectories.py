"""Trajectories on Parquet: one row per episode, in parts that are named by their content.

A place (a phase of a track in an iteration) has its own folder, `trajectories/TRACK=N/phase=P/`,
of `part-<sha256 of the file>.parquet` files: every read verifies what it reads. An id is fixed
before its episode runs, so writing an episode again never doubles it: readers keep the first. A
place that is done is sealed: a digest of its parts' names is in the run's journal, and with it
whether any part was lost, added or replaced since.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter

from rise_ray.errors import StoreError
from rise_ray.mdp import Attempt, Place, Trajectory
from rise_ray.store.files import Folder
from rise_ray.store.parquet import from_bytes, sha256, to_bytes

SCHEMA_VERSION = "2"
PART_ROWS = 256  # of a whole part: small enough to be one task's, and one block in memory

_TOKENS = pa.list_(pa.int32())
_VERDICT = pa.struct(
    [
        ("outcome", pa.string()),
        ("answer", pa.string()),
        ("reason", pa.string()),
        ("claims_correct", pa.bool_()),
        ("verifier_version", pa.string()),
    ]
)
_ATTEMPT = pa.struct(
    [
        ("text", pa.string()),
        ("token_ids", _TOKENS),
        ("finish_reason", pa.string()),
        ("verdict", _VERDICT),
        ("weight_version", pa.int32()),
        ("seed", pa.int64()),
        ("scores", pa.list_(pa.struct([("name", pa.string()), ("value", pa.float64())]))),
        ("role", pa.string()),
        ("given", pa.int32()),
    ]
)
_TURN = pa.struct(
    [("attempt", _ATTEMPT), ("candidates", pa.list_(_ATTEMPT)), ("feedback_ids", _TOKENS)]
)
_SOURCE = pa.struct([("trajectory_id", pa.string()), ("turn", pa.int32()), ("token", pa.int32())])
_PROBLEM = pa.struct(
    [
        ("id", pa.string()),
        ("task", pa.string()),
        ("question", pa.string()),
        ("reference", pa.string()),
        ("solution", pa.string()),
        ("data", pa.string()),  # JSON: a task's own
    ]
)
TRAJECTORY_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("run", pa.string()),
        ("track", pa.string()),
        ("iteration", pa.int32()),
        ("phase", pa.string()),
        ("problem_id", pa.string()),
        ("problem", _PROBLEM),
        ("sample", pa.int32()),
        ("prompt_ids", _TOKENS),
        ("turns", pa.list_(_TURN)),
        ("stop_reason", pa.string()),
        ("window", pa.int32()),
        ("error", pa.string()),
        ("source", _SOURCE),
        ("feedback", pa.string()),
    ],
    metadata={"schema_version": SCHEMA_VERSION},
)


_FROM_ROW = TypeAdapter(Trajectory)


def trajectory_to_row(trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory as a row of `TRAJECTORY_SCHEMA`."""
    row: dict[str, Any] = _storable(trajectory)
    row |= row.pop("place")
    row["problem_id"] = row["problem"]["id"]
    row["problem"]["data"] = json.dumps(trajectory.problem.data, sort_keys=True)
    return row


def trajectories_to_table(trajectories: Sequence[Trajectory]) -> pa.Table:
    """Trajectories as a table of `TRAJECTORY_SCHEMA`, ordered by id."""
    rows = [trajectory_to_row(t) for t in sorted(trajectories, key=lambda t: t.id)]
    return pa.Table.from_pylist(rows, schema=TRAJECTORY_SCHEMA)


def trajectory_from_row(row: dict[str, Any]) -> Trajectory:
    """The inverse of `trajectory_to_row`."""
    problem = row["problem"] | {"data": json.loads(row["problem"]["data"])}
    turns = [
        {
            **turn,
            "attempt": _with_named_scores(turn["attempt"]),
            "candidates": [_with_named_scores(candidate) for candidate in turn["candidates"]],
        }
        for turn in row["turns"]
    ]
    # A place's fields are columns of the row; what a value has no field for is left out.
    nested = {"place": row, "problem": problem, "turns": turns}
    return _FROM_ROW.validate_python(row | nested)


class TrajectoryStore:
    """The trajectories of one run, in its `trajectories` folder."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def folder_of(self, place: Place) -> Folder:
        return self.folder / f"{place.track}={place.iteration}" / f"phase={place.phase}"

    def write(self, place: Place, trajectories: Sequence[Trajectory]) -> str:
        """Commit trajectories (at least one) as one part; its name.

        Raises:
            StoreError: two of them have the same id, or the part cannot be written.
        """
        return self.write_table(place, trajectories_to_table(trajectories))

    def write_table(self, place: Place, table: pa.Table) -> str:
        folder = self.folder_of(place)
        ids = Counter(table["id"].to_pylist())
        if len(ids) < table.num_rows:  # readers of a sealed phase take every row of a part
            doubled = ids.most_common(1)[0][0]
            raise StoreError(
                f"{folder.uri}: a part with {doubled} twice was not written; go on with "
                "--resume: what is missing is rolled again"
            )
        content = to_bytes(table, TRAJECTORY_SCHEMA)
        name = _part_name(content)
        folder.write(name, content)
        return name

    def ids(self, place: Place) -> set[str]:
        folder = self.folder_of(place)
        parts = (read_part(folder, name, columns=["id"]) for name in self.parts(place))
        return {name for part in parts for name in part["id"].to_pylist()}

    def parts(self, place: Place, sealed: str | None = None) -> list[str]:
        """Names of the part files of a phase, sorted; `sealed` is its digest, if it is done.

        Raises:
            StoreError: the parts are not those that were sealed.
        """
        folder = self.folder_of(place)
        names = folder.names(suffix=".parquet")
        if sealed is not None and sealed != _digest(names):
            raise StoreError(
                f"{folder.uri}: its {len(names)} parts are not those that the journal names: some "
                "were lost, added or replaced; go on with --resume: what is missing is rolled again"
            )
        return names

    def is_whole(self, place: Place, sealed: str) -> bool:
        """Whether a phase's parts are those that were sealed, by their names."""
        return _digest(self.folder_of(place).names(suffix=".parquet")) == sealed

    def read(self, place: Place, sealed: str | None = None) -> Iterator[Trajectory]:
        """Every stored trajectory of a phase once, ordered by part and id; see `parts`."""
        folder = self.folder_of(place)
        seen: set[str] = set()
        for name in self.parts(place, sealed):
            for row in read_part(folder, name).to_pylist():
                if row["id"] not in seen:
                    seen.add(row["id"])
                    yield trajectory_from_row(row)

    def find(self, place: Place, sealed: str, trajectory_id: str) -> Trajectory | None:
        """One stored trajectory of a sealed phase; None if it is not there."""
        folder = self.folder_of(place)
        for name in self.parts(place, sealed):
            table = read_part(folder, name)
            for row in table.filter(pc.equal(table["id"], trajectory_id)).to_pylist():
                return trajectory_from_row(row)
        return None

    def seal(self, place: Place) -> str:
        """Rewrite small parts as whole ones, without doubles; the digest of what is there then.

        New parts are written before old ones go: a crash in between leaves doubles, which
        readers skip and the next call removes.
        """
        folder = self.folder_of(place)
        seen: set[str] = set()
        small: dict[str, pa.Table] = {}
        for name in self.parts(place):
            table = read_part(folder, name)
            fresh = [row not in seen for row in table["id"].to_pylist()]
            seen.update(table["id"].to_pylist())
            if all(fresh) and len(fresh) >= PART_ROWS:
                continue
            small[name] = table.filter(pa.array(fresh))
            if sum(t.num_rows for t in small.values()) >= PART_ROWS:
                self.merge(place, small)
                small = {}
        if small:
            self.merge(place, small)
        return _digest(self.parts(place))

    def merge(self, place: Place, parts: Mapping[str, pa.Table]) -> None:
        """Make one part of several, by name the rows to keep of each; these then go."""
        merged = pa.concat_tables(parts.values()).sort_by("id").combine_chunks()
        by = self.write_table(place, merged) if merged.num_rows else None
        for name in parts:
            if name != by:
                self.folder_of(place).remove(name)


def read_part(folder: Folder, name: str, columns: list[str] | None = None) -> pa.Table:
    """One part as a table, verified.

    Raises:
        StoreError: it is missing or damaged, or another schema version wrote it.
    """
    content = folder.read(name)
    if name != _part_name(content):
        raise StoreError(
            f"{folder.uri}/{name}: damaged part (the SHA-256 of its content is not that of its "
            "name); delete it and resume: its episodes are rolled again"
        )
    return from_bytes(content, TRAJECTORY_SCHEMA, f"{folder.uri}/{name}", columns)


def _part_name(content: bytes) -> str:
    return f"part-{sha256(content)}.parquet"


def _digest(names: Sequence[str]) -> str:
    """Of a phase: each name is a digest of its part, so this is one of all its bytes."""
    return sha256("\n".join(names).encode())


def _with_named_scores(attempt: dict[str, Any]) -> dict[str, Any]:
    return attempt | {"scores": {score["name"]: score["value"] for score in attempt["scores"]}}


@functools.cache
def _names(kind: type) -> tuple[str, ...]:
    """Of a dataclass's fields; none of anything else."""
    return tuple(field.name for field in fields(kind)) if is_dataclass(kind) else ()


def _storable(value: Any) -> Any:
    """Dataclasses as dicts, token ids as they are, and text as UTF-8 can hold it.

    Text that is not valid Unicode (lone surrogates) cannot be stored as UTF-8: it is escaped.
    """
    if names := _names(value.__class__):
        row = {name: _storable(getattr(value, name)) for name in names}
        if isinstance(value, Attempt):
            row["scores"] = [{"name": n, "value": v} for n, v in sorted(value.scores.items())]
        return row
    if isinstance(value, str):
        text = str(value)  # of an enumeration's member its value
        return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {key: _storable(item) for key, item in value.items()}
    if isinstance(value, tuple | list) and value and not isinstance(value[0], int):
        return [_storable(item) for item in value]
    return value
