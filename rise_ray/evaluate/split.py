"""Which problems of a split are measured on: a draw of it, never its first rows.

Data sets are sorted (MATH by subject), so the first rows are another distribution than the whole.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from rise_ray.mdp import Problem


def held_out(problems: Sequence[Problem], count: int | None, seed: int) -> list[Problem]:
    """The `count` problems to measure on.

    Args:
        problems: of the split.
        count: how many; None, or more than there are: all, in their order.
        seed: of the draw. Equal seeds draw from the front of one shuffle, so that a larger
            `count` contains every smaller one.
    """
    if count is None or count >= len(problems):
        return list(problems)
    order = list(problems)
    random.Random(seed).shuffle(order)
    return order[:count]
