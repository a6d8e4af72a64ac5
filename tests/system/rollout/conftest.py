"""Pools over the tiny random model, and episodes for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray

from rise_ray.config.settings import ModelConfig, SamplingConfig, SyncConfig, WorkersConfig
from rise_ray.feedback.constant import Constant
from rise_ray.mdp import Place, WeightVersion
from rise_ray.rollout.episode import EpisodePlan, EpisodeSpec
from rise_ray.rollout.pool import RolloutPool
from rise_ray.tasks.countdown import Countdown
from tests.system.conftest import MAX_MODEL_LEN

MakePool = Callable[..., RolloutPool]


def make_specs(
    count: int, *, seed: int = 0, turns: int = 2, candidates: int = 2, max_tokens: int = 16
) -> list[EpisodeSpec]:
    """Episodes on the first `count` problems of Countdown's `dev` split."""
    task = Countdown()
    plan = EpisodePlan(
        run="test",
        place=Place("iteration", 1, "collect"),
        seed=seed,
        turns=turns,
        window=None,
        stop_on_success=False,
        candidates=candidates,
        first_state_only=False,
        last_feedback=False,
        sampling=SamplingConfig(max_tokens=max_tokens),
        max_model_len=MAX_MODEL_LEN,
    )
    return [
        EpisodeSpec(plan, problem, 0, tuple(task.prompt(problem)), Constant(task.feedback(problem)))
        for problem in task.load("dev")[:count]
    ]


@pytest.fixture(scope="session")
def new_pool(tiny_model: WeightVersion, verifiers: list[Any]) -> MakePool:
    """Makes pools of one worker each, unless told otherwise; the caller releases them."""

    def make(
        label: str,
        sync_deadline_s: float = 600.0,
        sync_backend: str = "object_store",
        **workers: object,
    ) -> RolloutPool:
        settings = {
            "num_cpus": 0.3,
            "vllm": {"enforce_eager": True},
        }
        return RolloutPool(
            tiny_model,
            ModelConfig(path=tiny_model.checkpoint, max_model_len=MAX_MODEL_LEN),
            WorkersConfig(**(settings | workers)),
            SyncConfig(backend=sync_backend, bucket_bytes=64 * 1024, deadline_s=sync_deadline_s),
            verifiers,
            seed=0,
            label=label,
        )

    return make


@pytest.fixture
def make_pool(new_pool: MakePool) -> Iterator[MakePool]:
    """`new_pool` for one test, which releases them."""
    pools: list[RolloutPool] = []

    def make(label: str, **settings: Any) -> RolloutPool:
        pools.append(new_pool(label, **settings))
        return pools[-1]

    yield make
    for pool in pools:
        pool.release()


@pytest.fixture(scope="session")
def pair(new_pool: MakePool) -> Iterator[RolloutPool]:
    """A running pool of two workers with version 0. A test that takes one leaves another."""
    pool = new_pool("pair", min_workers=2, max_workers=2, episodes_in_flight=4, max_attempts=2)
    pool.wait_ready()
    yield pool
    pool.release()


def on_a_worker(pool: RolloutPool, work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work(worker, *arguments)` returns in the process of the pool's oldest worker."""
    handle: Any = next(iter(pool._members.values())).handle
    return ray.get(handle.__ray_call__.remote(work, *arguments))
