"""A training's signs of life, and the watch that ends one that gives none.

Ray Train notices a rank that dies, and torch one that the others wait for. Nobody notices one that
hangs while it starts, or alone: in an upload, or because there is no other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from rise_ray.cluster.connection import this_node

_EVERY_S = 1.0  # a beat, a look


class Heartbeat:
    """Counts the signs of life of all ranks (a Ray actor)."""

    def __init__(self) -> None:
        self._count = 0

    def beat(self) -> None:
        """A rank lives."""
        self._count += 1

    def count(self) -> int:
        """Signs so far; another number than the last time says that the training moves."""
        return self._count


def start_heartbeat() -> Any:
    """A `Heartbeat` on the driver's node, which it ends with."""
    options = {"num_cpus": 0, "max_restarts": -1, "scheduling_strategy": this_node()}
    return ray.remote(Heartbeat).options(**options).remote()


class Beat:
    """`beat()`: a rank's sign of life, wherever it got on; it is sent once a second at most."""

    def __init__(self, heartbeat: Any) -> None:
        self._pulse = heartbeat
        self._next = 0.0

    def __call__(self) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _EVERY_S
            self._pulse.beat.remote()


@contextmanager
def watched(
    heartbeat: Any, deadline_s: float, waits: Callable[[], bool], end: Callable[[], None]
) -> Iterator[threading.Event]:
    """Beside the block, call `end` once no sign of life came for `deadline_s` seconds.

    Not while the training `waits` for resources, which has a deadline of its own. What is yielded
    is set before `end` is called.
    """
    over, silent = threading.Event(), threading.Event()

    def watch() -> None:
        seen, since = -1, time.monotonic()
        while not over.wait(_EVERY_S):
            count = _count(heartbeat, seen)
            if count != seen or waits():
                seen, since = count, time.monotonic()
            elif time.monotonic() - since > deadline_s:
                silent.set()
                end()
                return

    thread = threading.Thread(target=watch, name="train-watch", daemon=True)
    thread.start()
    try:
        yield silent
    finally:
        over.set()
        thread.join(2 * _EVERY_S)


def _count(heartbeat: Any, seen: int) -> int:
    """The heartbeats' count; one that does not answer has no news."""
    try:
        return int(ray.get(heartbeat.count.remote(), timeout=_EVERY_S))
    except (GetTimeoutError, RayActorError):
        return seen
