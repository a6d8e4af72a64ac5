"""WorkerGroup of one machine meet in a file, whatever nodes it has: torch's store would listen."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from rise_ray.config.settings import TrainConfig
from rise_ray.train import ray_train
from rise_ray.train.job import WorkerResult
from rise_ray.train.ray_train import Meeting, Ranks, Rendezvous


class WorkerGroup:
    """Stands for Ray Train's worker group; `methods` are how the ranks were told to meet."""

    def __init__(self, count: int, file_systems: list[str] | None = None) -> None:
        self._count = count
        self._file_systems = file_systems
        self.methods: list[str] = []

    def __len__(self) -> int:
        return self._count

    def execute(self, function: Callable[[], Any]) -> list[Any]:
        if function is ray_train._set_torch_distributed_env_vars:
            return []
        return self._file_systems or [function() for _ in range(self._count)]

    def execute_single(self, rank: int, function: Callable[[], Any]) -> Any:
        return function()

    def execute_single_async(self, rank: int, function: Any, **settings: Any) -> None:
        self.methods.append(settings["init_method"])


@pytest.fixture
def at_a_port(monkeypatch: pytest.MonkeyPatch) -> list[WorkerGroup]:
    """The groups that were left to Ray Train, whose rank 0 opens a port."""
    left: list[WorkerGroup] = []
    monkeypatch.setattr(
        ray_train._TorchBackend, "on_start", lambda _, ranks, config: left.append(ranks)
    )
    monkeypatch.setattr(ray_train.ray, "get", lambda calls: calls)
    return left


def test_ranks_on_several_nodes_of_one_machine_meet_in_a_file(
    at_a_port: list[WorkerGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    each_a_node = SimpleNamespace(get_node_id=uuid.uuid4)
    monkeypatch.setattr(ray_train.ray, "get_runtime_context", lambda: each_a_node)
    ranks = WorkerGroup(3)
    Meeting().on_start(ranks, Rendezvous(backend="gloo"))
    assert at_a_port == []
    (method,) = set(ranks.methods)
    assert len(ranks.methods) == 3
    assert method.startswith("file:///")


def test_ranks_of_several_machines_meet_at_a_port(at_a_port: list[WorkerGroup]) -> None:
    ranks = WorkerGroup(2, ["boot-1/pid:[1]/mnt:[1]", "boot-2/pid:[1]/mnt:[1]"])
    Meeting().on_start(ranks, Rendezvous(backend="gloo"))
    assert at_a_port == [ranks]
    assert ranks.methods == []


def test_ranks_that_ended_while_they_had_nothing_to_do_are_no_failure_of_the_next_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = TrainConfig(max_failures=0)
    job: Any = SimpleNamespace(name="iteration=2", config=config, storage="s")
    lost, new = (SimpleNamespace(running=name, kill=lambda: None) for name in ("lost", "new"))
    started: list[Any] = []
    monkeypatch.setattr(ray_train.ray, "wait", lambda running, timeout: (running, []))
    monkeypatch.setattr(ray_train.ray, "kill", lambda _: None)
    monkeypatch.setattr(ray_train, "_placement_groups", lambda _: {})
    monkeypatch.setattr(ray_train, "watched", lambda *_: nullcontext())
    monkeypatch.setattr(Ranks, "_start", lambda _, job: started.append(job) or new)

    def answer(_: Ranks, trainer: Any, task: Any) -> tuple[WorkerResult, int]:
        assert trainer is new
        return WorkerResult(), config.workers

    monkeypatch.setattr(Ranks, "_answer", answer)
    ranks, task = Ranks(), SimpleNamespace(job=job)
    ranks._trainer, ranks._started_for = lost, job  # type: ignore[assignment]
    assert ranks.do(task).error is None  # type: ignore[arg-type]
    assert started == [job]
