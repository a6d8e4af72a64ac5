"""The process in which answers are checked: `python -m rise_ray.verify.child`.

Answers are untrusted text, and parsing or comparing one may spin, eat memory or crash. So it
happens here, in a process that is killed at its deadline: of CPU time by the kernel, by the clock
by the parent (`rise_ray.verify.checker`).

The protocol is JSON lines, ASCII only: the first request says which task and which limits, then
one request per item; one reply each, in order. The first reply names what decides the verdicts.

It does not protect from hostile *tasks*: their code is the user's own, and it has files and the
network like any other process.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any, BinaryIO

from rise_ray.config.settings import TaskConfig
from rise_ray.errors import ConfigError, RiseError
from rise_ray.mdp import Outcome, Problem, Verdict
from rise_ray.tasks import load_task
from rise_ray.tasks.base import Task
from rise_ray.verify.version import verifier_version

MAX_REASON_CHARS = 500
HEADROOM_MIB = 64
"""Least memory that a check gets beside the loaded task."""
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main() -> None:
    """Serve requests until the parent closes its end."""
    requests, replies = _private_pipes()
    setup = json.loads(requests.readline())
    _die_with(setup["parent_pid"])
    # CPU time of this process: its end is the signal's default, also within a library's C code.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    try:
        task = load_task(TaskConfig(name=setup["task"], options=setup["options"]))
        _limit_memory(setup["memory_mib"])
    except RiseError as error:
        _send(replies, {"failed": str(error)})
        return
    _send(replies, {"verifier_version": verifier_version(setup["task"], task)})
    for line in requests:
        signal.setitimer(signal.ITIMER_PROF, setup["deadline_s"])
        reply = _answer(task, json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        _send(replies, reply)


def _answer(task: Task, request: dict[str, Any]) -> dict[str, Any]:
    """The reply to one item: the verdict's fields, and whether this process should `retire`."""
    retire = False
    try:
        verdict = task.check(Problem(**request["problem"]), request["response"])
        if not isinstance(verdict, Verdict):
            verdict = _error(f"the check returned {type(verdict).__name__}, not a Verdict")
    except MemoryError:  # what filled the memory may still be held: start afresh
        verdict, retire = _error("the check ran out of memory"), True
    except Exception as error:  # whatever a check raises, the item is an error and the next goes on
        verdict = _error(f"the check failed: {type(error).__name__}: {error}")
    return {
        "outcome": verdict.outcome.value,
        "answer": verdict.answer,
        "reason": verdict.reason[:MAX_REASON_CHARS],
        "claims_correct": verdict.claims_correct,
        "retire": retire,
    }


def _error(reason: str) -> Verdict:
    return Verdict(Outcome.ERROR, None, reason)


def _private_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Requests and replies; what a task prints goes to stderr, and its stdin is empty."""
    requests = os.fdopen(os.dup(0), "rb")
    # Only the end of this process closes it: who reads it learns at once how that came.
    replies = os.fdopen(os.dup(1), "wb", closefd=False)
    with open(os.devnull) as empty:
        os.dup2(empty.fileno(), 0)
    os.dup2(2, 1)
    return requests, replies


def _send(replies: BinaryIO, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply).encode("ascii") + b"\n")
    replies.flush()


def _die_with(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent dies, even in the middle of a check."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:  # it died before the call above
        sys.exit(1)


def _limit_memory(memory_mib: int) -> None:
    """Limit the address space from here on: answers are not trusted, the task's own code is.

    After loading, because a Python that runs out of memory in an import fails in any way, or hangs.
    """
    pages = int(Path("/proc/self/statm").read_text().split()[0])  # of what `RLIMIT_AS` limits
    loaded_mib = -(-pages * resource.getpagesize() // 2**20)
    if loaded_mib + HEADROOM_MIB > memory_mib:
        raise ConfigError(
            f"`verify.memory_mib` is {memory_mib}, and a process that has loaded the task takes "
            f"{loaded_mib} MiB: set it to {loaded_mib + HEADROOM_MIB} or more"
        )
    limit = memory_mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
