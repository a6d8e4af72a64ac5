"""How long a pool waits for workers that do not start, whenever each of them was asked for."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from rise_ray.config.settings import ModelConfig, SyncConfig, WorkersConfig
from rise_ray.errors import ClusterError
from rise_ray.mdp import WeightVersion
from rise_ray.rollout.members import Member, Status
from rise_ray.rollout.pool import RolloutPool

VERSION = WeightVersion(0, "m", "m")
EPISODES = 100


class _Starts:
    """A pool of two whose workers Ray has no room for, and a clock that moves when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.up: set[str] = set()
        self.asked: list[str] = []
        config = WorkersConfig(min_workers=2, max_workers=2, start_deadline_s=10)
        model = ModelConfig(path="m", max_model_len=16)
        self.pool = RolloutPool(VERSION, model, config, SyncConfig(), [], seed=0)
        self.pool._last_up = self.now
        monkeypatch.setattr(self.pool, "_start", self.start)
        clock = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr("rise_ray.rollout.pool.time", clock)
        for name, answer in self._ray().items():
            monkeypatch.setattr(f"ray.{name}", answer)

    def _ray(self) -> dict[str, Callable[..., Any]]:
        return {
            "wait": lambda calls, **_: ([call for call in calls if call in self.up], []),
            "kill": lambda handle: None,
            "available_resources": dict,
        }

    def start(self) -> None:
        name = f"worker-{len(self.asked)}"
        self.asked.append(name)
        self.pool._members[name] = Member(name, None, Status.STARTING, name, self.now)

    def pass_seconds(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 1.0
            self.pool._grow(EPISODES)
            self.pool._limit_starts()


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> _Starts:
    return _Starts(monkeypatch)


def test_workers_that_were_asked_for_at_different_times_are_not_waited_for_in_turns(
    starts: _Starts,
) -> None:
    starts.start()
    starts.pass_seconds(6)  # the second is asked for in the first of them
    member = starts.pool._members[starts.asked[1]]
    member.since += 5.0
    with pytest.raises(ClusterError, match=r"0 of `min_workers` = 2 .* within 10 s"):
        starts.pass_seconds(5)


def test_a_late_worker_is_asked_for_anew_beside_one_that_is_up(starts: _Starts) -> None:
    starts.pass_seconds(1)
    first, second = starts.asked
    starts.pool._members[first].status = Status.READY
    starts.pass_seconds(30)
    assert starts.asked[:2] == [first, second]
    assert len(starts.asked) == 4  # every ten seconds another
    assert starts.pool.lost_workers == 2


def test_workers_that_came_up_while_the_caller_paused_are_not_late(starts: _Starts) -> None:
    starts.pass_seconds(1)
    starts.up.update(starts.asked)
    starts.now += 1000.0
    starts.pass_seconds(1)
    assert list(starts.pool._members) == starts.asked


def test_a_worker_that_loaded_while_the_caller_paused_has_its_time_to_be_probed(
    starts: _Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts.start()
    (member,) = starts.pool._members.values()
    probe = SimpleNamespace(remote=lambda version: f"probe of {version.iteration}")
    member.handle = SimpleNamespace(adopt=probe)
    monkeypatch.setattr("ray.get", lambda call: None)
    starts.up.add(member.call)
    starts.now += 1000.0
    starts.pass_seconds(1)
    starts.pool._started(member)
    assert (member.status, member.call) == (Status.STARTING, "probe of 0")
    starts.pass_seconds(5)
    assert starts.pool._members[member.name] is member
