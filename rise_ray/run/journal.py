"""A run's folder and its journal: what is done, with its result, so that a stopped run goes on.

runs/<name>/
  config.yaml                 the resolved config; its SHA-256 is in the journal
  state.json                  the journal: finished stages and their results
  owner.json                  the driver that works on it now (rise_ray.run.owner)
  metrics.jsonl               every measurement (rise_ray.report.tracking)
  trajectories/  examples/    what was rolled and what it was relabeled to
  checkpoints/TRACK=N/        Hugging Face folders (iteration=0: the warm start); of a further
                              training of the iteration, TRACK=N-train_NAME
  report.html
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rise_ray import __version__
from rise_ray.config.loading import differences, dump_config, dump_decisive, may_change
from rise_ray.config.settings import RunConfig
from rise_ray.errors import StoreError
from rise_ray.run.owner import OWNER
from rise_ray.store.files import Folder
from rise_ray.store.parquet import sha256
from rise_ray.store.trajectories import TrajectoryStore

SCHEMA_VERSION = "4"
CONFIG, STATE, REPORT = "config.yaml", "state.json", "report.html"
LAST_STAGE = "run/report"
_JOURNAL = {"stages": dict, "config_sha256": str, "decisive_sha256": str, "teacher_tokens": int}


class Run:
    """The run folder of a resolved config, opened.

    Args:
        resume: go on with an unfinished run of the same config; settings that may change
            (`rise_ray.config.loading.MAY_CHANGE`) need not be the same, and further controls may
            follow those that there were, also where the run was finished.
        create: make the folder if it is free; False only looks.

    Raises:
        StoreError: the folder holds another run, or an unfinished one and `resume` is off.
    """

    def __init__(self, config: RunConfig, resume: bool, create: bool = True) -> None:
        self.config = config
        self.folder = run_folder(config)
        self.trajectories = TrajectoryStore(self.folder / "trajectories")
        self._dump = dump_config(config)
        self._decisive = sha256(dump_decisive(config).encode())
        self.stages: dict[str, dict[str, Any]] = {}
        """Finished stages by key, with their results, in the order they finished."""
        self.teacher_tokens = 0
        """Of a teacher's endpoint that this run has used, also in unfinished stages."""
        self._journaled_sha256 = ""
        self._lock = threading.Lock()  # stages may be done in two threads
        if self.folder.exists(STATE):
            self._reopen(resume)
        elif self._has_foreign_files():
            raise StoreError(
                f"{self.folder.uri}: holds files but no run ({STATE} is missing); nothing was "
                "changed; choose another `name` or `storage`"
            )
        elif create:
            self.write_config()

    @property
    def finished(self) -> bool:
        """Whether every stage is done."""
        return LAST_STAGE in self.stages

    def stage(self, key: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of stage `key`: from the journal, else of `work()`, which is journaled.

        Results are JSON: what a later stage needs to know, never data.
        """
        if key not in self.stages:
            result = work()
            with self._lock:
                self.stages[key] = result
                self._save()
        return self.stages[key]

    def config_is_whole(self) -> bool:
        """Whether `config.yaml` is there and says what the run does."""
        return self.folder.exists(CONFIG) and self.folder.read(CONFIG) == self._dump.encode()

    def changed_settings(self) -> list[tuple[str, Any, Any]]:
        """Settings that are not what they were: dotted key, value then, value now.

        A setting that rise-ray did not have then had its default. Where `config.yaml` is lost or
        was changed by hand, nothing says what they were: [].
        """
        saved = self._saved_config()
        return differences(saved, self.config) if saved else []

    def _saved_config(self) -> str | None:
        """`config.yaml`, if it is what the journal knows."""
        saved = self.folder.read(CONFIG) if self.folder.exists(CONFIG) else b""
        return saved.decode() if sha256(saved) == self._journaled_sha256 else None

    def write_config(self) -> None:
        """Write `config.yaml`, and before it its SHA-256 into the journal.

        A config that the journal does not know would leave nothing to tell another run by.
        """
        self._save()
        self.folder.write(CONFIG, self._dump.encode())

    def record_teacher_tokens(self, tokens: int) -> None:
        """Journal how many tokens of a teacher's endpoint the whole run has used by now."""
        with self._lock:
            if tokens != self.teacher_tokens:
                self.teacher_tokens = tokens
                self._save()

    def forget(self, key: str) -> None:
        """Have stage `key` done again: what it made is lost."""
        del self.stages[key]
        self._save()

    def _save(self) -> None:
        state = {
            "schema_version": SCHEMA_VERSION,
            "rise_ray": __version__,
            "run": self.config.name,
            "config_sha256": sha256(self._dump.encode()),
            "decisive_sha256": self._decisive,
            "teacher_tokens": self.teacher_tokens,
            "stages": self.stages,
        }
        self.folder.write(STATE, json.dumps(state, indent=1).encode())

    def _has_foreign_files(self) -> bool:
        """Whether a folder without a journal, which is a run's first file, holds any other."""
        return bool(self.folder.folders() or set(self.folder.names()) - {OWNER})

    def _reopen(self, resume: bool) -> None:
        state = read_journal(self.folder)
        self._journaled_sha256 = state["config_sha256"]
        self.stages = state["stages"]
        if state["decisive_sha256"] != self._decisive:
            if other := self._what_makes_it_another():
                raise StoreError(
                    f"{self.folder.uri}: holds another run ({other}); nothing was changed; choose "
                    "another `name`"
                )
            if self._decisive_changes():
                self.stages.pop(LAST_STAGE, None)  # it is to tell of the further controls, too
        self.teacher_tokens = state["teacher_tokens"]
        if not self.finished and not resume:
            raise StoreError(
                f"{self.folder.uri}: holds an unfinished run of this config; go on with --resume, "
                "or choose another `name`"
            )

    def _decisive_changes(self) -> list[tuple[str, Any, Any]]:
        return [change for change in self.changed_settings() if not may_change(change[0])]

    def _what_makes_it_another(self) -> str | None:
        """The first setting that does; controls after those that there were do not."""
        if not self._saved_config():
            return f"its {CONFIG}, which would say more, is lost or was changed"
        for key, there, here in self._decisive_changes():
            if key != "controls" or here[: len(there)] != there:
                return f"`{key}` is {there!r} there and {here!r} here"
        return None


def read_journal(folder: Folder) -> dict[str, Any]:
    """A run folder's journal: `stages` with their results, `config_sha256`, and the rest.

    Raises:
        StoreError: it is missing, damaged or of another schema version.
    """
    where = f"{folder.uri}/{STATE}"
    remedy = "restore it from a copy, or start again under another `name`"
    try:
        state = json.loads(folder.read(STATE))
    except ValueError as error:
        raise StoreError(f"{where}: damaged journal: {error}; {remedy}") from error
    version = state.get("schema_version") if isinstance(state, dict) else None
    if version != SCHEMA_VERSION:
        raise StoreError(
            f"{where}: a journal of schema version {version}; this rise-ray reads version "
            f"{SCHEMA_VERSION}"
        )
    for key, kind in _JOURNAL.items():
        if not isinstance(state.get(key), kind):
            raise StoreError(f"{where}: damaged journal: it has no {key}; {remedy}")
    return dict(state)


def run_folder(config: RunConfig) -> Folder:
    """Where a run lives. Local folders are made absolute: actors have other working folders."""
    storage = config.storage
    if "://" not in storage:
        storage = str(Path(storage).expanduser().resolve())
    return Folder(storage) / config.name
