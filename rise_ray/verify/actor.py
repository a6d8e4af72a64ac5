"""The verifier as Ray actors: a thin shell around `Checker`, replicated and restarted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import ray
from ray.actor import ActorHandle

from rise_ray.config.settings import TaskConfig, VerifyConfig
from rise_ray.mdp import Verdict
from rise_ray.verify.batch import Item
from rise_ray.verify.checker import Checker

_CALLS_AT_ONCE = 10_000  # each waits for its own items, and for nobody else's


class Verifier:
    """Checks items of one task in the child processes of its node."""

    def __init__(self, task: TaskConfig, config: VerifyConfig) -> None:
        self._task = task
        self._config = config
        self._checker: Checker | None = None
        self._starting = asyncio.Lock()

    async def check(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict per item, in their order (see `Checker.check`)."""
        return await asyncio.wrap_future((await self._started()).submit(items))

    async def pids(self) -> list[int]:
        return (await self._started()).pids

    async def wait_ready(self) -> None:
        """Start the child processes that are missing; returns once all are up."""
        await asyncio.to_thread((await self._started()).wait_ready)

    async def progress(self) -> int:
        """`Checker.progress`: answered at once, also while checks are under way."""
        return 0 if self._checker is None else self._checker.progress

    async def _started(self) -> Checker:
        """Made by the first call, not by the constructor: an error reaches the caller as it is."""
        config = self._config
        async with self._starting:
            if self._checker is None:
                self._checker = await asyncio.to_thread(
                    Checker, self._task, config.processes, config.deadline_s, config.memory_mib
                )
        return self._checker


@dataclass(frozen=True, slots=True)
class VerifierHandle:
    """A verifier as other processes hold it: pass it around, and check with `Verification`.

    `progress_deadline_s`: a verifier that has work and settles nothing for so long is hung.
    """

    actor: ActorHandle
    progress_deadline_s: float

    def restart(self) -> None:
        """Kill the verifier, hung or not; Ray starts it again."""
        ray.kill(self.actor, no_restart=False)

    def stop(self) -> None:
        """Kill the verifier for good; its children end with it."""
        ray.kill(self.actor)


def start_verifiers(task: TaskConfig, config: VerifyConfig) -> list[VerifierHandle]:
    """`config.actors` verifiers, which Ray restarts wherever and whenever they die."""
    options = {"num_cpus": config.num_cpus, "max_restarts": -1, "max_concurrency": _CALLS_AT_ONCE}
    verifier = ray.remote(Verifier).options(**options)
    return [
        VerifierHandle(verifier.remote(task, config), config.progress_deadline_s)
        for _ in range(config.actors)
    ]
