"""What a run asks of its own Ray tasks and actors, with an end to every wait: Ray's have none.

`ray.task_deadline_s` is that end for all that has no deadline of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import ray
from ray.exceptions import (
    GetTimeoutError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    WorkerCrashedError,
)

from rise_ray.errors import ClusterError

T = TypeVar("T")

_LOSSES = (NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError)
_CANCEL_S = 5.0  # for Ray to end a process


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


def in_task(
    what: str,
    deadline_s: float,
    work: Callable[..., T],
    *arguments: Any,
    num_cpus: float,
    **options: Any,
) -> T:
    """`work(*arguments)` in a Ray task whose process ends with it, or with the wait; see `answer`.

    Ray runs it again, up to three times, where its process dies: it has to be idempotent.
    `options` are Ray's others of the task.
    """
    task: Any = ray.remote(num_cpus=num_cpus, max_calls=1, **options)(work)
    call = task.remote(*arguments)
    try:
        return answer(what, call, deadline_s)
    except BaseException as error:  # a stop, too: nothing may write when the run has another driver
        # Where it has just ended, Ray (2.60) would abort the driver.
        if not (isinstance(error, RayError) or ray.wait([call], timeout=0)[0]):
            ray.cancel(call, force=True)
            with contextlib.suppress(RayError):
                ray.get(call, timeout=_CANCEL_S)
        raise
