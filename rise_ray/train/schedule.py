"""The learning rate of each step: linear warm-up, then a cosine."""

from __future__ import annotations

import math


def lr_factor(step: int, steps: int, warmup_ratio: float, min_ratio: float) -> float:
    """The learning rate of step `step` (from 0) of `steps`, as a share of the peak.

    Unlike transformers' schedules the first step's is not 0: a step that changes nothing would
    be a large part of a short run.
    """
    warmup = math.ceil(warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
