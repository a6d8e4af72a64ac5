"""What a run asks of its own Ray actors, with an end to every wait: Ray's have none.

`ray.task_deadline_s` is that end for all that has no deadline of its own.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import ray
from ray.exceptions import (
    GetTimeoutError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
)

from rise_ray.errors import ClusterError

T = TypeVar("T")

_LOSSES = (NodeDiedError, OutOfMemoryError, RayActorError)
_STOP_S = 5.0  # for Ray to end a process
_TRIES = 4


def answer(what: str, call: Any, deadline_s: float, waited_s: float = 0.0) -> Any:
    """The result of a task or an actor's method, of which `call` is the object reference.

    `deadline_s` is for all: `waited_s` before, the wait for a CPU or a node. Errors name it `what`.

    Raises:
        ClusterError: there was none in time, or its process is lost.
        ray.exceptions.RayError: it failed (see `rise_ray.errors.user_error`).
    """
    try:
        return ray.get(call, timeout=max(0.0, deadline_s - waited_s))
    except GetTimeoutError as error:
        raise ClusterError(
            f"{what} did not end within {deadline_s:g} s; if it works, raise "
            "`ray.task_deadline_s` and go on with --resume; if it waits for resources, the "
            f"cluster's free ones are {ray.available_resources()}"
        ) from error
    except _LOSSES as error:
        reason = str(error).strip().splitlines()[0]
        raise ClusterError(f"{what}: the process is lost: {reason}; try --resume") from error


class SideProcess(Generic[T]):
    """A process beside the driver that does `work`, once or often (a Ray actor).

    It starts at once, while the caller does something else. Where it dies while it works, it is
    started again, and so is the work, which has to be idempotent. `options` are Ray's of an actor.
    """

    def __init__(self, work: Callable[..., T], **options: Any) -> None:
        methods = {"do": lambda self, *arguments: work(*arguments)}
        actor: Any = ray.remote(type(work.__name__, (), methods))  # the process has this name
        self._actor = actor.options(max_restarts=-1, **options).remote()

    def do(self, what: str, deadline_s: float, *arguments: Any) -> T:
        """`work(*arguments)` there; see `answer`. The process ends if this fails."""
        started = time.monotonic()
        # Not Ray's own retries: it tells of those that it is about to make also where it is ended.
        for tries_left in reversed(range(_TRIES)):
            call = self._actor.do.remote(*arguments)
            try:
                return cast(T, answer(what, call, deadline_s, time.monotonic() - started))
            except BaseException as error:
                if tries_left and isinstance(error.__cause__, _LOSSES):
                    continue
                self.close()  # after a stop, too: nothing may write when the run has another driver
                with contextlib.suppress(RayError):
                    ray.get(call, timeout=_STOP_S)
                raise
        raise AssertionError("the last try returns or raises")

    def close(self) -> None:
        """End the process."""
        ray.kill(self._actor)
