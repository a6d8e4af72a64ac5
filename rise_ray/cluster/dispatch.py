"""What ranks are to do, their signs of life, and the watch that ends those that give none.

Ray Train notices a rank that dies, and torch one that the others wait for. Nobody notices one that
hangs while it starts, or alone: in an upload, or because there is no other.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from rise_ray.cluster.connection import this_node

_EVERY_S = 1.0  # a beat, a look


class Dispatcher:
    """Hands all ranks one task after the other, and counts their signs of life (a Ray actor)."""

    def __init__(self) -> None:
        self._signs = 0
        self._starts = 0
        self._number = 0  # of the last task
        self._task: Any = None  # until it is done
        self._result: Any = None
        self._closed = False
        self._changed = asyncio.Condition()

    async def beat(self) -> None:
        """A rank lives."""
        self._signs += 1

    async def count(self) -> int:
        """Signs so far; another number than the last time says that the ranks move."""
        return self._signs

    async def do(self, task: Any) -> tuple[Any, int]:
        """Have the ranks do a task: the result, and how many ranks have been started so far."""
        async with self._changed:
            self._number, self._task = self._number + 1, task
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._task is None)
            return self._result, self._starts

    async def next(self, after: int) -> tuple[int, Any] | None:
        """The number and the task that follow those of `after`; None: there will be none.

        A rank that starts asks with 0. It gets what was not done when it, or another, was lost.
        """
        self._starts += after == 0
        async with self._changed:
            await self._changed.wait_for(
                lambda: self._closed or (self._task is not None and self._number > after)
            )
            return None if self._closed else (self._number, self._task)

    async def done(self, result: Any) -> None:
        """The task that was given last is done."""
        async with self._changed:
            self._task, self._result = None, result
            self._changed.notify_all()

    async def close(self) -> None:
        """There will be no further task."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()


def start_dispatcher() -> Any:
    """A `Dispatcher` on the driver's node, with which it ends."""
    options = {"num_cpus": 0, "scheduling_strategy": this_node()}
    return ray.remote(Dispatcher).options(**options).remote()


class Beat:
    """`beat()`: a rank's sign of life, wherever it got on; it is sent once a second at most."""

    def __init__(self, dispatcher: Any) -> None:
        self._dispatcher = dispatcher
        self._next = 0.0

    def __call__(self) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _EVERY_S
            self._dispatcher.beat.remote()


@contextmanager
def watched(
    dispatcher: Any, deadline_s: float, waits: Callable[[], bool], end: Callable[[], None]
) -> Iterator[threading.Event]:
    """Beside the block, call `end` once no sign of life came for `deadline_s` seconds.

    Not while the training `waits` for resources, which has a deadline of its own. What is yielded
    is set before `end` is called.
    """
    over, silent = threading.Event(), threading.Event()

    def watch() -> None:
        seen, since = -1, time.monotonic()
        while not over.wait(_EVERY_S):
            count = _count(dispatcher, seen)
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


def _count(dispatcher: Any, seen: int) -> int:
    """The signs so far; a dispatcher that does not answer has no news."""
    try:
        return int(ray.get(dispatcher.count.remote(), timeout=_EVERY_S))
    except (GetTimeoutError, RayActorError):
        return seen
