"""The parent's end of a verifier's processes: the template with the task, and what it forks.

Nothing here waits for a check: one that hangs, floods or stops reading must not hold up its parent.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from typing import Any, Generic, TypeVar

from rise_ray.config.settings import TaskConfig
from rise_ray.verify.child import MESSAGE_BYTES

T = TypeVar("T")

_END_S = 5.0  # from the end of its pipe to its own, on a busy machine
_ANSWER_S = 30.0  # of a template, which does nothing that takes long


class Template:
    """One `python -m rise_ray.verify.child`: it loads the task once and forks processes that check.

    So a process that is killed is replaced in milliseconds, and not in the seconds that the task's
    imports take. `due` is when it must have loaded it, in the clock of the caller; its children die
    with it.
    """

    def __init__(self, task: TaskConfig, memory_mib: int, due: float) -> None:
        self.ready = False
        self.due = due
        self._control, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(_ANSWER_S)
        with its:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "rise_ray.verify.child"],
                stdin=its.fileno(),
                stdout=subprocess.DEVNULL,
                # The parent's, with its import path, one thread, and a fixed order of hashes.
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
                    "PYTHONHASHSEED": "0",
                    "OMP_NUM_THREADS": "1",
                    "OPENBLAS_NUM_THREADS": "1",
                },
                start_new_session=True,  # Ctrl-C is the parent's to handle
            )
        setup = {"task": task.name, "options": task.options, "memory_mib": memory_mib}
        self._control.send(json.dumps(setup | {"parent_pid": os.getpid()}).encode("ascii"))

    @property
    def fd(self) -> int:
        """Has something to read once the task is loaded, or cannot be."""
        return self._control.fileno()

    @property
    def has_news(self) -> bool:
        """Whether `read` would not wait."""
        return bool(select.select([self.fd], [], [], 0)[0])

    def read(self) -> dict[str, Any]:
        """The next reply.

        Raises:
            ConnectionError: the process has ended.
        """
        with contextlib.suppress(ConnectionResetError):
            if reply := self._control.recv(MESSAGE_BYTES):
                return dict(json.loads(reply))
        raise ConnectionError(f"the checking process died ({_ending(self._process.wait(_END_S))})")

    def fork(self) -> ChildProcess[Any]:
        """A process that checks.

        Raises:
            ConnectionError: this one has ended.
            OSError: the system makes no process, perhaps only for a moment.
        """
        requests, input_fd = os.pipe()
        output_fd, replies = os.pipe()
        try:
            socket.send_fds(self._control, [b"{}"], [requests, replies])
            answer = self.read()
            if "refused" in answer:
                raise OSError(answer["refused"])
            return ChildProcess(self, answer["pid"], input_fd, output_fd)
        except BaseException:
            os.close(input_fd)
            os.close(output_fd)
            raise
        finally:
            os.close(requests)
            os.close(replies)

    def reap(self, pid: int) -> int:
        """The exit code of a process that it forked, which has ended; as `subprocess`'s."""
        self._control.send(json.dumps({"reap": pid}).encode("ascii"))
        return int(self.read()["exit_code"])

    def kill(self) -> None:
        """Kill it, and its children with it."""
        with self._process:
            self._process.kill()
        self._control.close()


class ChildProcess(Generic[T]):
    """A process in which answers are checked one by one, ready from the start.

    `in_flight` has what it was given and has not answered, oldest first, None for what was passed
    over: it is working on the first, `since` then, in monotonic seconds.
    """

    def __init__(self, template: Template, pid: int, input_fd: int, output_fd: int) -> None:
        self.in_flight: deque[T | None] = deque()
        self.since = 0.0
        self.replied = False
        self.pid = pid
        self.input_fd = input_fd
        self.output_fd = output_fd
        self.unsent = bytearray()
        """What `write` has to send."""
        self._template = template
        self._pidfd = os.pidfd_open(pid)  # its number may be another's once its parent is gone
        self._clock = (~pid << 3) | 2  # of its CPU time: clock_getcpuclockid(3)
        self._cpu_s_before = 0.0
        self._received = bytearray()
        os.set_blocking(input_fd, False)
        os.set_blocking(output_fd, False)

    @property
    def is_alive(self) -> bool:
        return not self._ended(within_s=0)

    def begin(self) -> None:
        """It turns to the first of `in_flight` now."""
        self.since, self._cpu_s_before = time.monotonic(), self._cpu_s()

    @property
    def worked_s(self) -> float:
        """CPU time since then: on a busy machine less than what has passed."""
        return max(0.0, self._cpu_s() - self._cpu_s_before)

    def _cpu_s(self) -> float:
        try:
            return time.clock_gettime(self._clock)
        except OSError:  # it is gone, as its pipe says
            return 0.0

    def give(self, work: T, request: dict[str, Any]) -> None:
        """Add work, whose request `write` sends."""
        self.in_flight.append(work)
        self.unsent += json.dumps(request).encode("ascii") + b"\n"

    def pass_over(self) -> list[T]:
        """What waits behind the first, for others to do; the answers to it are void."""
        first, *others = self.in_flight
        self.in_flight = deque([first, *(None for _ in others)])
        return [work for work in others if work is not None]

    def write(self) -> None:
        """Send as much as the pipe takes now."""
        try:
            del self.unsent[: os.write(self.input_fd, self.unsent[: 2**16])]
        except BlockingIOError:
            pass
        except BrokenPipeError:  # it died; reading its end says so
            self.unsent.clear()

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """The replies that are there now, and whether the child has closed its end (died)."""
        closed = False
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.output_fd, 2**16):
                self._received += data
            closed = True
        *lines, rest = self._received.split(b"\n")
        self._received = bytearray(rest)
        self.replied = self.replied or bool(lines)
        return [json.loads(line) for line in lines], closed

    def wait(self) -> str:
        """How it ended, once it has closed its pipe, which it does by ending."""
        return self._end if self._ended(_END_S) else "closed its pipe"

    def kill(self) -> None:
        """Kill it if it lives, and free its pipes."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self.wait()
        for fd in (self._pidfd, self.input_fd, self.output_fd):
            os.close(fd)

    def _ended(self, within_s: float) -> bool:
        return bool(select.select([self._pidfd], [], [], within_s)[0])

    @functools.cached_property
    def _end(self) -> str:
        """Of one that has ended, which is reaped once."""
        try:
            return _ending(self._template.reap(self.pid))
        except OSError:  # somebody else reaps it
            return "its parent is gone"


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
