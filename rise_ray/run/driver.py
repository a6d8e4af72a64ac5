"""RISE (arXiv 2407.18219) as a loop. Every line is a stage that a resumed run skips if it is done.

run = Run(config, resume=False)
with connected(config, debug=False), Stages(run, Console()) as stages:
    execute(stages)
"""

from __future__ import annotations

from rise_ray.mdp import Phase
from rise_ray.run.plans import BASE, CONTROL, stage_name
from rise_ray.run.stages import Stages


def execute(stages: Stages) -> None:
    """The whole run: the base, RISE's iterations, the control beside them, the report."""
    stages.evaluate(BASE, stages.base())
    iterate(stages, Phase.COLLECT)
    if stages.config.control.enabled:
        iterate(stages, Phase.CONTROL)
    stages.report()


def iterate(stages: Stages, phase: Phase) -> None:
    """RISE's loop; with `Phase.CONTROL`, single-turn rejection sampling at the same budget."""
    config = stages.config
    base = weights = stages.base()
    for iteration in range(1, config.iterations + 1):
        stages.collect(iteration, phase, weights)  # on-policy attempts, candidates at each state
        examples = stages.relabel(iteration, phase)
        start = base if config.start_from == "base" else weights
        weights = stages.train(iteration, phase, examples, start)  # reward-weighted regression
        if phase is Phase.COLLECT:
            stages.evaluate(stage_name(phase, iteration), weights)
    if phase is Phase.CONTROL and config.iterations:
        stages.evaluate(CONTROL, weights)
