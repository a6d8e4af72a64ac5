"""Training as a run does it against the same steps without Ray.

    python jobs/benchmarks/run.py training [--quick]

Useful tokens a second of the steps, on one rank. rise-ray's side reads the examples' parts through
Ray Data, packs rows and takes DeepSpeed's steps under Ray Train. The baseline has all batches in
memory and takes the same steps, in a plain process. They take turns, each some seconds long, and
the ratio is the median of the turns' ratios: a machine's speed may change in between.
"""

from __future__ import annotations

import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

import ray
from tree_rows import BATCH_TOKENS, TREES, Side, random_examples

from rise_ray.config.settings import TrainConfig
from rise_ray.store.examples import write_example_parts
from rise_ray.store.files import Folder
from rise_ray.train.fit import train
from rise_ray.train.job import TrainJob
from rise_ray.train.ray_train import Ranks

BASE = "package:countdown-base"
GOAL = 0.95


def run(quick: bool) -> list[dict[str, Any]]:
    """One record."""
    if not ray.is_initialized():
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    examples = random_examples(300 if quick else 450, random.Random(0))
    ours, baseline = [], []
    with tempfile.TemporaryDirectory() as path, Ranks() as ranks:
        folder = Folder(f"{path}/examples")
        write_example_parts(folder, examples, seed=0)
        side = Side(Path(path), BASE, examples, TREES)
        side.take(1)
        for number in range(1 + (3 if quick else 9)):  # the first is to warm up
            result = train(_job(path, folder, number), ranks)
            ours.append(result.tokens_per_second)
            baseline.append(side.take(result.steps - 1))
    ratio = statistics.median(a / b for a, b in zip(ours[1:], baseline[1:], strict=True))
    rate, baseline_rate = (statistics.median(rates[1:]) for rates in (ours, baseline))
    return [
        {
            "name": "training",
            "ratio": round(ratio, 3),
            "tokens_per_s": round(rate),
            "baseline": "the same batches in memory, the same DeepSpeed steps, no Ray",
            "baseline_tokens_per_s": round(baseline_rate),
            "goal": f">= {GOAL}",
            "holds": ratio >= GOAL,
            "seconds_to_first_step": round(result.start_seconds, 2),
            "steps": result.steps,
        }
    ]


def _job(path: str, examples: Folder, number: int) -> TrainJob:
    return TrainJob(
        name=f"round={number}",
        config=TrainConfig(workers=1, batch_tokens=BATCH_TOKENS, lr=1e-4, **TREES),
        base=BASE,
        examples=examples.uri,
        output=f"{path}/round={number}",
        storage=f"{path}/storage",
        seed=0,
        token_budget=None,
        dtype="auto",
        trust_remote_code=False,
        parity_sequences=((3, 4, 5, 6),),
        chat_template="{{ messages }}",
        card={},
    )


if __name__ == "__main__":
    import json
    import sys

    from rise_ray.train.engine import quiet_libraries

    quiet_libraries()
    for record in run(quick="--quick" in sys.argv):
        print(json.dumps(record))
