"""Where a training row came from, and which training rows came from a problem.

    record = open_run(Folder("runs/quickstart"))
    for line in example_lineage(record, example_id): ...   # to the response, its seed and weights
    for line in problem_lineage(record, problem_id): ...   # and back

Everything is read from the run folder alone and verified as it is read. With pooled data one
example is a row of several training sets, so a lookup gives a line for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow.compute as pc

from rise_ray.config.loading import parse_config
from rise_ray.config.settings import RunConfig
from rise_ray.errors import DataError, StoreError
from rise_ray.mdp import Attempt, Example, Place, Trajectory
from rise_ray.relabel.rule import response_at
from rise_ray.run.journal import CONFIG, read_journal
from rise_ray.run.plans import of_kind, rolling
from rise_ray.run.specs import Rows, WarmStart
from rise_ray.run.tracks import stages_of
from rise_ray.store.examples import example_weight, examples_from_table, read_manifest, read_part
from rise_ray.store.files import Folder
from rise_ray.store.parquet import sha256
from rise_ray.store.trajectories import TrajectoryStore


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as its folder tells it: finished or not, it is only read."""

    folder: Folder
    config: RunConfig
    config_sha256: str
    """Of `config.yaml` as the run's last driver had it."""
    decisive_sha256: str
    """Of the settings that decide the data, which all drivers of the run shared."""
    stages: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """An example as one row of one training set."""

    stage: str
    """`warm-start`, `iteration-1`, `control-1`, ...: whose training read it."""
    part: str
    example: Example


def open_run(folder: Folder) -> RunRecord:
    """Read a run folder's journal and config.

    Raises:
        StoreError: the folder holds no run, or one of the two is damaged.
    """
    journal = read_journal(folder)
    content = folder.read(CONFIG)
    if sha256(content) != journal["config_sha256"]:
        raise StoreError(
            f"{folder.uri}/{CONFIG}: changed since the run began (its SHA-256 is not the "
            "journal's); the run with --resume writes it again"
        )
    config = parse_config(content.decode(), [], source=f"{folder.uri}/{CONFIG}")
    digests = journal["config_sha256"], journal["decisive_sha256"]
    return RunRecord(folder, config, *digests, journal["stages"])


def example_lineage(record: RunRecord, example_id: str) -> list[dict[str, Any]]:
    """The way back from an example, once for each training set that it is a row of.

    Raises:
        DataError: no training set of the run has it.
        StoreError: what it leads to is lost or damaged.
    """
    rows = list(training_rows(record, "id", example_id))
    if not rows:
        raise DataError(
            f"example {example_id}: is in no training set of {record.folder.uri}; `rise-ray "
            "lineage RUN_FOLDER --problem ID` lists a problem's examples"
        )
    return [trace(record, row, _trajectory(record, row)) for row in rows]


def problem_lineage(record: RunRecord, problem_id: str) -> list[dict[str, Any]]:
    """Every training row that came from a problem, in the order of the training sets.

    Raises:
        DataError: there is none.
        StoreError: a training set is lost or damaged.
    """
    rows = list(training_rows(record, "problem_id", problem_id))
    if not rows:
        raise DataError(
            f"problem {problem_id}: no training row of {record.folder.uri} came from it"
        )
    return [
        {
            "problem": problem_id,
            "stage": row.stage,
            "part": row.part,
            "example": row.example.id,
            "weight": example_weight(row.example),
            "rule": row.example.provenance.rule,
        }
        for row in rows
    ]


def training_rows(
    record: RunRecord, column: str | None = None, value: str | None = None
) -> Iterator[TrainingRow]:
    """The rows of all finished training sets; only those whose `column` is `value` if it is given.

    A training takes them in the order of its packing plan, and, with a token budget, maybe not all.
    """
    names = {rows.key: rows.name for rows in of_kind(Rows, stages_of(record.config))}
    names[WarmStart.key] = "warm-start"
    for name in (names[key] for key in record.stages if key in names):
        folder = record.folder / "examples" / name
        for part in read_manifest(folder).parts:
            table = read_part(folder, part)
            if column is not None:
                table = table.filter(pc.equal(table[column], value))
            for example in examples_from_table(table):
                yield TrainingRow(name, part.name, example)


def trace(record: RunRecord, row: TrainingRow, trajectory: Trajectory | None) -> dict[str, Any]:
    """A training row and what it leads to, as JSON; a demonstration's `trajectory` is None.

    Raises:
        StoreError: the row and the trajectory's response are not the same.
    """
    example, origin = row.example, row.example.provenance
    response = None if trajectory is None else _response(row, trajectory)
    return {
        "example": example.id,
        "stage": row.stage,
        "part": row.part,
        "weight": example_weight(example),
        "reward": origin.reward,
        "source": origin.source,
        "rule": origin.rule,
        "problem": origin.problem_id,
        "trajectory": None if trajectory is None else trajectory.id,
        "place": str(origin.place),
        "turn": origin.turn,
        "candidate": origin.candidate,
        "seed": origin.seed,
        "weight_version": origin.weight_version,
        "checkpoint": _checkpoint(record, origin.place, origin.weight_version),
        "verifier_version": origin.verifier_version,
        "config_sha256": record.config_sha256,
        "decisive_sha256": record.decisive_sha256,
        "verdict": None if response is None else asdict(response.verdict),
        "text": None if response is None else response.text,
    }


def _trajectory(record: RunRecord, row: TrainingRow) -> Trajectory | None:
    origin = row.example.provenance
    if origin.source == "demonstration":
        return None
    key = str(origin.place)
    if key not in record.stages:
        raise StoreError(
            f"{record.folder.uri}: {key}, where example {row.example.id} came from, is being done "
            "again after a loss; go on with --resume first"
        )
    store = TrajectoryStore(record.folder / "trajectories")
    found = store.find(origin.place, record.stages[key]["parts_sha256"], origin.trajectory_id)
    if found is None:
        raise StoreError(
            f"{store.folder_of(origin.place).uri}: lacks {origin.trajectory_id}, which example "
            f"{row.example.id} came from; restore the folder from a copy"
        )
    return found


def _response(row: TrainingRow, trajectory: Trajectory) -> Attempt:
    """The response that a row trains on, which has to be what the row says."""
    example, origin = row.example, row.example.provenance
    response = response_at(trajectory, origin.turn, origin.candidate)
    span = example.spans[-1]
    row_says = (
        example.input_ids[span.start : span.end],
        origin.problem_id,
        origin.seed,
        origin.weight_version,
        origin.verifier_version,
    )
    store_says = (
        response.token_ids,
        trajectory.problem.id,
        response.seed,
        response.weight_version,
        response.verdict.verifier_version,
    )
    if row_says != store_says:
        raise StoreError(
            f"{example.id}: the row of {row.stage} is not the response that {trajectory.id} holds "
            "now: the episode was rolled again after a loss"
        )
    return response


def _checkpoint(record: RunRecord, place: Place, version: int) -> str | None:
    """Where the weights of a version are; None where no model wrote the response."""
    if version < 0:
        return None
    if version == 0 and record.config.warm_start is None:
        return record.config.model.path
    sampled = {spec.place: spec.weights for spec in rolling(stages_of(record.config))}
    weights = sampled[place]
    return (record.folder / "checkpoints" / weights.name).uri
