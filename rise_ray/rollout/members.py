"""The workers of a pool as it sees them: where each is in its life, and whether it moves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import ray

from rise_ray.rollout.episode import EpisodeSpec
from rise_ray.rollout.worker import Progress


class Status(StrEnum):
    """Where a worker is in its life."""

    STARTING = "starting"
    READY = "ready"
    LEAVING = "leaving"
    """Its node is about to be taken away: it finishes what it can and gets nothing new."""


@dataclass
class Member:
    """A worker of the pool. Times are monotonic seconds."""

    name: str
    handle: Any
    status: Status
    call: Any
    """What it is doing, None if nothing."""
    since: float
    """When it was called."""
    node: str = ""
    """The id of its node, once it has answered."""
    tokens: int = 0
    """Generated, when it last told."""
    barren_s: float = 0.0
    """How long its engine has run, with requests, since the last new token."""

    def exchange(self, specs: Sequence[EpisodeSpec]) -> None:
        """Give the worker episodes and let it run for a moment."""
        self.call = self.handle.exchange.remote(specs)
        self.since = time.monotonic()

    def note(self, progress: Progress) -> None:
        moves = progress.tokens > self.tokens or not progress.engine_busy
        self.barren_s = 0.0 if moves else self.barren_s + progress.seconds
        self.tokens = progress.tokens
        self.node = progress.node

    @property
    def answered(self) -> bool:
        return self.call is not None and bool(
            ray.wait([self.call], timeout=0, fetch_local=False)[0]
        )

    def stalled(self, deadline_s: float) -> str | None:
        """The sign of life that a worker with episodes has not given for `deadline_s`.

        A slow engine answers late, but its tokens grow. What is counted is the time that the
        worker ran: the caller of the roll may pause between two trajectories.
        """
        if self.call is not None and self.since < time.monotonic() - deadline_s:
            return None if self.answered else "answer"
        return "new token" if self.barren_s > deadline_s else None
