"""Packed rows against right-padded batches: positions that a model computes for the same examples.

    python jobs/benchmarks/run.py packing [--quick]

No model runs: padding costs what its positions cost. Baselines: batches of 8 examples in a random
order (Hugging Face's default), padded to the longest of the batch, and to the longest that is
allowed. The lengths are log-normal, as those of written solutions are. Shared prefixes are left to
`tree_rows.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rise_ray.store.examples import PartLengths
from rise_ray.train.packing import choose_layout, plan_epochs

ROW_TOKENS, BATCH_TOKENS = 2048, 131_072
MEDIAN, SIGMA, SHORTEST = 260, 0.55, 16  # tokens
PART = 10_000
BATCH = 8  # examples
GOAL = 0.95  # of what rows hold


def run(quick: bool) -> list[dict[str, Any]]:
    """A record for each of the two baselines."""
    rng = np.random.default_rng(0)
    parts = [_lengths(rng) for _ in range(2 if quick else 20)]
    layout = choose_layout(
        parts, batch_tokens=BATCH_TOKENS, row_tokens=ROW_TOKENS, workers=1, shared_prefixes=False
    )
    plan = plan_epochs(parts, layout, epochs=1, seed=0)
    packed = plan.steps * plan.rows_per_step * plan.row_tokens
    lengths = rng.permutation(np.concatenate([part.tokens for part in parts]))
    efficiency = float(lengths.sum() / packed)
    batches = lengths.reshape(-1, BATCH)
    baselines = {
        "packing_batch_longest": (
            "right-padding to the batch's longest",
            BATCH * int(batches.max(axis=1).sum()),
        ),
        "packing_max_length": ("right-padding to the row's length", len(lengths) * ROW_TOKENS),
    }
    return [
        {
            "name": name,
            "ratio": round(padded / packed, 3),
            "baseline": baseline,
            "goal": f"efficiency >= {GOAL}",
            "holds": efficiency >= GOAL,
            "efficiency": round(efficiency, 4),
            "baseline_efficiency": round(float(lengths.sum() / padded), 4),
            "examples": len(lengths),
        }
        for name, (baseline, padded) in baselines.items()
    ]


def _lengths(rng: np.random.Generator) -> PartLengths:
    drawn = rng.lognormal(np.log(MEDIAN), SIGMA, PART).astype(np.int64)
    tokens = drawn.clip(SHORTEST, ROW_TOKENS)
    return PartLengths(tokens, tokens // 2, np.zeros_like(tokens))


if __name__ == "__main__":
    import json
    import sys

    for record in run(quick="--quick" in sys.argv):
        print(json.dumps(record))
