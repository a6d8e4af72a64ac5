"""What each phase rolls: pure functions of the config."""

from __future__ import annotations

import random
from collections.abc import Sequence

from rise_ray.config.settings import RunConfig
from rise_ray.errors import ConfigError
from rise_ray.mdp import Phase, Problem, derive_seed
from rise_ray.rollout.episode import EpisodePlan

BASE, CONTROL = "base", "control"


def stage_name(phase: Phase, iteration: int) -> str:
    """`iteration-N` of RISE, `control-N` of the control."""
    return f"{'control' if phase is Phase.CONTROL else 'iteration'}-{iteration}"


def phase_of(stage: str) -> Phase:
    """The inverse of `stage_name`: what a stage's training data were rolled out for."""
    return Phase.CONTROL if stage.startswith(f"{CONTROL}-") else Phase.COLLECT


def evaluated_models(config: RunConfig) -> dict[str, tuple[int, Phase]]:
    """Every model that a run evaluates: its iteration, and the phase its episodes are kept in."""
    models = {BASE: (0, Phase.EVAL)}
    for iteration in range(1, config.iterations + 1):
        models[stage_name(Phase.EVAL, iteration)] = (iteration, Phase.EVAL)
    if config.control.enabled and config.iterations:
        models[CONTROL] = (config.iterations, Phase.CONTROL_EVAL)
    return models


def rollout_phases(config: RunConfig) -> dict[str, tuple[int, Phase]]:
    """Every stage that rolls episodes, by its key in the journal: the phase they are kept in."""
    phases = [Phase.COLLECT, Phase.CONTROL] if config.control.enabled else [Phase.COLLECT]
    collected = {
        f"{stage_name(phase, iteration)}/collect": (iteration, phase)
        for phase in phases
        for iteration in range(1, config.iterations + 1)
    }
    evaluated = {f"{model}/eval": where for model, where in evaluated_models(config).items()}
    return collected | evaluated


def iteration_problems(
    config: RunConfig, problems: Sequence[Problem], iteration: int
) -> list[Problem]:
    """The iteration's training problems: the next `problems` of one seeded shuffle.

    No problem comes again before all have come; every resume gives the same.

    Raises:
        ConfigError: an iteration asks for more problems than there are.
    """
    count = len(problems) if config.problems is None else config.problems
    if count > len(problems):
        raise ConfigError(f"`problems` = {count}: split `{config.split}` has only {len(problems)}")
    order = list(problems)
    random.Random(derive_seed(config.seed, "problems")).shuffle(order)
    start = (iteration - 1) * count
    return [order[n % len(order)] for n in range(start, start + count)]


def collect_plan(config: RunConfig, iteration: int) -> EpisodePlan:
    """RISE's episodes: attempts over turns; candidates at every state unless a teacher answers."""
    rollout = config.rollout
    distill = config.relabel.strategy == "distill"
    return EpisodePlan(
        run=config.name,
        iteration=iteration,
        phase=Phase.COLLECT,
        seed=config.seed,
        turns=rollout.turns,
        window=rollout.window,
        stop_on_success=rollout.stop_on_success,
        candidates=0 if distill else rollout.candidates,
        first_state_only=False,
        sampling=rollout.sampling,
        max_model_len=config.model.max_model_len,
    )


def control_plan(config: RunConfig, iteration: int, responses: int) -> EpisodePlan:
    """The control's episodes: `responses` independent answers to the bare problem."""
    return EpisodePlan(
        run=config.name,
        iteration=iteration,
        phase=Phase.CONTROL,
        seed=config.seed,
        turns=1,
        window=None,
        stop_on_success=False,
        candidates=responses - 1,
        first_state_only=True,
        sampling=config.rollout.sampling,
        max_model_len=config.model.max_model_len,
    )


def eval_plan(config: RunConfig, iteration: int, phase: Phase) -> EpisodePlan:
    """RISE's protocol: one sequential run, never stopped, and parallel first answers."""
    protocol = config.evaluation
    return EpisodePlan(
        run=config.name,
        iteration=iteration,
        phase=phase,
        seed=config.seed,
        turns=protocol.turns,
        window=protocol.window,
        stop_on_success=False,
        candidates=protocol.parallel,
        first_state_only=True,
        sampling=protocol.sampling,
        max_model_len=config.model.max_model_len,
    )
