"""The parent's end of one verifier child: its pipes, what it is working on, and until when.

Nothing here blocks: a child that hangs, floods or stops reading must not hold up its parent.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import deque
from typing import Any

from rise_ray.config.settings import TaskConfig

_END_S = 5.0  # from the end of its pipe to its own, on a busy machine


class ChildProcess:
    """One `python -m rise_ray.verify.child`, started on construction.

    `in_flight` are the keys of the items it was sent and has not answered, oldest first: it is
    working on the first. `due` is when its next reply must be there (the first says that it has
    loaded the task), in the clock of the caller; None while it has nothing to do.
    """

    def __init__(self, task: TaskConfig, memory_mib: int, due: float) -> None:
        self.ready = False
        self.in_flight: deque[int] = deque()
        self.due: float | None = due
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "rise_ray.verify.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # The parent's, with its import path, one thread, and a fixed order of hashed things.
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
                "PYTHONHASHSEED": "0",
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
            },
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.input_fd = self._process.stdin.fileno()
        self.output_fd = self._process.stdout.fileno()
        os.set_blocking(self.input_fd, False)
        os.set_blocking(self.output_fd, False)
        self._received = bytearray()
        self.unsent = bytearray()
        """What `write` has to send."""
        self.queue(
            {
                "task": task.name,
                "options": task.options,
                "memory_mib": memory_mib,
                "parent_pid": os.getpid(),
            }
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def queue(self, request: dict[str, Any]) -> None:
        """Add a request to what `write` sends."""
        self.unsent += json.dumps(request).encode("ascii") + b"\n"

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
        return [json.loads(line) for line in lines], closed

    def wait(self) -> str:
        """How it ended, once it has closed its pipe, which it does by ending."""
        try:
            code = self._process.wait(timeout=_END_S)
        except subprocess.TimeoutExpired:
            return "closed its pipe"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    def kill(self) -> None:
        """Kill it if it lives, wait for its end, and free its pipes."""
        with self._process:
            self._process.kill()
