"""Answers on their way to the verifier actors and back, whatever happens to those.

    verdicts = verify_all(verifiers, [(problem, response), ...])     # and wait for them

    verification = Verification(verifiers)                           # or beside other work
    verification.add(tag, [(problem, response), ...])
    for tag, verdicts in verification.poll(wait_s=0.1): ...

A verifier that dies, hangs or gets no process to check in costs time and no verdict: checking has
no side effects, so its batch is sent again. Only a batch that was lost several times, or that
waited long for any verifier, ends as `error`. An answer whose check lasts holds up no other: the
verifier gives a ticket for it, and is asked again.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError

from rise_ray.errors import user_error
from rise_ray.mdp import Outcome, Verdict
from rise_ray.verify.actor import VerifierHandle
from rise_ray.verify.checker import Checked, Item, VerifierStartError

MOST_LOSSES = 3
"""Verifiers that a batch may be lost with before its verdicts are `error`."""
_LOOK_S = 1.0  # how often the verifiers are looked at
_ASK_S = 0.1  # how often they are asked for what lasts
_LOSSES = (RayActorError, ObjectLostError, OutOfMemoryError, VerifierStartError)


class _Added:
    """What was added under a tag, and the verdicts so far."""

    def __init__(self, tag: Any, items: list[Item]) -> None:
        self.tag = tag
        self.items = items
        self.verdicts: list[Verdict | None] = [None] * len(items)
        self.missing = len(items)


@dataclass
class _Batch:
    """Responses sent to a verifier together: what each was added with, and its place there."""

    responses: list[tuple[_Added, int]]
    losses: int = 0

    @property
    def items(self) -> list[Item]:
        return [added.items[place] for added, place in self.responses]


@dataclass
class _Line:
    """One verifier: the batch that it has, what of others lasts, and its last sign of progress.

    `lasting` is by ticket. `away`: it was lost; it gets work again when its processes are up, which
    it is asked by `ready`. `since` and `asked` are in watched seconds (see `Verification`).
    """

    verifier: VerifierHandle
    batch: _Batch | None = None
    lasting: dict[int, _Batch] = field(default_factory=dict)
    call: Any = None
    asked: float = 0.0
    away: bool = False
    ready: Any = None
    ping: Any = None
    progress: int | None = None
    since: float = 0.0

    @property
    def idle(self) -> bool:
        return self.batch is None and not self.away


class Verification:
    """Responses on their way through the verifiers, in batches that form by themselves.

    Each verifier has one batch at a time; what is added meanwhile is the next batch. Slow and
    hung are told apart by progress: a verifier that settles nothing for `progress_deadline_s` is
    restarted. That time is counted only while someone polls, so a caller may pause.
    """

    def __init__(self, verifiers: Sequence[VerifierHandle]) -> None:
        self._lines = deque(_Line(verifier) for verifier in verifiers)
        self._waiting: deque[_Added] = deque()
        self._lost: deque[_Batch] = deque()
        self._results: list[tuple[Any, list[Verdict]]] = []
        self._polled = time.monotonic()
        self._watched_s = self._looked_s = self._answered_s = 0.0
        self._last_loss = ""

    def add(self, tag: Any, items: list[Item]) -> None:
        """Queue responses; `tag` comes back with their verdicts."""
        if items:
            self._waiting.append(_Added(tag, items))
        else:
            self._results.append((tag, []))

    def poll(self, wait_s: float) -> list[tuple[Any, list[Verdict]]]:
        """Send what waits, collect what is checked, waiting at most `wait_s` for it.

        Raises:
            ConfigError: the verifiers cannot start: the task cannot be loaded, or not within
                `verify.memory_mib` (wrapped by Ray: see `rise_ray.errors.user_error`). Processes
                that die before they can say so are a loss instead: it may pass.
        """
        now = time.monotonic()
        self._watched_s += min(now - self._polled, _LOOK_S)
        self._polled = now
        self._send()
        self._collect(wait_s)
        if self._watched_s - self._looked_s >= _LOOK_S:
            self._looked_s = self._watched_s
            self._look()
        results, self._results = self._results, []
        return results

    def _send(self) -> None:
        idle = [line for line in self._lines if line.idle]
        for position, line in enumerate(idle):
            batch = self._next_batch(verifiers=len(idle) - position)
            if batch is None:
                if not line.lasting or self._watched_s - line.asked < _ASK_S:
                    continue
                batch = _Batch([])
            line.batch, line.asked = batch, self._watched_s
            line.call = line.verifier.actor.check.remote(batch.items, list(line.lasting))
            line.progress, line.since = None, self._watched_s

    def _next_batch(self, verifiers: int) -> _Batch | None:
        """What a verifier gets next, where so many are free."""
        if self._lost:
            return self._lost.popleft()
        share = math.ceil(len(self._waiting) / verifiers)
        if not share:
            return None
        added = [self._waiting.popleft() for _ in range(share)]
        return _Batch([(one, place) for one in added for place in range(len(one.items))])

    def _collect(self, wait_s: float) -> None:
        lines = {line.call: line for line in self._lines if line.batch}
        if not lines:
            if self._waiting or self._lost or any(line.lasting for line in self._lines):
                time.sleep(min(wait_s, _ASK_S))  # all are away, or are to be asked: do not spin
            return
        if wait_s:
            ray.wait(list(lines), timeout=wait_s)  # for the first of them
        for call in ray.wait(list(lines), num_returns=len(lines), timeout=0)[0]:
            self._take(lines[call])

    def _take(self, line: _Line) -> None:
        assert line.batch is not None
        try:
            checked: Checked = ray.get(line.call)
        except _LOSSES as error:
            self._lose(line, _why(error))
            return
        batch, line.batch, line.call, line.ping = line.batch, None, None, None
        for ticket, verdict in checked.late.items():
            self._settle(line.lasting.pop(ticket), [verdict])
        for ticket in checked.unknown:  # it was restarted between two calls
            self._send_again(line.lasting.pop(ticket), "it was restarted")
        for response, found in zip(batch.responses, checked.verdicts, strict=True):
            one = _Batch([response], batch.losses)
            if isinstance(found, Verdict):
                self._settle(one, [found])
            else:
                line.lasting[found] = one
        self._lines.remove(line)
        self._lines.append(line)  # the one that waited longest is first in line

    def _settle(self, batch: _Batch, verdicts: Sequence[Verdict]) -> None:
        for (added, place), verdict in zip(batch.responses, verdicts, strict=True):
            added.verdicts[place] = verdict
            added.missing -= 1
            if not added.missing:
                self._results.append((added.tag, [v for v in added.verdicts if v is not None]))

    def _look(self) -> None:
        """Restart what is silent for too long, and ask the others how far they are."""
        for line in list(self._lines):
            if line.idle:
                continue
            self._listen(line)
            if line.away:
                self._welcome(line)
            deadline_s = line.verifier.progress_deadline_s
            if not line.idle and self._watched_s - line.since > deadline_s:
                line.verifier.restart()
                self._lose(line, f"it settled nothing for {deadline_s:g} s and was restarted")
        if not all(line.away for line in self._lines):
            self._answered_s = self._watched_s
            return
        patience_s = MOST_LOSSES * max(line.verifier.progress_deadline_s for line in self._lines)
        if self._watched_s - self._answered_s > patience_s:
            reason = f"no verifier was up for {patience_s:g} s; the last loss: {self._last_loss}"
            while (batch := self._next_batch(verifiers=1)) is not None:
                self._fail(batch, reason)

    def _listen(self, line: _Line) -> None:
        """Take a verifier's answer to the last question, if it is there, and ask again."""
        if line.ping is not None:
            if not ray.wait([line.ping], timeout=0)[0]:
                return
            try:
                progress = ray.get(line.ping)
            except _LOSSES:
                pass  # not back yet; or, with a batch, its call says the same
            else:
                if progress != line.progress:
                    line.progress, line.since = progress, self._watched_s
                    self._answered_s = self._watched_s
        line.ping = line.verifier.actor.progress.remote()

    def _welcome(self, line: _Line) -> None:
        """Take a lost verifier's word that its processes are up, if it is there, or ask again.

        It may wait behind the batches of others who use this verifier, and their progress.
        """
        if line.ready is not None:
            if not ray.wait([line.ready], timeout=0)[0]:
                return
            try:
                ray.get(line.ready)
            except VerifierStartError as error:
                self._last_loss = _why(error)
            except _LOSSES:
                pass  # not back yet: that says nothing new
            else:
                line.away, line.ready, line.since = False, None, self._watched_s
                return
        line.ready = line.verifier.actor.wait_ready.remote()

    def _lose(self, line: _Line, reason: str) -> None:
        """A verifier is gone; what it had waits for another or, after too many, is an error."""
        lost = [line.batch] if line.batch and line.batch.responses else []
        lost += line.lasting.values()
        line.batch = line.call = line.ping = line.ready = None
        line.lasting = {}
        line.away, line.since = True, self._watched_s
        if lost:
            self._last_loss = reason
        for batch in lost:
            self._send_again(batch, reason)

    def _send_again(self, batch: _Batch, reason: str) -> None:
        batch.losses += 1
        if batch.losses < MOST_LOSSES:
            self._lost.append(batch)
        else:
            self._fail(batch, f"the verifier was lost {batch.losses} times; the last: {reason}")

    def _fail(self, batch: _Batch, reason: str) -> None:
        error = Verdict(Outcome.ERROR, None, reason)
        self._settle(batch, [error] * len(batch.responses))


def _why(error: Exception) -> str:
    """In one line."""
    return str(user_error(error) or error).strip().splitlines()[0]


def verify_all(verifiers: Sequence[VerifierHandle], items: Sequence[Item]) -> list[Verdict]:
    """One verdict per item, in their order; blocks until they are there.

    Raises:
        ConfigError: see `Verification.poll`.
    """
    verification = Verification(verifiers)
    for index, item in enumerate(items):
        verification.add(index, [item])
    verdicts: dict[int, Verdict] = {}
    while len(verdicts) < len(items):
        verdicts |= {index: verdict for index, (verdict,) in verification.poll(_LOOK_S)}
    return [verdicts[index] for index in range(len(items))]
