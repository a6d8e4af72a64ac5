"""Measurements: `metrics.jsonl` in the run folder always, Weights & Biases when configured.

The tracker is an actor, so that the training workers and the driver write to one place while
training runs. Records of a stage that is done again replace those of the earlier try; of a
training that goes on from a state, those after the state's step.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import netrc
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import ray
from ray.exceptions import RayError

from rise_ray.cluster.connection import this_node
from rise_ray.cluster.deadline import answer
from rise_ray.config.settings import RunConfig
from rise_ray.errors import ConfigError, RiseError, StoreError
from rise_ray.store.files import Folder

METRICS = "metrics.jsonl"
SCHEMA_VERSION = "1"
_FLUSH_S = 1.0


class PhaseLog:
    """`log(record)` of one phase, for whoever measures: it can be sent to other processes."""

    def __init__(self, tracker: Any, stage: str, phase: str) -> None:
        self._tracker = tracker
        self._name = (stage, phase)

    def __call__(self, record: dict[str, Any]) -> None:
        self._tracker.log.remote(*self._name, record)


class Tracker:
    """One run's measurements (a Ray actor: `ray.remote(Tracker)`)."""

    def __init__(self, config: RunConfig, folder: Folder) -> None:
        self._config = config
        self._folder = folder
        self._records: list[dict[str, Any]] = []
        self._latest: dict[str, Any] | None = None
        self._written = time.monotonic()
        self._wandb: Any = None
        self._has_read = False

    def open(self) -> None:
        """Read what an earlier part of the run measured, and start W&B where it is configured.

        Not in the constructor: an error of a method reaches the driver as what it is.

        Raises:
            StoreError: `metrics.jsonl` is unreadable.
            ConfigError: W&B refuses the run or cannot be reached.
        """
        if self._folder.exists(METRICS):
            self._records = read_metrics(self._folder)
        self._has_read = True
        if self._config.wandb:
            self._wandb = _start_wandb(self._config, self._folder)

    def begin(self, stage: str, phase: str) -> None:
        """A phase of a stage starts: drop what an earlier try of it left.

        Records of its steps stay until `log` knows from which step on they are taken again.
        """
        self._drop(stage, phase, lambda record: "since_step" not in record)
        self._latest = None

    def log(self, stage: str, phase: str, record: dict[str, Any]) -> None:
        """Add a record; it is on storage within a second of the next one, or at `flush`.

        One with a `since_step` replaces all records of the phase's steps after that one.
        """
        since = record.get("since_step")
        if since is not None:
            self._drop(stage, phase, lambda earlier: earlier.get("step", 0) > since)
        record = self._latest = new_record(stage, phase, record)
        self._records.append(record)
        if self._wandb is not None:
            self._wandb.log(_flat(record))
        if time.monotonic() - self._written > _FLUSH_S:
            self.flush()

    def latest(self) -> dict[str, Any] | None:
        return self._latest

    def records(self) -> list[dict[str, Any]]:
        return self._records

    def flush(self) -> None:
        write_metrics(self._folder, self._records)
        self._written = time.monotonic()

    def close(self) -> None:
        """Write everything and finish the W&B run, also where the storage fails."""
        try:
            if self._has_read:  # or it would replace what it could not read
                self.flush()
        finally:
            if self._wandb is not None:
                self._wandb.finish()
                self._wandb = None

    def _drop(self, stage: str, phase: str, which: Callable[[dict[str, Any]], bool]) -> None:
        self._records = [
            r for r in self._records if (r["stage"], r["phase"]) != (stage, phase) or not which(r)
        ]


class TrackerHandle:
    """The actor as the driver has it: `Tracker`'s methods, each answered within `deadline_s`."""

    def __init__(self, tracker: Any, deadline_s: float) -> None:
        self._tracker = tracker
        self._answer = functools.partial(answer, deadline_s=deadline_s)

    def open(self) -> None:
        self._answer("opening the measurements", self._tracker.open.remote())

    def begin(self, stage: str, phase: str) -> PhaseLog:
        """See `Tracker.begin`; returns what the phase is logged with."""
        self._answer("a new phase's measurements", self._tracker.begin.remote(stage, phase))
        return PhaseLog(self._tracker, stage, phase)

    def latest(self) -> dict[str, Any] | None:
        return self._answer("reading the newest measurement", self._tracker.latest.remote())

    def records(self) -> list[dict[str, Any]]:
        return self._answer("reading the measurements", self._tracker.records.remote())

    def flush(self) -> None:
        self._answer("writing the measurements", self._tracker.flush.remote())

    def close(self) -> None:
        self._answer("closing the measurements", self._tracker.close.remote())


def start_tracker(config: RunConfig, folder: Folder) -> TrackerHandle:
    """The tracker of a run, on the driver's node: a local run folder is there."""
    actor = ray.remote(Tracker).options(num_cpus=0, scheduling_strategy=this_node())
    tracker = TrackerHandle(actor.remote(config, folder), config.ray.task_deadline_s)
    try:
        tracker.open()
    except KeyboardInterrupt:  # `rise_ray.cluster.stop`, while W&B starts
        with contextlib.suppress(RiseError, RayError):
            tracker.close()
        raise
    return tracker


def read_metrics(folder: Folder) -> list[dict[str, Any]]:
    """The records of a run folder's `metrics.jsonl`.

    Raises:
        StoreError: it is missing, damaged, or of another schema version.
    """
    where = f"{folder.uri}/{METRICS}"
    remedy = "go on with --resume: each finished stage's result comes back from the journal"
    if not folder.exists(METRICS):
        raise StoreError(f"{where}: is missing; {remedy}")
    try:
        records = [json.loads(line) for line in folder.read(METRICS).decode().splitlines()]
        versions = {record["schema_version"] for record in records}
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{where}: damaged: {error!r}; delete it and {remedy}") from error
    if versions - {SCHEMA_VERSION}:
        raise StoreError(
            f"{where}: records of schema version {', '.join(map(str, versions))}; this rise-ray "
            f"reads {SCHEMA_VERSION}"
        )
    return records


def write_metrics(folder: Folder, records: Sequence[dict[str, Any]]) -> None:
    """Write all of a run's records as its `metrics.jsonl`."""
    lines = [json.dumps(_finite(record)) for record in records]
    folder.write(METRICS, "".join(line + "\n" for line in lines).encode())


def new_record(stage: str, phase: str, record: dict[str, Any]) -> dict[str, Any]:
    """One line of `metrics.jsonl`: what was measured, where and when."""
    head = {"schema_version": SCHEMA_VERSION, "stage": stage, "phase": phase, "time": time.time()}
    return {**head, **record}


def wandb_mode(config: RunConfig) -> Literal["online", "offline", "disabled"]:
    """`auto` resolved: online where an API key is known, else offline."""
    assert config.wandb is not None
    if config.wandb.mode != "auto":
        return config.wandb.mode
    return "online" if os.environ.get("WANDB_API_KEY") or _netrc_key() else "offline"


def _start_wandb(config: RunConfig, folder: Folder) -> Any:
    import wandb

    assert config.wandb is not None
    try:
        return wandb.init(
            project=config.wandb.project,
            entity=config.wandb.entity,
            mode=wandb_mode(config),
            dir=folder.path if folder.is_local else None,
            name=config.name,
            id=config.name,
            resume="allow",
            tags=config.wandb.tags,
            config=config.model_dump(mode="json"),
            # Figures and the config are all that W&B gets: no captured output, no command line.
            settings=wandb.Settings(console="off", x_disable_meta=True),
        )
    except wandb.errors.Error as error:
        raise ConfigError(
            f"`wandb`: {error}; log in with `wandb login`, or set `wandb.mode: offline`"
        ) from error


def _netrc_key() -> bool:
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _flat(record: dict[str, Any]) -> dict[str, float]:
    """W&B's form: numbers under `phase/stage/metric`, an interval by its value; never a text."""
    prefix = f"{record['phase']}/{record.get('model', record['stage'])}"
    flat: dict[str, float] = {}
    for key, value in record.items():
        items = value.items() if isinstance(value, dict) else [(key, value)]
        for name, item in items:
            number = item["value"] if isinstance(item, dict) and "value" in item else item
            if isinstance(number, int | float) and name != "time":
                flat[f"{prefix}/{name}"] = number
    return flat


def _finite(value: Any) -> Any:
    """JSON has no NaN: a measurement that is not a number is null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
