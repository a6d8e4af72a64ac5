"""What is killed and when: a plan that depends on the config, the number of kills and the seed.

A moment is a stage of the run and a delay inside it, not a time of day: so the kills spread over
the whole run however fast the machine is.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum

from rise_ray.config.settings import RunConfig
from rise_ray.errors import ConfigError
from rise_ray.run.specs import Evaluate, Roll, Rows, Spec, Train, WarmStart
from rise_ray.run.tracks import stages_of


class Kind(StrEnum):
    """What can be killed."""

    WORKER = "worker"
    """A rollout worker in the middle of generation. vLLM's engine core is in the same process."""
    ENGINE = "engine"
    """A process of vLLM's own below a worker: there only with tensor or pipeline parallelism."""
    VERIFIER = "verifier"
    """A verifier actor while episodes roll."""
    CHECK = "check"
    """A verifier's child process, in which answers are checked, while episodes roll."""
    TRAINER = "trainer"
    """A training worker."""
    NODE = "node"
    """A node that hosts a part of the run: its raylet and everything under it."""
    DRIVER = "driver"
    """`rise-ray run` itself; it is started again with --resume."""


_ROLLING = (Kind.WORKER, Kind.ENGINE, Kind.VERIFIER, Kind.CHECK)
_LONGEST_DELAY_S = {kind: 2.0 if kind in _ROLLING else 10.0 for kind in Kind}


@dataclass(frozen=True, slots=True)
class PlannedKill:
    """One kill: due in `stage` or later, `delay_s` after a process of its kind is busy there.

    `choice`, from 0 to 1, picks one of several such processes.
    """

    kind: Kind
    stage: str
    delay_s: float
    choice: float


def stage_keys(config: RunConfig) -> list[str]:
    """The journal's keys of a whole run, in the order in which its stages are declared."""
    return [spec.key for spec in stages_of(config)]


def plan_kills(config: RunConfig, kills: int, seed: int) -> list[PlannedKill]:
    """`kills` kills in the order in which they become due; each kind before any a second time.

    Raises:
        ConfigError: fewer than one kill.
    """
    if kills < 1:
        raise ConfigError(f"{kills} kills: at least one is needed")
    rng = random.Random(seed)
    specs = stages_of(config)
    keys = [spec.key for spec in specs]
    stages = {kind: _stages(kind, config, specs) for kind in Kind}
    kinds: list[Kind] = []
    while len(kinds) < kills:
        kinds += rng.sample(turn := [kind for kind in Kind if stages[kind]], len(turn))
    plan = [
        PlannedKill(
            kind,
            rng.choice(stages[kind]),
            rng.uniform(0, _LONGEST_DELAY_S[kind]),
            rng.random(),
        )
        for kind in kinds[:kills]
    ]
    return sorted(plan, key=lambda kill: keys.index(kill.stage))


def _stages(kind: Kind, config: RunConfig, specs: list[Spec]) -> list[str]:
    """Where a kind may be killed. Not its last stage: it may be over before the delay is."""
    if kind is Kind.ENGINE and not _has_engine_processes(config):
        return []
    where = {
        Kind.TRAINER: (WarmStart, Train),
        Kind.NODE: (WarmStart, Roll, Rows, Train, Evaluate),
        Kind.DRIVER: (WarmStart, Roll, Rows, Train, Evaluate),
    }
    fitting = [s.key for s in specs if isinstance(s, where.get(kind, (Roll, Evaluate)))]
    return fitting[:-1] or fitting


def _has_engine_processes(config: RunConfig) -> bool:
    sizes = ("tensor_parallel_size", "pipeline_parallel_size")
    return any(config.rollout.workers.vllm.get(size, 1) > 1 for size in sizes)
