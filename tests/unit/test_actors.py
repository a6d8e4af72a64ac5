"""Who gives room to whom: pools, tasks of the run, trainings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import rise_ray.actors
from rise_ray.actors import Actors
from rise_ray.config_file import parse_config

TEXT = """
name: a
task: {name: countdown}
model: {path: m, max_model_len: 64}
rollout: {workers: {start_deadline_s: 7}}
"""


class _Pool:
    """Writes down what is asked of it."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self._name = name
        self._calls = calls

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


def test_a_task_waits_for_its_cpu_after_the_pools_gave_theirs_back(
    actors: Actors, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        rise_ray.actors, "await_cpu", lambda what, deadline_s: calls.append(f"{what} {deadline_s}")
    )
    actors.make_room("relabeling")
    assert calls == ["shrink rollout", "shrink teacher", "relabeling 7.0"]
