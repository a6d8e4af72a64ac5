"""Slow, hung and half-dead engines on real vLLM: each is told apart and treated as what it is."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from rise_ray.errors import SyncError
from rise_ray.mdp import StopReason, WeightVersion
from rise_ray.rollout.pool import RolloutPool
from rise_ray.rollout.worker import RolloutWorker
from tests.chaos.processes import shared_memory_files, wait_freed
from tests.system.conftest import MakePool
from tests.system.processes import (
    LOOK_S,
    beside,
    descendants,
    named,
    send,
    shared_memory_of,
    wait_gone,
)
from tests.system.rollout.conftest import make_specs, on_a_worker
from tests.system.rollout.test_pool import LONG, ids, sampled, versions, workers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def started_by(pool: RolloutPool) -> list[psutil.Process]:
    """The pool's workers, which start now."""
    others = workers()
    pool.wait_ready()
    return [worker for worker in workers() if worker not in others]


@contextmanager
def slowed(worker: psutil.Process, stopped_s: float, running_s: float) -> Iterator[None]:
    """A process that gets `running_s` of CPU at a time only, as on an overloaded machine."""

    def used_s() -> float:
        times = worker.cpu_times()
        return float(times.user + times.system)

    def slow(over: threading.Event) -> None:
        while not over.is_set():
            send(worker, signal.SIGSTOP)
            over.wait(stopped_s)
            enough, until = used_s() + running_s, time.monotonic() + 1.0
            send(worker, signal.SIGCONT)
            while used_s() < enough and time.monotonic() < until:  # it may have nothing to do
                over.wait(0.02)

    with beside(slow):
        yield


def freeze(worker: RolloutWorker) -> None:
    """On the worker: let the engine step without ever scheduling a request."""
    worker._engine.llm.engine_core.engine_core.pause_scheduler()  # type: ignore[attr-defined]


def test_a_slow_engine_is_left_alone_and_one_that_makes_no_tokens_or_hangs_is_replaced(
    make_pool: MakePool,
    pair: RolloutPool,
    other_model: WeightVersion,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One worker after another, of one pool. The slow one takes many times the deadline in all."""
    others = workers()
    pool = make_pool(
        "alone",
        episodes_in_flight=16,
        max_attempts=2,
        progress_deadline_s=8.0,
        sync_deadline_s=5.0,
    )
    (slow,) = started_by(pool)
    specs = make_specs(8, **LONG)
    with slowed(slow, stopped_s=1.2, running_s=0.1):
        rolled = list(pool.roll(specs))  # every answer brings new tokens
    assert sampled(rolled) == sampled(pair.roll(specs))
    assert pool.lost_workers == 0

    on_a_worker(pool, freeze)
    specs = make_specs(8)
    rolled = list(pool.roll(specs))
    assert {t.stop_reason for t in rolled} == {StopReason.MAX_TURNS}
    assert sampled(rolled).keys() == ids(specs)
    assert "alone-0 is lost with 8 episodes: no new token for 8 s" in caplog.text
    assert (pool.lost_workers, pool.requeued) == (1, 8)
    assert wait_gone([slow]) == []

    (hung,) = (worker for worker in workers() if worker not in others)
    send(hung, signal.SIGSTOP)
    pool.sync(other_model)
    assert "alone-1 did not take over weight version 2 within 5 s" in caplog.text
    assert versions(pool.roll(make_specs(4))) == {2}
    assert wait_gone([hung]) == []


def test_a_worker_that_hangs_before_a_push_is_named_and_not_waited_for(
    make_pool: MakePool, other_model: WeightVersion, caplog: pytest.LogCaptureFixture
) -> None:
    """The push itself needs a GPU: here it waits for one until its own deadline."""
    pool = make_pool("far", sync_deadline_s=8.0, sync_backend="nccl", min_workers=2, max_workers=2)
    first = started_by(pool)[0]
    send(first, signal.SIGSTOP)
    with pytest.raises(SyncError) as raised:
        pool.sync(other_model)
    hung, asked = ("far-0", "far-1") if "far-0 did not" in caplog.text else ("far-1", "far-0")
    late = "did not take over weight version 2 within 8 s (`sync.deadline_s`)"
    assert f"worker {hung} {late}" in caplog.text
    assert str(raised.value) == f"one of {asked} {late}"
    assert wait_gone([first]) == []


def test_an_engine_process_that_dies_under_its_worker_costs_no_episode(
    make_pool: MakePool,
) -> None:
    """A tensor-parallel engine has processes of its own: losing one is losing the worker.

    Whether it is lost or released, its shared memory goes with it.
    """
    memory = shared_memory_files()
    pool = make_pool(
        "wide",
        max_attempts=2,
        vllm={
            "enforce_eager": True,
            "tensor_parallel_size": 2,
            "distributed_executor_backend": "mp",
        },
    )
    (worker,) = started_by(pool)
    engine = [process for process in descendants(worker.pid) if process.children() == []]
    assert shared_memory_of(worker.pid)
    specs = make_specs(24, **LONG)

    def kill(over: threading.Event) -> None:
        while not over.wait(LOOK_S):
            if named("ray::RolloutWorker.exchange", worker.ppid()):
                send(engine[-1], signal.SIGKILL)
                return

    with beside(kill):
        rolled = list(pool.roll(specs))
    assert {t.stop_reason for t in rolled} == {StopReason.MAX_TURNS}
    assert sampled(rolled).keys() == ids(specs)
    assert pool.lost_workers == 1
    assert wait_gone([worker, *engine]) == []
    pool.release()
    assert wait_freed(memory, 120.0) == []
