"""The verifier as Ray actors: a thin shell around `Checker`, replicated and restarted."""

from __future__ import annotations

from collections.abc import Sequence

import ray
from ray.actor import ActorHandle

from rise_ray.config import TaskConfig, VerifyConfig
from rise_ray.mdp import Problem, Verdict
from rise_ray.verify.checker import Checker


class Verifier:
    """Checks items of one task in the child processes of its node."""

    def __init__(self, task: TaskConfig, config: VerifyConfig) -> None:
        self._checker = Checker(task, config.processes, config.deadline_s, config.memory_mib)

    def check(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """One verdict per item, in their order (see `Checker.check`)."""
        return self._checker.check(items)

    def pids(self) -> list[int]:
        """Of the child processes."""
        return self._checker.pids

    def close(self) -> None:
        """Kill the child processes, before the actor itself is killed."""
        self._checker.close()


def start_verifiers(task: TaskConfig, config: VerifyConfig) -> list[ActorHandle]:
    """`config.actors` verifiers, which Ray restarts wherever and whenever they die.

    A call that was under way when its actor died raises `ray.exceptions.RayActorError`: checking
    has no side effects, so the caller sends the items again, to this verifier or another.
    """
    actor = ray.remote(num_cpus=config.num_cpus, max_restarts=-1)(Verifier)
    return [actor.remote(task, config) for _ in range(config.actors)]
