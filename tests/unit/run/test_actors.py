"""Who gives room to whom: pools, tasks of the run, trainings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray

from rise_ray.config.loading import parse_config
from rise_ray.run.actors import Actors
from rise_ray.sync.parity import ParityReport

TEXT = """
name: a
task: {name: countdown}
model: {path: m, max_model_len: 64}
"""


class _Pool:
    """Writes down what is asked of it."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self._name = name
        self._calls = calls
        self.parity: dict[str, ParityReport] = {}

    def release(self) -> None:
        self._calls.append(f"release {self._name}")

    def shrink(self) -> None:
        self._calls.append(f"shrink {self._name}")


@pytest.fixture
def calls() -> list[str]:
    return []


@pytest.fixture
def actors(calls: list[str]) -> Actors:
    nothing: Any = None
    run: Any = SimpleNamespace(config=parse_config(TEXT, [], source="test"))
    pools: list[Any] = [_Pool("rollout", calls), _Pool("teacher", calls)]
    actors = Actors(run, nothing, nothing, nothing)
    actors._pool, actors._teacher_pool = pools
    return actors


def test_a_training_gets_the_room_of_all_workers(actors: Actors, calls: list[str]) -> None:
    actors.release_workers()
    assert calls == ["release rollout", "release teacher"]


def test_a_task_gets_what_the_workers_took_beyond_their_least(
    actors: Actors, calls: list[str]
) -> None:
    actors.make_room()
    assert calls == ["shrink rollout", "shrink teacher"]


@pytest.mark.parametrize(("free", "released"), [(0.5, ["release ranks"]), (1.0, [])])
def test_ranks_that_stay_go_where_a_task_would_have_no_cpu(
    actors: Actors,
    calls: list[str],
    free: float,
    released: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ranks: Any = _Pool("ranks", calls)
    actors.__dict__["ranks"] = ranks
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": free})
    actors.make_room()
    assert calls[2:] == released


def test_a_stage_is_told_how_far_its_engines_were_from_the_trainer(actors: Actors) -> None:
    assert actors.drift() == {}
    pool: Any = actors._pool
    pool.parity = {"rollout-0": ParityReport(0.01, 0.1), "rollout-1": ParityReport(0.03, 0.2)}
    assert actors.drift() == {"parity_drift": {"mean": 0.02, "max": 0.2, "engines": 2}}
