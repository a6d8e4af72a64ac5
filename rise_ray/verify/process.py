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
import time
from collections import deque
from typing import Any

from rise_ray.config.settings import WALL_SHARE, TaskConfig

LASTS_S = 0.05
"""CPU time from which on an item is one that lasts."""
OUT_OF_TIME = f"signal {signal.SIGPROF.name}"
"""How a child ends that met its deadline."""
_LOOK_S = 0.02  # how often one that is busy is looked at
_END_S = 5.0  # from the end of its pipe to its own, on a busy machine


class ChildProcess:
    """One `python -m rise_ray.verify.child`, started on construction.

    `in_flight` are the keys of the items it was given and has not answered, oldest first: it is
    at the first. None is one that was taken back: it answers it nevertheless. `due` is when its
    next reply must be there, by `time.monotonic` (the first says that it has loaded the task); None
    while it has nothing to do. `lasts`: it is at its item for long.
    """

    def __init__(
        self, task: TaskConfig, memory_mib: int, deadline_s: float, start_deadline_s: float
    ) -> None:
        self.ready = False
        self.in_flight: deque[int | None] = deque()
        self.due: float | None = time.monotonic() + start_deadline_s
        self.lasts = False
        self._deadline_s = deadline_s
        self._turned_s = self._cpu_s = 0.0  # when it turned to its item, by both clocks
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
        self._queue(
            {
                "task": task.name,
                "options": task.options,
                "memory_mib": memory_mib,
                "deadline_s": deadline_s,
                "parent_pid": os.getpid(),
            }
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    @property
    def took_s(self) -> float:
        """Seconds since it turned to its item."""
        return time.monotonic() - self._turned_s

    @property
    def next_look(self) -> float | None:
        """When it is to be looked at, by `time.monotonic`, if it does not reply before."""
        if not self.ready or self.due is None or self.lasts:
            return self.due
        return min(self.due, time.monotonic() + _LOOK_S)

    def start(self) -> None:
        """It has said that it is ready."""
        self.ready, self.due = True, None

    def give(self, key: int, request: dict[str, Any]) -> None:
        """Add an item to what `write` sends."""
        self._queue(request)
        self.in_flight.append(key)
        if len(self.in_flight) == 1:
            self._turn()

    def settle(self) -> int | None:
        """It has answered an item: its key, unless it was taken back."""
        key = self.in_flight.popleft()
        self._turn()
        return key

    def take_back(self, after: int) -> list[int]:
        """The items behind the first `after`, which are somebody else's from now on."""
        keys = list(self.in_flight)
        self.in_flight = deque([*keys[:after], *[None] * len(keys[after:])])
        return [key for key in keys[after:] if key is not None]

    def look(self) -> None:
        """See whether its item `lasts`: by its CPU time, or by the clock if it sleeps."""
        if self.in_flight and not self.lasts and self.took_s > LASTS_S:
            self.lasts = self._cpu() - self._cpu_s > LASTS_S or self.took_s > 20 * LASTS_S

    def _turn(self) -> None:
        self.lasts = False
        self._turned_s, self._cpu_s = time.monotonic(), self._cpu()
        self.due = self._turned_s + WALL_SHARE * self._deadline_s if self.in_flight else None

    def _cpu(self) -> float:
        """Its CPU time in seconds, by its own clock: see clock_getcpuclockid(3)."""
        try:
            return time.clock_gettime(~self.pid << 3 | 2)
        except OSError:  # it has ended, which its pipe says
            return 0.0

    def _queue(self, request: dict[str, Any]) -> None:
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

    def end(self) -> str:
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
