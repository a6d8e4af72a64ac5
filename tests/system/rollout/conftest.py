"""Episodes for the tests' pools, and what is asked of their workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

from rise_ray.config.settings import SamplingConfig
from rise_ray.feedback.constant import Constant
from rise_ray.mdp import Place
from rise_ray.rollout.episode import EpisodePlan, EpisodeSpec
from rise_ray.rollout.pool import RolloutPool
from rise_ray.tasks.countdown import Countdown
from tests.system.conftest import MAX_MODEL_LEN


def make_specs(
    count: int,
    *,
    seed: int = 0,
    turns: int = 2,
    candidates: int = 2,
    max_tokens: int = 16,
    iteration: int = 1,
) -> list[EpisodeSpec]:
    """Episodes on the first `count` problems of Countdown's `dev` split."""
    task = Countdown()
    plan = EpisodePlan(
        run="test",
        place=Place("iteration", iteration, "collect"),
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


def on_a_worker(pool: RolloutPool, work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work(worker, *arguments)` returns in the process of the pool's oldest worker."""
    handle: Any = next(iter(pool._members.values())).handle
    return ray.get(handle.__ray_call__.remote(work, *arguments))
