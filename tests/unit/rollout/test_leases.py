"""The lease book under any order of events: nothing lost, nothing doubled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rise_ray.rollout.leases import LeaseBook

WORKERS = st.sampled_from(["a", "b", "c"])
IDS = [f"episode-{n}" for n in range(8)]
MAX_ATTEMPTS = 2


def book_of(ids: Iterable[str], max_attempts: int) -> LeaseBook:
    book = LeaseBook(max_attempts)
    book.ask(ids, ())
    return book


class Leases(RuleBasedStateMachine):
    """What a pool can do with a book, beside a plain record of who holds what."""

    def __init__(self) -> None:
        super().__init__()
        self.book = book_of(IDS, MAX_ATTEMPTS)
        self.queued = set(IDS)
        self.held: dict[str, set[str]] = {"a": set(), "b": set(), "c": set()}
        self.lost_by: dict[str, set[str]] = {"a": set(), "b": set(), "c": set()}
        self.losses: Counter[str] = Counter()

    @rule(ids=st.lists(st.sampled_from(IDS), unique=True), workers=st.sets(WORKERS))
    def ask(self, ids: list[str], workers: set[str]) -> None:
        self.book.ask(ids, workers)
        for worker, held in self.held.items():
            self.held[worker] = held & set(ids) if worker in workers else set()
            self.lost_by[worker] |= held - self.held[worker]
        self.queued = set(ids).difference(*self.held.values())

    @rule(worker=WORKERS, capacity=st.integers(0, 5))
    def take(self, worker: str, capacity: int) -> None:
        held = self.held[worker]
        taken = self.book.take(worker, capacity)
        assert set(taken) <= self.queued
        assert taken or held or not capacity or not self.queued  # an idle worker gets something
        if not any(self.losses[episode] for episode in (*held, *self.queued)):
            assert len(taken) == max(0, min(capacity - len(held), len(self.queued)))
        self.queued -= set(taken)
        held |= set(taken)
        assert len(held) <= capacity or not taken
        if taken and any(self.losses[episode] == MAX_ATTEMPTS - 1 for episode in held):
            assert len(held) == 1
        self.lost_by[worker] -= set(taken)

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(w for w, ids in self.held.items() if ids)))
        episode = data.draw(st.sampled_from(sorted(self.held[worker])))
        assert self.book.complete(worker, episode)
        self.held[worker].remove(episode)
        del self.losses[episode]
        assert not self.book.complete(worker, episode)

    @rule(worker=WORKERS)
    def lose(self, worker: str) -> None:
        held, self.held[worker] = self.held[worker], set()
        self.losses.update(held)
        aside = {episode for episode in held if self.losses[episode] >= MAX_ATTEMPTS}
        assert self.book.lost(worker) == sorted(aside)
        for episode in aside:
            del self.losses[episode]
        self.queued |= held - aside
        self.lost_by[worker] |= held

    @rule()
    def late_completions_are_refused(self) -> None:
        for worker, episodes in self.lost_by.items():
            assert not any(self.book.complete(worker, episode) for episode in episodes)

    @invariant()
    def every_episode_is_in_one_place(self) -> None:
        assert {w: self.book.held(w) for w in self.held} == {
            w: len(h) for w, h in self.held.items()
        }
        assert self.book.open == len(self.queued) + sum(map(len, self.held.values()))

    def teardown(self) -> None:
        left = [self.book.take(f"last-{n}", len(IDS)) for n in range(len(IDS))]
        assert {episode for taken in left for episode in taken} == self.queued
        assert max(self.losses.values(), default=0) <= MAX_ATTEMPTS


TestLeases = Leases.TestCase
TestLeases.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_first_come_is_first_leased_and_what_was_lost_goes_first() -> None:
    book = book_of(["a", "b", "c", "d"], max_attempts=3)
    assert book.take("w", 2) == ["a", "b"]
    assert book.lost("w") == []
    assert book.take("v", 16) == ["a", "b"]  # among themselves: one of them may be to blame
    assert book.take("w", 16) == ["c", "d"]


def test_what_kills_every_worker_is_set_aside_and_nothing_with_it() -> None:
    ids = [f"episode-{n:03}" for n in range(200)]
    book = book_of(ids, max_attempts=3)
    aside, done, workers = [], [], 0
    while book.open:
        workers += 1
        name = f"worker-{workers}"
        while taken := book.take(name, 64):
            if "episode-070" in taken:
                aside += book.lost(name)
                break
            assert all(book.complete(name, episode) for episode in taken)
            done += taken
    assert aside == ["episode-070"]
    assert sorted([*aside, *done]) == ids
    assert workers == 4  # three are lost, and the last one does the rest


def test_a_loss_that_is_no_episodes_fault_does_not_count() -> None:
    book = book_of(["a", "b"], max_attempts=1)
    assert book.take("w", 2) == ["a", "b"]
    assert book.lost("w", counts=False) == []
    assert book.take("v", 2) == ["a", "b"]
    assert book.lost("v") == ["a", "b"]
