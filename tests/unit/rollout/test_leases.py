"""The lease book under any order of events: nothing lost, nothing doubled."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rise_ray.rollout.leases import LeaseBook

WORKERS = st.sampled_from(["a", "b", "c"])
IDS = [f"episode-{n}" for n in range(8)]
MAX_ATTEMPTS = 2


class Leases(RuleBasedStateMachine):
    """What a pool can do with a book, beside a plain record of who holds what."""

    def __init__(self) -> None:
        super().__init__()
        self.book = LeaseBook(IDS, MAX_ATTEMPTS)
        self.queued = set(IDS)
        self.held: dict[str, set[str]] = {"a": set(), "b": set(), "c": set()}
        self.lost_by: dict[str, set[str]] = {"a": set(), "b": set(), "c": set()}
        self.losses: Counter[str] = Counter()
        self.ended: set[str] = set()

    @rule(worker=WORKERS, count=st.integers(0, 5))
    def take(self, worker: str, count: int) -> None:
        taken = self.book.take(worker, count)
        assert len(taken) == len(set(taken)) == min(count, len(self.queued))
        assert set(taken) <= self.queued
        self.queued -= set(taken)
        self.held[worker] |= set(taken)
        self.lost_by[worker] -= set(taken)

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(w for w, ids in self.held.items() if ids)))
        episode = data.draw(st.sampled_from(sorted(self.held[worker])))
        assert self.book.complete(worker, episode)
        self.held[worker].remove(episode)
        self.ended.add(episode)
        assert not self.book.complete(worker, episode)

    @rule(worker=WORKERS)
    def lose(self, worker: str) -> None:
        held, self.held[worker] = self.held[worker], set()
        self.losses.update(held)
        aside = {episode for episode in held if self.losses[episode] >= MAX_ATTEMPTS}
        assert self.book.lost(worker) == sorted(aside)
        self.ended |= aside
        self.queued |= held - aside
        self.lost_by[worker] |= held

    @rule()
    def late_completions_are_refused(self) -> None:
        for worker, episodes in self.lost_by.items():
            assert not any(self.book.complete(worker, episode) for episode in episodes)

    @invariant()
    def every_episode_is_in_one_place(self) -> None:
        assert self.book.queued == len(self.queued)
        assert {w: self.book.held(w) for w in self.held} == {
            w: len(h) for w, h in self.held.items()
        }
        assert self.book.open == len(IDS) - len(self.ended)

    def teardown(self) -> None:
        left = self.book.take("last", len(IDS))
        assert set(left) == self.queued
        assert max(self.losses.values(), default=0) <= MAX_ATTEMPTS


TestLeases = Leases.TestCase
TestLeases.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_first_come_is_first_leased_and_what_was_lost_goes_first() -> None:
    book = LeaseBook(["a", "b", "c", "d"], max_attempts=3)
    assert book.take("w", 2) == ["a", "b"]
    assert book.lost("w") == []
    assert book.take("v", 3) == ["a", "b", "c"]


def test_equal_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="not unique"):
        LeaseBook(["a", "a"], 1)
