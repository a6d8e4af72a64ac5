"""What a run's folder shows of its progress, seen from outside while the run writes to it."""

from __future__ import annotations

import json
from pathlib import Path

from rise_ray.report.tracking import METRICS
from rise_ray.run.journal import STATE


class Watch:
    """Signs of progress of one run, and the stage that it is in.

    A sign is a committed part of trajectories, a journaled stage, or a step of a training: each
    is reported once.

    Args:
        folder: of the run, on this machine; it need not exist yet.
        stages: the journal's keys, in order.
    """

    def __init__(self, folder: Path, stages: list[str]) -> None:
        self._folder = folder
        self._stages = stages
        self._seen: set[str] = set()
        self._read: dict[str, int] = {}
        self.done: list[str] = []
        """Journaled stages, as of the last `look`."""

    @property
    def stage(self) -> str:
        """The first that is not journaled (as of the last `look`); at the end, the last one."""
        return next((key for key in self._stages if key not in self.done), self._stages[-1])

    def look(self) -> list[str]:
        """The signs since the last look."""
        signs = [f"part {path.name}" for path in self._parts()]
        signs += [f"stage {key}" for key in self._journal()] + self._steps()
        new = [sign for sign in dict.fromkeys(signs) if sign not in self._seen]
        self._seen.update(new)
        return new

    def _parts(self) -> list[Path]:
        return sorted(self._folder.glob("trajectories/iteration=*/phase=*/*.parquet"))

    def _journal(self) -> list[str]:
        text = self._changed(STATE)
        if text is not None:
            self.done = list(json.loads(text)["stages"])
        return self.done

    def _steps(self) -> list[str]:
        text = self._changed(METRICS)
        records = [json.loads(line) for line in (text or "").splitlines()]
        return [f"step of {r['stage']} at {r['time']}" for r in records if "step" in r]

    def _changed(self, name: str) -> str | None:
        """A file's text if it was written since the last call: both are replaced whole."""
        path = self._folder / name
        if not path.exists():
            return None
        written = path.stat().st_mtime_ns
        if self._read.get(name) == written:
            return None
        self._read[name] = written
        return path.read_text()
