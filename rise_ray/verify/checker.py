"""Checking untrusted answers: each in a child process that is killed at its deadline.

    checker = Checker(TaskConfig(name="gsm8k"), processes=2, deadline_s=5.0, memory_mib=1024)
    verdicts = checker.check([(problem, response), ...])

A check that hangs, crashes or runs out of memory costs its own item an `error` and nothing else;
while one takes long, others are checked beside it.

Not pebble's `ProcessPool`: its processes share one pipe and its lock, so that one killed with the
lock ends them all; it unpickles what they send; and it looks for late and dead ones every 0.1 s.
"""

from __future__ import annotations

import os
import selectors
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, replace
from queue import Empty, SimpleQueue

from rise_ray.config.settings import TaskConfig
from rise_ray.errors import ConfigError, RiseError
from rise_ray.mdp import Outcome, Verdict
from rise_ray.verify.batch import Batch, Item, Work
from rise_ray.verify.process import ChildProcess, Template

MAX_RESPONSE_CHARS = 1_000_000
"""A longer response is `unparseable` without being looked at: no task asks for such an answer."""
START_DEADLINE_S = 60.0
"""Longest start of a template (it imports sympy)."""
MAX_FAILED_STARTS = 3
"""In a row, before a checker gives up: one may be killed by a node that is short of memory."""
START_PAUSE_S = 1.0
"""Before another start where the system would not make a process at all."""
CHUNK, CHUNK_S = 32, 0.01
"""Items that a child holds at most, and how long they usually take: enough to hide the pipe."""
PATIENCE_S = 0.04
"""CPU time of one item, before others are checked beside it; more where the usual takes more."""
ASLEEP_S = 1.0
"""Of one item that takes no CPU time, until then."""
MOST_SLOW = 4
"""Children that may be busy with slow items, beside `processes` others; they are kept."""


class VerifierStartError(RiseError):
    """Checking processes do not start, perhaps only for now: memory or processes may be short."""


class Checker:
    """Child processes of one task that check items in parallel, for any number of callers.

    A thread of its own serves them: children die with the thread that started them.
    """

    def __init__(
        self, task: TaskConfig, processes: int, deadline_s: float, memory_mib: int
    ) -> None:
        """Start as many children as `processes`, and wait until they can check.

        `deadline_s` is the wall time of one item, from when its child turns to it; `memory_mib` is
        the address space of a child.

        Raises:
            ConfigError: the task cannot be loaded, or leaves too little of `memory_mib`.
            VerifierStartError: children die before they are ready, or cannot be made.
        """
        self.verifier_version = ""
        """What decides (see `rise_ray.verify.version`), as the template told it."""
        self.progress = 0
        """Grows with every reply and every lost check: where it stands still, nothing is done."""
        self._task = task
        self._processes = processes
        self._deadline_s = deadline_s
        self._memory_mib = memory_mib
        self._template: Template | None = None
        self._children: list[ChildProcess[Work]] = []
        self._usual_s = CHUNK_S  # CPU time of an item, until it is known
        self._slow_seen = False
        self._failed_starts = 0
        self._next_start = 0.0
        self._batches: set[Batch] = set()
        self._waiting: deque[Work] = deque()
        self._starts: list[Future[None]] = []  # whoever waits for the children
        self._posted: SimpleQueue[Batch | Future[None] | None] = SimpleQueue()
        self._bell, self._push = os.pipe()
        os.set_blocking(self._bell, False)
        self._thread = threading.Thread(target=self._run, name="checker", daemon=True)
        self._thread.start()
        try:
            self.wait_ready()
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """Of the children that are alive."""
        return [child.pid for child in list(self._children) if child.is_alive]

    def wait_ready(self) -> None:
        """Block until every child can check.

        Raises:
            ConfigError, VerifierStartError: as when the checker is made; it may be called again.
        """
        ready: Future[None] = Future()
        self._post(ready)
        ready.result()

    def check(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict per item, in their order.

        A check that misses its deadline, dies, runs out of memory or raises gives `error` with
        the reason. A response above `MAX_RESPONSE_CHARS` is `unparseable`.

        Raises:
            ConfigError: a replacement of the template cannot load the task.
            VerifierStartError: no child starts; these items may be checked again.
        """
        return self.submit(items).result()

    def submit(self, items: Sequence[Item]) -> Future[list[Verdict]]:
        """`check`, whose result is to come."""
        batch = Batch(items)
        if not batch.future.done():
            self._post(batch)
        return batch.future

    def close(self) -> None:
        """Kill the children."""
        if self._thread.is_alive():
            self._post(None)
            self._thread.join()
            os.close(self._bell)
            os.close(self._push)

    def _post(self, what: Batch | Future[None] | None) -> None:
        if not self._thread.is_alive():
            raise RuntimeError("the checker is closed")
        self._posted.put(what)
        os.write(self._push, b"!")

    def _run(self) -> None:
        try:
            while self._receive():
                try:
                    self._advance()
                except Exception as error:  # whatever it is, it belongs to the callers
                    self._fail(error)
        finally:
            self._fail(RuntimeError("the checker was closed"))
            for child in list(self._children):
                self._remove(child)
            self._drop_template()

    def _receive(self) -> bool:
        """Take what was posted; False at the end."""
        try:
            os.read(self._bell, 2**16)
        except BlockingIOError:
            return True
        while True:
            try:
                posted = self._posted.get_nowait()
            except Empty:
                return True
            if posted is None:
                return False
            if isinstance(posted, Batch):
                self._batches.add(posted)
                self._waiting.extend((posted, index) for index in range(len(posted.items)))
            else:
                self._starts.append(posted)

    def _advance(self) -> None:
        """Give every child work, wait until one has news or is late, and serve it."""
        if self._lacks_children() and time.monotonic() >= self._next_start:
            self._fill()
        for child in list(self._children):
            self._feed(child)
        if len(self._children) >= self._processes:
            for start in self._starts:
                start.set_result(None)
            self._starts.clear()
        self._wait()
        if self._loading is not None:
            self._hear(self._loading)
        for child in list(self._children):
            self._serve(child)

    @property
    def _loading(self) -> Template | None:
        return self._template if self._template and not self._template.ready else None

    def _is_slow(self, child: ChildProcess[Work]) -> bool:
        return bool(child.in_flight) and self._slow_in(child) <= 0

    def _slow_in(self, child: ChildProcess[Work]) -> float:
        """Seconds, at least, until its item is one that others no longer wait for.

        It has had its share of CPU time by then; or it does not want any.
        """
        waited_s = time.monotonic() - child.since
        left_s = self._patience_s - min(waited_s, child.worked_s)
        return min(left_s, ASLEEP_S - waited_s)

    @property
    def _patience_s(self) -> float:
        return max(PATIENCE_S, self._usual_s)

    def _lacks_children(self) -> bool:
        if not self._batches and not self._starts:
            return False  # nobody asks for any
        slow = sum(map(self._is_slow, self._children))
        # Where items are slow: one for the next of them, made when nobody wants the CPU.
        spare = self._slow_seen and not self._waiting and not self._busy
        return len(self._children) < self._processes + min(slow, MOST_SLOW) + spare

    @property
    def _busy(self) -> int:
        """Children that check, but for the slow."""
        return sum(bool(child.in_flight) and not self._is_slow(child) for child in self._children)

    def _fill(self) -> None:
        """Start the template, or, where it has loaded the task, the children that are missing."""
        now = time.monotonic()
        try:
            if self._template is None:
                self._template = Template(self._task, self._memory_mib, now + START_DEADLINE_S)
            while self._template.ready and self._lacks_children():
                self._children.append(self._template.fork())
        except OSError as error:  # no memory or no process to be had: perhaps only for a moment
            if isinstance(error, ConnectionError):
                self._drop_template()
            self._next_start = now + START_PAUSE_S
            self._count_failed_start(str(error))

    def _hear(self, template: Template) -> None:
        """Take the template's word that it has loaded the task, if it is there."""
        try:
            if template.has_news:
                reply = template.read()
                if "failed" in reply:
                    self._drop_template()
                    raise ConfigError(reply["failed"])
                self.verifier_version = reply["verifier_version"]
                template.ready, self._failed_starts = True, 0
            elif time.monotonic() >= template.due:
                raise TimeoutError(f"took longer than its deadline of {START_DEADLINE_S:g} s")
        except OSError as error:
            self._drop_template()
            self._count_failed_start(f"{error}; its own output says more")

    def _feed(self, child: ChildProcess[Work]) -> None:
        if self._is_slow(child):
            self._slow_seen = True
            self._give_back(child.pass_over())
            return
        if None in child.in_flight:
            return
        if not child.in_flight:
            if not child.is_alive:
                self._remove(child)  # killed: no item is to blame
                return
            if self._busy >= self._processes:
                return
        while self._waiting and len(child.in_flight) < max(1, min(CHUNK, CHUNK_S / self._usual_s)):
            batch, index = self._waiting.popleft()
            problem, response = batch.items[index]
            if len(response) > MAX_RESPONSE_CHARS:
                reason = f"has {len(response)} characters, more than {MAX_RESPONSE_CHARS}"
                self._settle((batch, index), Verdict(Outcome.UNPARSEABLE, None, reason))
                continue
            if not child.in_flight:
                child.begin()
            child.give((batch, index), {"problem": asdict(problem), "response": response})

    def _give_back(self, works: Iterable[Work]) -> None:
        """Items that their child did not turn to wait again, first in line."""
        self._waiting.extendleft(reversed(list(works)))

    def _serve(self, child: ChildProcess[Work]) -> None:
        """Take a child's replies; replace it if it died, is late, or asks to be."""
        replies, closed = child.read()
        self.progress += len(replies)
        for reply in replies:
            self._failed_starts = 0
            retire = reply.pop("retire")
            if (work := child.in_flight.popleft()) is not None:
                self._settle(work, Verdict(Outcome(reply.pop("outcome")), **reply))
            took_s = min(child.worked_s / len(replies), 2 * self._patience_s)
            self._usual_s += (took_s - self._usual_s) / 16
            if retire or None in child.in_flight:  # another is made in less than those would take
                self._remove(child)
                self._give_back(filter(None, child.in_flight))
                return
        if replies:
            child.begin()
        if closed:
            self._lose(child, f"the checking process died ({child.wait()})")
        elif child.in_flight and time.monotonic() >= child.since + self._deadline_s:
            self._lose(child, f"took longer than its deadline of {self._deadline_s:g} s")

    def _settle(self, work: Work, verdict: Verdict) -> None:
        batch, index = work
        batch.settle(index, replace(verdict, verifier_version=self.verifier_version))
        if batch.future.done():
            self._batches.discard(batch)

    def _lose(self, child: ChildProcess[Work], reason: str) -> None:
        """The item the child was at is an error; the ones after it wait for another child."""
        self._remove(child)
        if child.in_flight:
            self.progress += 1
            if (work := child.in_flight.popleft()) is not None:
                self._settle(work, Verdict(Outcome.ERROR, None, reason))
            self._give_back(filter(None, child.in_flight))
        elif not child.replied:
            self._count_failed_start(f"{reason}; its own output says more")

    def _remove(self, child: ChildProcess[Work]) -> None:
        self._children.remove(child)
        child.kill()

    def _drop_template(self) -> None:
        if self._template is not None:
            self._template.kill()
            self._template = None

    def _count_failed_start(self, reason: str) -> None:
        self._failed_starts += 1
        if self._failed_starts >= MAX_FAILED_STARTS:
            self._failed_starts = 0  # whoever tries again has as many attempts
            raise VerifierStartError(
                f"a verifier process of task `{self._task.name}` does not start: {reason}"
            )

    def _fail(self, error: Exception) -> None:
        """Nobody gets a verdict: not those who wait now."""
        for child in list(self._children):
            if child.in_flight:
                self._remove(child)
        self._waiting.clear()
        for batch in self._batches:
            batch.future.set_exception(error)
        for start in self._starts:
            start.set_exception(error)
        self._batches.clear()
        self._starts.clear()

    def _wait(self) -> None:
        """Send what is unsent until one has news or is late, one may start, or one is asked."""
        loading = self._loading
        dues = [] if loading is None else [loading.due]
        dues += [self._next_start] if loading is None and self._lacks_children() else []
        for child in self._children:
            if child.in_flight:
                dues.append(child.since + self._deadline_s)
                if self._waiting or len(child.in_flight) > 1:
                    slow_in = self._slow_in(child)
                    dues += [time.monotonic() + slow_in] if slow_in > 0 else []
        timeout = max(0.0, min(dues) - time.monotonic()) if dues else None
        with selectors.DefaultSelector() as selector:
            selector.register(self._bell, selectors.EVENT_READ)
            if loading is not None:
                selector.register(loading.fd, selectors.EVENT_READ)
            for child in self._children:
                selector.register(child.output_fd, selectors.EVENT_READ)
                if child.unsent:
                    selector.register(child.input_fd, selectors.EVENT_WRITE, child)
            for key, _ in selector.select(timeout):
                if key.data is not None:
                    key.data.write()
