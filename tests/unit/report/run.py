"""A whole small run as plain data: what the driver hands to the table and the page."""

from __future__ import annotations

import random
from typing import Any

from rise_ray.config.loading import parse_config
from rise_ray.evaluate.compare import standard_comparisons
from rise_ray.evaluate.metrics import EvalResult, eval_record, evaluate
from rise_ray.mdp import Trajectory
from tests.unit.evaluate.builders import all_asked, trajectory

CONFIG: dict[str, Any] = parse_config(
    "{name: demo, task: {name: countdown}, model: {path: some/model}, "
    "recipe: {rule: {name: revision, tau: 0.5}}}",
    [],
    source="test",
).model_dump(mode="json")

# Chance to be right at turn 1, to fix a wrong answer, to keep a right one.
MODELS = {
    "base": (0.32, 0.27, 0.52),
    "iteration-1": (0.36, 0.28, 0.75),
    "iteration-2": (0.40, 0.28, 0.88),
    "rejection_sampling-2": (0.54, 0.15, 0.83),
}


def episodes(model: str, problems: int = 80) -> list[Trajectory]:
    """Random five-turn runs with five parallel answers on each problem."""
    rng = random.Random(model)
    first, fix, keep = MODELS[model]
    runs = []
    for i in range(problems):
        ease = rng.uniform(-0.3, 0.3)
        right, answers = rng.random() < first + ease, []
        for _ in range(5):
            answers.append("7" if right else rng.choice("34568?"))
            right = rng.random() < (keep if right else fix + ease / 2)
        parallel = ["7" if rng.random() < first + ease else rng.choice("34568") for _ in range(5)]
        runs.append(trajectory(" ".join(answers), " ".join(parallel), problem=f"p{i:03d}"))
    return runs


def results(asked: bool = False) -> dict[str, EvalResult]:
    """Of every model; where it was `asked`, the last one knows what it says, the others do not."""
    found = {}
    for model in MODELS:
        runs = episodes(model)
        if asked:
            right, wrong = (0.9, 0.2) if model == "iteration-2" else (0.4, 0.6)
            runs = [all_asked(one, right, wrong) for one in runs]
        found[model] = evaluate(runs, turns=5, parallel=5, bootstrap=200 if asked else 500, seed=0)
    return found


def records(evaluated: dict[str, EvalResult]) -> list[dict[str, Any]]:
    """metrics.jsonl of the run: collect, train and eval records."""
    lines: list[dict[str, Any]] = []
    for iteration in (1, 2):
        stage = f"iteration-{iteration}"
        lines.append(
            {
                **{"phase": "collect", "stage": stage, "seconds": 33.0},
                **{"trajectories": 500, "episode_errors": 1, "verdict_errors": 2},
                **{"tokens": 98_765},
            }
        )
        lines.append({"phase": "relabel", "stage": stage, "examples": 4321, "seconds": 2.5})
        lines[-1]["data_tokens"] = 50_000
        lines += [
            {"phase": "train", "stage": stage, "step": step, "loss": 2.0 / (step + iteration)}
            for step in range(1, 40)
        ]
        done = {"tokens": 100_000 * iteration, "loss_tokens": 40_000, "last_loss": 0.00008}
        lines.append({"phase": "train", "stage": stage, "seconds": 367.0, **done})
    for model, result in evaluated.items():
        lines.append(
            eval_record(
                *(model, "test", result),
                feedback="neutral",
                window=None,
                sampling={"temperature": 1.0, "top_p": 1.0, "max_tokens": 28},
            )
        )
    return lines


def comparisons(evaluated: dict[str, EvalResult]) -> list[dict[str, Any]]:
    return standard_comparisons(evaluated, list(MODELS)[:3], bootstrap=500, seed=0)
