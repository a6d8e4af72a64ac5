"""The verifier as Ray actors: a thin shell around `Checker`, replicated and restarted."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import ray
from ray.actor import ActorHandle

from rise_ray.config.settings import TaskConfig, VerifyConfig
from rise_ray.verify.checker import Checked, Checker, Item

_WATCH = "watch"  # the threads that answer while another one checks


class Verifier:
    """Checks items of one task in the child processes of its node."""

    def __init__(self, task: TaskConfig, config: VerifyConfig) -> None:
        self._task = task
        self._config = config

    def check(self, items: Sequence[Item], asked: Collection[int] = ()) -> Checked:
        """Verdicts, or tickets to ask with (see `Checker.check_beside`)."""
        return self._checker.check_beside(items, asked)

    def pids(self) -> list[int]:
        return self._checker.pids

    def wait_ready(self) -> None:
        """Start the child processes that are missing; returns once all are up."""
        self._checker.wait_ready()

    @ray.method(concurrency_group=_WATCH)
    def progress(self) -> int:
        """`Checker.progress`: answered at once, also while a check is under way."""
        checker: Checker | None = vars(self).get("_checker")
        return 0 if checker is None else checker.progress

    @cached_property
    def _checker(self) -> Checker:
        """Made by the first call and not by the constructor.

        So an error reaches the caller as what it is, and the children's parent thread (they die
        with it) is the one that serves all calls.
        """
        config = self._config
        limits = config.processes, config.deadline_s, config.memory_mib
        return Checker(self._task, *limits, spare=True)


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
    actor = ray.remote(num_cpus=config.num_cpus, max_restarts=-1, concurrency_groups={_WATCH: 1})
    verifier = actor(Verifier)
    return [
        VerifierHandle(verifier.remote(task, config), config.progress_deadline_s)
        for _ in range(config.actors)
    ]
