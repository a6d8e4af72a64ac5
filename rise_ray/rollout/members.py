"""The workers of a pool as it sees them: where each is in its life, and whether it moves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import ray

from rise_ray.rollout.episode import EpisodeSpec
from rise_ray.rollout.worker import Progress, WeightVersion


class Status(StrEnum):
    """Where a worker is in its life."""

    STARTING = "starting"
    READY = "ready"


@dataclass
class Member:
    """A worker of the pool. Times are monotonic seconds."""

    name: str
    handle: Any
    version: WeightVersion
    status: Status
    call: Any
    """What it is doing, None if nothing."""
    since: float
    """When it was called."""
    tokens: int = 0
    """Generated, when it last told."""
    moved: float = 0.0
    """When they last grew, or it had nothing to generate."""

    def exchange(self, specs: Sequence[EpisodeSpec], was_idle: bool) -> None:
        """Give the worker episodes and let it run for a moment."""
        self.call = self.handle.exchange.remote(specs)
        self.since = time.monotonic()
        if was_idle:
            self.moved = self.since

    def note(self, progress: Progress) -> None:
        """Take in what an exchange told."""
        if progress.tokens > self.tokens or not progress.engine_busy:
            self.moved = time.monotonic()
        self.tokens = progress.tokens

    def stalled(self, deadline_s: float) -> str | None:
        """The sign of life that a worker with episodes has not given for `deadline_s`.

        A slow engine answers late, but its tokens grow; the deadline counts from the last one.
        """
        before = time.monotonic() - deadline_s
        if self.call is not None and self.since < before:
            # An answer that waits to be read is no stall: what is slow is the roll's caller.
            answered = bool(ray.wait([self.call], timeout=0, fetch_local=False)[0])
            return None if answered else "answer"
        return "new token" if self.moved < before else None
