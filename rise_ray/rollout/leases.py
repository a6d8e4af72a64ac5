"""Who holds which episode: a queue of ids, leases by worker, and losses that are counted.

Pure bookkeeping: the pool tells it what happened and asks what to do.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Container, Iterable


class LeaseBook:
    """Every id is in exactly one place: queued, leased to one worker, set aside, or done.

    First come first leased; an episode that is lost with `max_attempts` workers is set aside.
    """

    def __init__(self, max_attempts: int) -> None:
        self._queue: deque[str] = deque()
        self._max_attempts = max_attempts
        self._leases: dict[str, set[str]] = {}
        self._losses: Counter[str] = Counter()

    def ask(self, ids: Iterable[str], workers: Container[str]) -> None:
        """From now on these ids, in their order; of the leases, theirs by `workers` stay."""
        wanted = dict.fromkeys(ids)
        self._leases = {
            worker: held & wanted.keys()
            for worker, held in self._leases.items()
            if worker in workers
        }
        leased = set().union(*self._leases.values())
        self._queue = deque(episode for episode in wanted if episode not in leased)

    @property
    def open(self) -> int:
        """Episodes that are queued or leased."""
        return len(self._queue) + sum(map(len, self._leases.values()))

    def held(self, worker: str) -> int:
        return len(self._leases.get(worker, ()))

    def take(self, worker: str, capacity: int) -> list[str]:
        """Lease queued episodes to `worker` until it holds `capacity`.

        One of the episodes that a worker held may have killed it. So those that were lost before
        are leased in ever smaller company, and for the last time alone: what kills every worker is
        set aside, and nothing with it.
        """
        held = self._leases.setdefault(worker, set())
        room = min([capacity, *(self._company(episode, capacity) for episode in held)])
        taken: list[str] = []
        passed: list[str] = []
        while self._queue and len(held) < room:
            episode = self._queue.popleft()
            company = self._company(episode, capacity)
            if len(held) >= company:
                passed.append(episode)  # for a worker that holds less
                continue
            room = min(room, company)
            held.add(episode)
            taken.append(episode)
        self._queue.extendleft(reversed(passed))
        return taken

    def _company(self, episode: str, capacity: int) -> int:
        """With how many episodes, itself included, this one may be on a worker."""
        losses = self._losses[episode]
        if not losses:
            return capacity
        return 1 if losses == self._max_attempts - 1 else max(1, capacity >> 3 * losses)

    def complete(self, worker: str, episode: str) -> bool:
        """`worker` returned `episode`; False if it no longer holds it (drop the result)."""
        if episode not in self._leases.get(worker, ()):
            return False
        self._leases[worker].remove(episode)
        self._losses.pop(episode, None)
        return True

    def lost(self, worker: str, counts: bool = True) -> list[str]:
        """`worker` is gone: its leases go to the front of the queue.

        The loss `counts` if an episode that the worker held may be at fault. Returns the episodes
        that have now been lost `max_attempts` times, which are set aside.
        """
        aside = []
        for episode in sorted(self._leases.pop(worker, ()), reverse=True):
            self._losses[episode] += counts
            if self._losses[episode] >= self._max_attempts:
                del self._losses[episode]
                aside.append(episode)
            else:
                self._queue.appendleft(episode)
        return sorted(aside)
