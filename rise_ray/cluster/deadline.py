"""What a run asks of its own Ray actors, with an end to every wait: Ray's have none.

`ray.task_deadline_s` is that end for all that has no deadline of its own.
"""

from __future__ import annotations

import contextlib
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


def answer(what: str, call: Any, deadline_s: float) -> Any:
    """The result of a task or an actor's method, of which `call` is the object reference.

    The wait for a CPU or a node is in `deadline_s`, in seconds; errors name it `what`.

    Raises:
        ClusterError: there was none in time, or its process is lost.
        ray.exceptions.RayError: it failed (see `rise_ray.errors.user_error`).
    """
    try:
        return ray.get(call, timeout=deadline_s)
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

    It starts at once, while the caller does something else. Where it dies while it works, Ray
    starts it and the work again, up to three times: that has to be idempotent. `options` are Ray's
    of an actor.
    """

    def __init__(self, work: Callable[..., T], **options: Any) -> None:
        methods = {"do": lambda self, *arguments: work(*arguments)}
        actor: Any = ray.remote(type(work.__name__, (), methods))  # the process has this name
        options |= {"max_restarts": -1, "max_task_retries": 3}
        self._actor = actor.options(**options).remote()

    def do(self, what: str, deadline_s: float, *arguments: Any) -> T:
        """`work(*arguments)` there, once; see `answer`. The process ends if this fails."""
        call = self._actor.do.remote(*arguments)
        try:
            return cast(T, answer(what, call, deadline_s))
        except BaseException:  # a stop, too: nothing may write when the run has another driver
            self.close()
            with contextlib.suppress(RayError):
                ray.get(call, timeout=_STOP_S)
            raise

    def close(self) -> None:
        """End the process."""
        ray.kill(self._actor)
