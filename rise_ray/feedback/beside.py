"""Work that goes on in a thread beside its caller's, for a block."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Generic, Self, TypeVar

BESIDE = "beside"
"""What the thread is called."""
_STOP_S = 10.0  # in which work ends that is told to stop

T = TypeVar("T")
R = TypeVar("R")


class Beside(Generic[T, R]):
    """Does `work` on one thing after another, until the first that fails.

    Where the block ends by an exception the work is told to `stop`, from the caller's thread, and
    waited for a few seconds. Not an executor: Python would wait at its exit for one that does not.
    """

    def __init__(self, work: Callable[[T], R], stop: Callable[[], None]) -> None:
        self._work = work
        self._stop = stop
        self._over = False
        self._tasks: SimpleQueue[tuple[T, Future[R]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=BESIDE, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over = True
        self._tasks.put(None)
        if kind is not None:
            self._stop()
        self._thread.join(_STOP_S)

    def do(self, what: T) -> Future[R]:
        """Work's result on `what`, or its error, when it is there."""
        future: Future[R] = Future()
        self._tasks.put((what, future))
        return future

    def _run(self) -> None:
        while not self._over and (task := self._tasks.get()) is not None:
            what, future = task
            try:
                future.set_result(self._work(what))
            except BaseException as error:  # whatever it is, it is the caller's
                future.set_exception(error)
                return
