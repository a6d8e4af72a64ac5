"""Recipes whose relabeling lasts long enough to be seen, and struck, on a busy machine."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

from rise_ray.mdp import Trajectory
from rise_ray.recipes.rise import Rise
from rise_ray.relabel.rule import Row, RuleContext
from rise_ray.relabel.rules.revision import Revision
from tests.system.own_recipe import Chains, LastAttempts

TRAJECTORY_S = 0.15
SLOW_RISE, SLOW_CHAINS = (f"tests.system.slow_recipe:{name}" for name in ("SlowRise", "SlowChains"))


class Slow:
    """Beside a rule: the same, later."""

    def rows(
        self, trajectory: Trajectory, context: RuleContext, dropped: Counter[str]
    ) -> Iterator[Row]:
        """See `rise_ray.relabel.rule.Rule`."""
        time.sleep(TRAJECTORY_S)
        yield from super().rows(trajectory, context, dropped)  # type: ignore[misc]


class SlowRevision(Slow, Revision):
    """`Revision`, later."""


class SlowRise(Rise):
    """`Rise` with this rule."""

    name: str
    rule: SlowRevision


class SlowLastAttempts(Slow, LastAttempts):
    """`LastAttempts`, later."""


class SlowChains(Chains):
    """`Chains` with this rule."""

    rule: SlowLastAttempts = SlowLastAttempts()
