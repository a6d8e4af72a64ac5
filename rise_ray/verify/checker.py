"""Checking untrusted answers: each in a child process that is killed at its deadline.

    checker = Checker(TaskConfig(name="gsm8k"), processes=2, deadline_s=5.0, memory_mib=1024)
    verdicts = checker.check([(problem, response), ...])

A check that hangs, crashes or runs out of memory costs its own item an `error` and nothing else.

Not pebble's `ProcessPool`: its processes share one pipe and its lock, so that one killed with the
lock ends them all; it unpickles what they send; and it looks for late and dead ones every 0.1 s.
"""

from __future__ import annotations

import selectors
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from rise_ray.config.settings import TaskConfig
from rise_ray.errors import ConfigError, RiseError
from rise_ray.mdp import Outcome, Problem, Verdict
from rise_ray.verify.process import ChildProcess

MAX_RESPONSE_CHARS = 1_000_000
"""A longer response is `unparseable` without being looked at: no task asks for such an answer."""
START_DEADLINE_S = 60.0
"""Longest start of a child (it imports sympy)."""
MAX_FAILED_STARTS = 3
"""In a row, before a checker gives up: one may be killed by a node that is short of memory."""
START_PAUSE_S = 1.0
"""Before another start where the system would not make a process at all."""
CHUNK = 32
"""Items that a child holds at most: enough to hide the pipe, few enough to spread evenly."""

Item = tuple[Problem, str]


class VerifierStartError(RiseError):
    """Checking processes do not start, perhaps only for now: memory or processes may be short."""


class _Batch:
    """The items of one `check`: which wait, and the verdicts so far."""

    def __init__(self, items: Sequence[Item], verifier_version: str) -> None:
        self._items = items
        self._verifier_version = verifier_version
        self._verdicts: dict[int, Verdict] = {}
        self.waiting: deque[int] = deque()
        for key, (_, response) in enumerate(items):
            if len(response) > MAX_RESPONSE_CHARS:
                reason = f"has {len(response)} characters, more than {MAX_RESPONSE_CHARS}"
                self.settle(key, Verdict(Outcome.UNPARSEABLE, None, reason))
            else:
                self.waiting.append(key)

    @property
    def verdicts(self) -> list[Verdict]:
        """In the items' order; complete once nothing waits or is in flight."""
        return [self._verdicts[key] for key in range(len(self._items))]

    def take(self) -> tuple[int, dict[str, Any]]:
        key = self.waiting.popleft()
        problem, response = self._items[key]
        return key, {"problem": asdict(problem), "response": response}

    def give_back(self, keys: Sequence[int]) -> None:
        """Items that a lost child had not turned to wait again, first in line."""
        self.waiting.extendleft(reversed(keys))

    def settle(self, key: int, verdict: Verdict) -> None:
        self._verdicts[key] = replace(
            verdict,
            answer=verdict.answer and _storable(verdict.answer),
            reason=_storable(verdict.reason),
            verifier_version=self._verifier_version,
        )


class Checker:
    """Child processes of one task that check items in parallel.

    Children die with the thread that started them: use and close a checker in one thread.
    """

    def __init__(
        self, task: TaskConfig, processes: int, deadline_s: float, memory_mib: int
    ) -> None:
        """Start as many children as `processes`, and wait until they have loaded the task.

        `deadline_s` is the wall time of one item, from when its child turns to it; `memory_mib` is
        the address space of a child.

        Raises:
            ConfigError: the task cannot be loaded, or leaves too little of `memory_mib`.
            VerifierStartError: children die before they are ready, or cannot be made.
        """
        self.verifier_version = ""
        """What decides (see `rise_ray.verify.version`), as the youngest child told it."""
        self._task = task
        self._deadline_s = deadline_s
        self._memory_mib = memory_mib
        self._children: list[ChildProcess | None] = [None] * processes
        self._failed_starts = 0
        self._next_start = 0.0
        self.progress = 0
        """Grows with every reply and every lost check: where it stands still, nothing is done."""
        try:
            self.wait_ready()
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """Of the children that are alive."""
        return [child.pid for child in self._children if child and child.is_alive]

    def wait_ready(self) -> None:
        """Block until every child has loaded the task.

        Raises:
            ConfigError, VerifierStartError: as when the checker is made; it may be called again.
        """
        nothing = _Batch([], self.verifier_version)
        while not all(child and child.ready for child in self._children):
            self._advance(nothing)

    def check(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict per item, in their order.

        A check that misses its deadline, dies, runs out of memory or raises gives `error` with
        the reason. A response above `MAX_RESPONSE_CHARS` is `unparseable`.

        Raises:
            ConfigError: a replacement child cannot load the task.
            VerifierStartError: it does not start; these items may be checked again.
        """
        batch = _Batch(items, self.verifier_version)
        for child in self._existing():
            if not child.is_alive:  # killed between calls: no item is to blame
                self._remove(child)
        try:
            while batch.waiting or any(child.in_flight for child in self._existing()):
                self._advance(batch)
        finally:  # after an exception: a later call must not read replies to this one
            for child in self._existing():
                if child.in_flight:
                    self._remove(child)
        return batch.verdicts

    def close(self) -> None:
        """Kill the children."""
        for child in self._existing():
            self._remove(child)

    def _existing(self) -> list[ChildProcess]:
        return [child for child in self._children if child is not None]

    def _remove(self, child: ChildProcess) -> None:
        """Kill a child and free its slot; the next `_advance` fills it."""
        self._children[self._children.index(child)] = None
        child.kill()

    def _advance(self, batch: _Batch) -> None:
        """Give every child work, wait until one has news or is late, and serve it."""
        for slot, child in enumerate(self._children):
            if child is None:
                self._fill(slot)
            elif child.ready:
                self._feed(child, batch)
        _wait(self._existing(), self._next_start if None in self._children else None)
        for child in self._existing():
            self._serve(child, batch)

    def _fill(self, slot: int) -> None:
        """Start a child, unless the last attempt failed just now."""
        now = time.monotonic()
        if now < self._next_start:
            return
        try:
            child = ChildProcess(self._task, self._memory_mib, now + START_DEADLINE_S)
        except OSError as error:  # no memory or no process to be had: perhaps only for a moment
            self._next_start = now + START_PAUSE_S
            self._count_failed_start(str(error))
            return
        self._children[slot] = child

    def _feed(self, child: ChildProcess, batch: _Batch) -> None:
        if batch.waiting and not child.in_flight:
            child.due = time.monotonic() + self._deadline_s
        while batch.waiting and len(child.in_flight) < CHUNK:
            key, request = batch.take()
            child.queue(request)
            child.in_flight.append(key)

    def _serve(self, child: ChildProcess, batch: _Batch) -> None:
        """Take a child's replies; replace it if it died, is late, or asks to be."""
        replies, closed = child.read()
        self.progress += len(replies)
        for reply in replies:
            if not child.ready:
                self._start(child, reply)
                continue
            retire = reply.pop("retire")
            verdict = Verdict(Outcome(reply.pop("outcome")), **reply)
            batch.settle(child.in_flight.popleft(), verdict)
            child.due = time.monotonic() + self._deadline_s if child.in_flight else None
            if retire:
                batch.give_back(child.in_flight)
                self._remove(child)
                return
        if closed:
            self._lose(child, f"the checking process died ({child.wait()})", batch)
        elif child.due is not None and time.monotonic() >= child.due:
            limit_s = self._deadline_s if child.ready else START_DEADLINE_S
            self._lose(child, f"took longer than its deadline of {limit_s:g} s", batch)

    def _start(self, child: ChildProcess, reply: dict[str, Any]) -> None:
        if "failed" in reply:
            raise ConfigError(reply["failed"])
        self.verifier_version = reply["verifier_version"]
        child.ready = True
        child.due = None
        self._failed_starts = 0

    def _lose(self, child: ChildProcess, reason: str, batch: _Batch) -> None:
        """The item the child was at is an error; the ones after it wait for another child."""
        self._remove(child)
        if not child.ready:
            self._count_failed_start(f"{reason}; its own output says more")
        elif child.in_flight:
            self.progress += 1
            batch.settle(child.in_flight.popleft(), Verdict(Outcome.ERROR, None, reason))
            batch.give_back(child.in_flight)

    def _count_failed_start(self, reason: str) -> None:
        self._failed_starts += 1
        if self._failed_starts >= MAX_FAILED_STARTS:
            self._failed_starts = 0  # whoever tries again has as many attempts
            raise VerifierStartError(
                f"a verifier process of task `{self._task.name}` does not start: {reason}"
            )


def _wait(children: list[ChildProcess], next_start: float | None) -> None:
    """Send what is unsent until a child has something to read or is late, or one may start."""
    dues = [child.due for child in children if child.due is not None]
    dues += [] if next_start is None else [next_start]
    timeout = max(0.0, min(dues) - time.monotonic()) if dues else None
    with selectors.DefaultSelector() as selector:
        for child in children:
            selector.register(child.output_fd, selectors.EVENT_READ)
            if child.unsent:
                selector.register(child.input_fd, selectors.EVENT_WRITE, child)
        for key, _ in selector.select(timeout):
            if key.data is not None:
                key.data.write()


def _storable(text: str) -> str:
    """Text that every store takes: lone surrogates, which are not Unicode, are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()
