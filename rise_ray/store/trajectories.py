"""Trajectories on Parquet: one row per episode, parts that are written whole, ids that repeat.

A phase of an iteration has its own folder, `trajectories/iteration=N/phase=P/`, of
`part-<digest>.parquet` files. A part's name is a digest of the ids it holds, and an id is fixed
before its episode runs, so writing an episode again never doubles it: readers keep the first.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rise_ray.errors import StoreError
from rise_ray.mdp import (
    Attempt,
    FinishReason,
    Outcome,
    Phase,
    Problem,
    StopReason,
    Trajectory,
    Turn,
    Verdict,
)
from rise_ray.store.files import Folder

SCHEMA_VERSION = "1"

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
    ]
)
_TURN = pa.struct(
    [("attempt", _ATTEMPT), ("candidates", pa.list_(_ATTEMPT)), ("feedback_ids", _TOKENS)]
)
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
    ],
    metadata={"schema_version": SCHEMA_VERSION},
)


def trajectory_to_row(trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory as a row of `TRAJECTORY_SCHEMA`."""
    row = asdict(trajectory)
    row["problem_id"] = trajectory.problem.id
    row["problem"]["data"] = json.dumps(trajectory.problem.data, sort_keys=True)
    return _storable(row)


def trajectory_from_row(row: dict[str, Any]) -> Trajectory:
    """The inverse of `trajectory_to_row`."""
    problem = dict(row["problem"])
    problem["data"] = json.loads(problem["data"])
    return Trajectory(
        id=row["id"],
        run=row["run"],
        iteration=row["iteration"],
        phase=Phase(row["phase"]),
        problem=Problem(**problem),
        sample=row["sample"],
        prompt_ids=tuple(row["prompt_ids"]),
        turns=tuple(_turn(turn) for turn in row["turns"]),
        stop_reason=StopReason(row["stop_reason"]),
        window=row["window"],
        error=row["error"],
    )


class TrajectoryStore:
    """The trajectories of one run.

    Args:
        folder: the run's `trajectories` folder.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def phase(self, iteration: int, phase: Phase) -> Folder:
        """The folder of one phase's parts."""
        return self.folder / f"iteration={iteration}" / f"phase={phase.value}"

    def write(self, iteration: int, phase: Phase, trajectories: Sequence[Trajectory]) -> None:
        """Commit trajectories as one part; the same trajectories again overwrite that part."""
        if not trajectories:
            return
        rows = [trajectory_to_row(t) for t in sorted(trajectories, key=lambda t: t.id)]
        digest = hashlib.sha256("\n".join(row["id"] for row in rows).encode()).hexdigest()[:16]
        sink = io.BytesIO()
        table = pa.Table.from_pylist(rows, schema=TRAJECTORY_SCHEMA)
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
        self.phase(iteration, phase).write(f"part-{digest}.parquet", sink.getvalue())

    def ids(self, iteration: int, phase: Phase) -> set[str]:
        """Ids of the stored trajectories of a phase."""
        folder = self.phase(iteration, phase)
        found: set[str] = set()
        for name in self.parts(iteration, phase):
            found.update(read_part(folder, name, columns=["id"])["id"].to_pylist())
        return found

    def parts(self, iteration: int, phase: Phase) -> list[str]:
        """Names of the part files of a phase, sorted."""
        return self.phase(iteration, phase).names(suffix=".parquet")

    def read(self, iteration: int, phase: Phase) -> Iterator[Trajectory]:
        """Every stored trajectory of a phase once, ordered by part and id."""
        folder = self.phase(iteration, phase)
        seen: set[str] = set()
        for name in self.parts(iteration, phase):
            for row in read_part(folder, name).to_pylist():
                if row["id"] not in seen:
                    seen.add(row["id"])
                    yield trajectory_from_row(row)


def read_part(folder: Folder, name: str, columns: list[str] | None = None) -> pa.Table:
    """One part as a table.

    Raises:
        StoreError: it is damaged, or another schema version wrote it.
    """
    try:
        content = io.BytesIO(folder.read(name))
        file = pq.ParquetFile(content, page_checksum_verification=True)
        version = (file.schema_arrow.metadata or {}).get(b"schema_version", b"").decode()
        if version != SCHEMA_VERSION:
            raise StoreError(
                f"{folder.uri}/{name}: trajectories of schema version {version or 'none'}; "
                f"this rise-ray reads version {SCHEMA_VERSION}"
            )
        if not file.schema_arrow.equals(TRAJECTORY_SCHEMA):
            raise pa.ArrowInvalid("its columns are not those of its schema version")
        return file.read(columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(
            f"{folder.uri}/{name}: damaged part ({error}); delete it and resume: its episodes "
            "are rolled again"
        ) from error


def _turn(row: dict[str, Any]) -> Turn:
    return Turn(
        attempt=_attempt(row["attempt"]),
        candidates=tuple(_attempt(candidate) for candidate in row["candidates"]),
        feedback_ids=tuple(row["feedback_ids"]),
    )


def _attempt(row: dict[str, Any]) -> Attempt:
    verdict = row["verdict"]
    return Attempt(
        text=row["text"],
        token_ids=tuple(row["token_ids"]),
        finish_reason=FinishReason(row["finish_reason"]),
        verdict=Verdict(**{**verdict, "outcome": Outcome(verdict["outcome"])}),
        weight_version=row["weight_version"],
        seed=row["seed"],
    )


def _storable(value: Any) -> Any:
    """Text that is not valid Unicode (lone surrogates) cannot be stored as UTF-8: escape it."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {key: _storable(item) for key, item in value.items()}
    if isinstance(value, tuple | list) and value and not isinstance(value[0], int):
        return [_storable(item) for item in value]
    return value
