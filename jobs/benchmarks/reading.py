"""What it costs that each of 64 ranks reads and verifies every part of the examples.

    python jobs/benchmarks/run.py reading [--quick]

A rank's rows lie in all parts, so it reads as much as all ranks train on. Measured is one reading
process of one rank of 64, on one core, from local storage: parts read, their SHA-256 checked, its
rows packed. The baseline is 64 ranks that train an 8B model at 8,000 tokens a second each (an H100
at 40% of its peak, 6 FLOPs a parameter and token). The ratio is the share of one core that each
rank's reading then takes; it runs beside the training and has to stay well below 1.
"""

from __future__ import annotations

import random
import tempfile
import time
from typing import Any

from _synthetic import problem, trajectory

from rise_ray.mdp import Place
from rise_ray.relabel.examples import relabel
from rise_ray.relabel.rule import RuleContext
from rise_ray.relabel.rules.improved import Improved
from rise_ray.store.examples import read_lengths, write_example_parts
from rise_ray.store.files import Folder
from rise_ray.train.data import PackedRows
from rise_ray.train.packing import Share, choose_layout, plan_epochs

RANKS, RANK_TOKENS_PER_S = 64, 8_000
GOAL = 0.1
ROW_TOKENS = 4096


def run(quick: bool) -> list[dict[str, Any]]:
    """One record."""
    rng = random.Random(0)
    place = Place("iteration", 1, "collect")
    rolled = [
        trajectory(problem(n), place, turns=5, candidates=4, tokens=150, rng=rng)
        for n in range(600 if quick else 4_000)
    ]
    examples = relabel(rolled, Improved(), ROW_TOKENS, RuleContext(0)).examples
    with tempfile.TemporaryDirectory() as path:
        folder = Folder(path)
        manifest = write_example_parts(folder, examples, seed=0)
        lengths = read_lengths(folder, manifest)
        layout = choose_layout(
            lengths,
            batch_tokens=RANKS * ROW_TOKENS,
            row_tokens=ROW_TOKENS,
            workers=RANKS,
            shared_prefixes=True,
        )
        plan = plan_epochs(lengths, layout, epochs=1, seed=0)
        source = PackedRows(folder, manifest, plan, Share(0, RANKS))
        started = time.process_time()
        for task in source.get_read_tasks(1):
            for _ in task():
                pass
        seconds = time.process_time() - started
    rate, needed = int(plan.tokens.sum()) / seconds, RANKS * RANK_TOKENS_PER_S
    return [
        {
            "name": "reading",
            "ratio": round(needed / rate, 4),
            "tokens_per_s": round(rate),
            "baseline": f"{RANKS} ranks at {RANK_TOKENS_PER_S:,} tokens/s",
            "baseline_tokens_per_s": needed,
            "goal": f"<= {GOAL}",
            "holds": needed / rate <= GOAL,
            "examples": manifest.examples,
            "parts": len(manifest.parts),
        }
    ]


if __name__ == "__main__":
    import json
    import sys

    for record in run(quick="--quick" in sys.argv):
        print(json.dumps(record))
