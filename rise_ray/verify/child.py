"""The processes in which answers are checked: `python -m rise_ray.verify.child`.

Answers are untrusted text, and parsing or comparing one may spin, eat memory or crash. So it
happens where the parent (`rise_ray.verify.checker`) can kill it at its deadline: in a process that
this one, which only loads the task and never sees an answer, forks.

The protocol with the forked is JSON lines, ASCII only: one request per item, one reply each, in
order. With this one it is a JSON object a packet: the first says which task and which limits, and
is answered by what decides the verdicts; then one with two pipes asks for a process, and `reap` for
the exit code of one that has ended.

It does not protect from hostile *tasks*: their code is the user's own, and it has files and the
network like any other process.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rise_ray.config.settings import TaskConfig
from rise_ray.errors import ConfigError, RiseError
from rise_ray.mdp import Outcome, Problem, Verdict
from rise_ray.tasks import load_task
from rise_ray.tasks.base import Task, Warmed
from rise_ray.verify.version import verifier_version

MAX_REASON_CHARS = 500
HEADROOM_MIB = 64
"""Least memory that a check gets beside the loaded task."""
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


MESSAGE_BYTES = 2**17
"""Of the largest packet."""
CHECKS = "answer-check"
"""What processes that check are called, beside their command line (`ps -o comm`)."""


def main() -> None:
    """Load the task, and fork whoever is asked for until the parent is gone."""
    control = _private_control()
    setup = json.loads(control.recv(MESSAGE_BYTES))
    _die_with(setup["parent_pid"])
    try:
        task = load_task(TaskConfig(name=setup["task"], options=setup["options"]))
        _warm_up(task)
        _check_memory(setup["memory_mib"])
    except RiseError as error:
        _answer_parent(control, {"failed": str(error)})
        return
    _answer_parent(control, {"verifier_version": verifier_version(setup["task"], task)})
    gc.freeze()  # what is loaded stays shared
    while True:
        message, pipes, *_ = socket.recv_fds(control, MESSAGE_BYTES, 2)
        if not message:
            return
        if pipes:
            _answer_parent(control, _fork(control, task, setup["memory_mib"], pipes))
        else:
            _, status = os.waitpid(json.loads(message)["reap"], 0)
            _answer_parent(control, {"exit_code": os.waitstatus_to_exitcode(status)})


def _fork(
    control: socket.socket, task: Task, memory_mib: int, pipes: Sequence[int]
) -> dict[str, Any]:
    """Make a process that checks what comes through one pipe, and answers through the other."""
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        pid, made = -1, {"refused": str(error)}
    if pid:
        for pipe in pipes:
            os.close(pipe)
        return made if pid < 0 else {"pid": pid}
    code = 1
    try:
        _die_with(parent)
        Path("/proc/self/comm").write_text(CHECKS)
        control.close()
        _limit_memory(memory_mib)
        _warm_up(task)  # what it writes to is its own before the first answer
        _serve(task, *pipes)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # what the template has registered for its end is not this one's


def _serve(task: Task, requests: int, replies: int) -> None:
    """Until the parent closes its end. Only the end of this process closes this one's."""
    answers = os.fdopen(replies, "wb", closefd=False)
    with os.fdopen(requests, "rb") as lines:
        for line in lines:
            answers.write(json.dumps(_answer(task, json.loads(line))).encode("ascii") + b"\n")
            answers.flush()


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


def _private_control() -> socket.socket:
    """The parent's end; what a task prints goes to stderr, and its stdin is empty."""
    control = socket.socket(fileno=os.dup(0))
    with open(os.devnull) as empty:
        os.dup2(empty.fileno(), 0)
    os.dup2(2, 1)
    return control


def _answer_parent(control: socket.socket, answer: dict[str, Any]) -> None:
    control.send(json.dumps(answer).encode("ascii"))


def _die_with(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent dies, even in the middle of a check."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:  # it died before the call above
        sys.exit(1)


def _warm_up(task: Task) -> None:
    if isinstance(task, Warmed):
        task.warm_up()


def _check_memory(memory_mib: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])  # of what `RLIMIT_AS` limits
    loaded_mib = -(-pages * resource.getpagesize() // 2**20)
    if loaded_mib + HEADROOM_MIB > memory_mib:
        raise ConfigError(
            f"`verify.memory_mib` is {memory_mib}, and a process that has loaded the task takes "
            f"{loaded_mib} MiB: set it to {loaded_mib + HEADROOM_MIB} or more"
        )


def _limit_memory(memory_mib: int) -> None:
    """Limit the address space from here on: answers are not trusted, the task's own code is.

    After loading, because a Python that runs out of memory in an import fails in any way, or hangs.
    """
    limit = memory_mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
