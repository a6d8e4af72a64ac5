"""Checking untrusted answers: each in a child process that is killed at its deadline.

    checker = Checker(TaskConfig(name="gsm8k"), processes=2, deadline_s=5.0, memory_mib=1024)
    verdicts = checker.check([(problem, response), ...])

A check that hangs, crashes or runs out of memory costs its own item an `error` and nothing else.
With a `spare` process it costs the others no time either:

    checked = checker.check_beside([(problem, response), ...])    # a ticket for one that lasts
    checked = checker.check_beside([], asked=tickets)             # what has become of them

Not pebble's `ProcessPool`: its processes share one pipe and its lock, so that one killed with the
lock ends them all; it unpickles what they send; and it looks for late and dead ones every 0.1 s.
"""

from __future__ import annotations

import itertools
import secrets
import selectors
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from rise_ray.config.settings import TaskConfig
from rise_ray.errors import ConfigError, RiseError
from rise_ray.mdp import Outcome, Problem, Verdict
from rise_ray.verify.process import OUT_OF_TIME, ChildProcess

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
CHUNK_S = 0.02
"""That they take, by the pace of the last ones: what is behind an item that lasts is done twice."""
MAX_KEPT = 10_000
"""Verdicts that are kept for somebody to ask for."""

Item = tuple[Problem, str]


class VerifierStartError(RiseError):
    """Checking processes do not start, perhaps only for now: memory or processes may be short."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What `Checker.check_beside` gives back."""

    verdicts: list[Verdict | int]
    """Of the items, in their order; for one whose check lasts, the ticket to ask with."""
    late: dict[int, Verdict]
    """Of the tickets asked for, those that are settled."""
    unknown: list[int]
    """Of the tickets asked for, another checker's: their items are to be checked again."""


class Checker:
    """Child processes of one task that check items in parallel.

    Children die with the thread that started them: use and close a checker in one thread.
    """

    def __init__(
        self,
        task: TaskConfig,
        processes: int,
        deadline_s: float,
        memory_mib: int,
        spare: bool = False,
    ) -> None:
        """Start as many children as `processes`, and wait until they have loaded the task.

        `deadline_s` is the CPU time of one item, from when its child turns to it, and by the clock
        `WALL_SHARE` times as much; `memory_mib` is the address space of a child. With `spare`
        there is one child more, after the first batch: it has work while another one's item lasts.

        Raises:
            ConfigError: the task cannot be loaded, or leaves too little of `memory_mib`.
            VerifierStartError: children die before they are ready, or cannot be made.
        """
        self.verifier_version = ""
        """What decides (see `rise_ray.verify.version`), as the youngest child told it."""
        self._task = task
        self._processes = processes
        self._deadline_s = deadline_s
        self._memory_mib = memory_mib
        self._spare = spare
        self._children: list[ChildProcess | None] = [None] * processes
        self._tickets = itertools.count(secrets.randbits(60))  # another checker has others
        self._requests: dict[int, dict[str, Any]] = {}  # of what is not settled
        self._waiting: deque[int] = deque()
        self._call = range(0)  # the tickets of the call that is under way, or of the last
        self._open = 0  # how many of them are not settled
        self._settled: dict[int, Verdict] = {}
        self._pace_s = CHUNK_S  # of one item, lately
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
        return [child.pid for child in self._existing() if child.is_alive]

    def wait_ready(self) -> None:
        """Block until as many children as `processes` have loaded the task.

        Raises:
            ConfigError, VerifierStartError: as when the checker is made; it may be called again.
        """
        while sum(child.ready for child in self._existing()) < self._processes:
            self._advance()

    def check(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict per item, in their order.

        A check that misses its deadline, dies, runs out of memory or raises gives `error` with
        the reason. A response above `MAX_RESPONSE_CHARS` is `unparseable`.

        Raises:
            ConfigError: a replacement child cannot load the task.
            VerifierStartError: it does not start; these items may be checked again.
        """
        with self._called(items) as tickets:
            while self._open:
                self._advance()
            return [self._settled.pop(ticket) for ticket in tickets]

    def check_beside(self, items: Sequence[Item], asked: Collection[int] = ()) -> Checked:
        """`check` that waits for no item that lasts; and what has become of the tickets `asked`.

        Raises:
            ConfigError, VerifierStartError: see `check`; tickets stay good.
        """
        with self._called(items) as tickets:
            self._advance(wait=False)
            while self._open > sum(head in tickets for head in self._lasting()):
                self._advance()
            verdicts = [self._settled.pop(ticket, ticket) for ticket in tickets]
        if self._spare and len(self._children) == self._processes:
            self._children.append(None)  # the next call starts it
        self._children.append(self._children.pop(0))  # in turns: what a task caches, all have
        late = {ticket: self._settled.pop(ticket) for ticket in self._settled.keys() & asked}
        unknown = [t for t in asked if t not in late and t not in self._requests]
        for ticket in list(self._settled)[:-MAX_KEPT]:
            del self._settled[ticket]
        return Checked(verdicts, late, unknown)

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

    @contextmanager
    def _called(self, items: Sequence[Item]) -> Iterator[range]:
        """A call's tickets, in its items' order; after an exception nothing of them is left."""
        for child in self._existing():
            if not child.is_alive and not child.in_flight:  # killed between calls
                self._remove(child)
        first = next(self._tickets)
        self._call = tickets = range(first, first + len(items))
        self._tickets = itertools.count(tickets.stop)
        self._open = len(items)
        try:
            for ticket, item in zip(tickets, items, strict=True):
                self._add(ticket, *item)
            yield tickets
        except BaseException:  # a later call must not read replies to this one
            for child in self._existing():
                if any(key in tickets for key in child.in_flight):
                    self._take_back(child)
                    self._remove(child)
            for ticket in tickets:
                self._requests.pop(ticket, None)
                self._settled.pop(ticket, None)
            self._waiting = deque(t for t in self._waiting if t in self._requests)
            raise

    def _add(self, ticket: int, problem: Problem, response: str) -> None:
        """An item waits for a child, or is settled if it is too long."""
        self._requests[ticket] = {"problem": asdict(problem), "response": response}
        if len(response) > MAX_RESPONSE_CHARS:
            reason = f"has {len(response)} characters, more than {MAX_RESPONSE_CHARS}"
            self._settle(ticket, Verdict(Outcome.UNPARSEABLE, None, reason))
        else:
            self._waiting.append(ticket)

    def _settle(self, ticket: int, verdict: Verdict) -> None:
        del self._requests[ticket]
        self._open -= ticket in self._call
        self._settled[ticket] = replace(
            verdict,
            answer=verdict.answer and _storable(verdict.answer),
            reason=_storable(verdict.reason),
            verifier_version=self.verifier_version,
        )

    def _lasting(self) -> list[int]:
        """What children have been at for long."""
        return [c.in_flight[0] for c in self._existing() if c.lasts and c.in_flight[0] is not None]

    def _advance(self, wait: bool = True) -> None:
        """Give every child work, wait until one has news or is to be looked at, and serve it."""
        for slot, child in enumerate(self._children):
            if child is None:
                self._fill(slot)
        self._spread()
        next_start = self._next_start if None in self._children else None
        _wait(self._existing(), next_start, wait)
        for child in self._existing():
            self._serve(child)

    def _fill(self, slot: int) -> None:
        """Start a child, unless the last attempt failed just now."""
        now = time.monotonic()
        if now < self._next_start:
            return
        try:
            child = ChildProcess(self._task, self._memory_mib, self._deadline_s, START_DEADLINE_S)
        except OSError as error:  # no memory or no process to be had: perhaps only for a moment
            self._next_start = now + START_PAUSE_S
            self._count_failed_start(str(error))
            return
        self._children[slot] = child

    def _spread(self) -> None:
        """Items to children that are at none that lasts, to as many as `processes` at once."""
        ready = [child for child in self._existing() if child.ready]
        free = [child for child in ready if not child.lasts][: self._processes]
        if free:
            for child in ready:
                if child.lasts:
                    self._take_back(child, after=1)
        most = max(2, min(CHUNK, int(CHUNK_S / self._pace_s)))
        for child in free:
            while self._waiting and len(child.in_flight) < most:
                ticket = self._waiting.popleft()
                child.give(ticket, self._requests[ticket])

    def _take_back(self, child: ChildProcess, after: int = 0) -> None:
        """What a child has behind the first `after` items waits for another, first in line."""
        self._waiting.extendleft(reversed(child.take_back(after)))

    def _serve(self, child: ChildProcess) -> None:
        """Take a child's replies; replace it if it died, is late, or asks to be."""
        replies, closed = child.read()
        self.progress += len(replies)
        if replies and child.ready:
            self._pace_s += 0.2 * (child.took_s / len(replies) - self._pace_s)
        for reply in replies:
            if not child.ready:
                self._start(child, reply)
                continue
            retire = reply.pop("retire")
            ticket = child.settle()
            if ticket is not None:
                self._settle(ticket, Verdict(Outcome(reply.pop("outcome")), **reply))
            if retire:
                self._take_back(child)
                self._remove(child)
                return
        if closed:
            self._lose(child, child.end())
        elif child.due is not None and time.monotonic() >= child.due:
            self._lose(child, None)
        else:
            child.look()

    def _start(self, child: ChildProcess, reply: dict[str, Any]) -> None:
        if "failed" in reply:
            raise ConfigError(reply["failed"])
        self.verifier_version = reply["verifier_version"]
        child.start()
        self._failed_starts = 0

    def _lose(self, child: ChildProcess, end: str | None) -> None:
        """A child ended so, or is late; what is behind the item that it was at goes on waiting."""
        self._remove(child)
        if not child.ready:
            limit = f"took longer than its deadline of {START_DEADLINE_S:g} s"
            reason = limit if end is None else f"the checking process died ({end})"
            self._count_failed_start(f"{reason}; its own output says more")
            return
        if end is None or end == OUT_OF_TIME:
            reason = f"took longer than its deadline of {self._deadline_s:g} s"
        else:
            reason = f"the checking process died ({end})"
        ticket, *_ = child.in_flight or [None]
        if ticket is not None:
            self.progress += 1
            self._settle(ticket, Verdict(Outcome.ERROR, None, reason))
        self._take_back(child, after=1)

    def _count_failed_start(self, reason: str) -> None:
        self._failed_starts += 1
        if self._failed_starts >= MAX_FAILED_STARTS:
            self._failed_starts = 0  # whoever tries again has as many attempts
            raise VerifierStartError(
                f"a verifier process of task `{self._task.name}` does not start: {reason}"
            )


def _wait(children: list[ChildProcess], next_start: float | None, wait: bool) -> None:
    """Send what is unsent until a child has something to read or is late, or one may start."""
    times = [child.next_look for child in children if child.next_look is not None]
    times += [] if next_start is None else [next_start]
    timeout = max(0.0, min(times) - time.monotonic()) if times else None
    with selectors.DefaultSelector() as selector:
        for child in children:
            selector.register(child.output_fd, selectors.EVENT_READ)
            if child.unsent:
                selector.register(child.input_fd, selectors.EVENT_WRITE, child)
        for key, _ in selector.select(timeout if wait else 0.0):
            if key.data is not None:
                key.data.write()


def _storable(text: str) -> str:
    """Text that every store takes: lone surrogates, which are not Unicode, are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()
