"""Reward-weighted regression (RISE, arXiv 2407.18219, section 3), for the rules that use it.

Without the exponent all that is chosen weighs alike: filtered imitation.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

from pydantic import Field

from rise_ray.config.base import Settings
from rise_ray.mdp import Attempt, Trajectory
from rise_ray.relabel.rewards import center_of, is_degenerate, weight_of
from rise_ray.relabel.rule import RuleContext


class WeightedByReward(Settings):
    """w = exp((reward - center) / tau) for each response; without tau, 1."""

    tau: float | None = Field(default=0.4, gt=0)
    """Temperature of the reward weights; null: every response weighs 1."""
    centering: Literal["none", "problem", "state"] = "none"
    """Subtract from the reward nothing, the mean of all that was sampled on the problem, or that
    of the state's samples."""
    unparseable_reward: float = Field(default=0.0, ge=-1, le=0)
    """Reward of a response without a readable answer (the released code: -1 on GSM8K)."""
    drop_duplicates: bool = True
    """Keep one of several equal responses in equal states, over all the data of a training."""
    drop_degenerate: bool = True
    """Drop a response with a word more than 150 times or longer than 300 characters."""

    @property
    def needs_tally(self) -> bool:
        return self.tau is not None and self.centering == "problem"

    def weight(
        self,
        trajectory: Trajectory,
        turn: int,
        response: Attempt,
        reward: float,
        context: RuleContext,
        dropped: Counter[str],
    ) -> float | None:
        """Of a response in the state of `turn`; None, and counted, where it is to be dropped."""
        if self.drop_degenerate and is_degenerate(response.text):
            dropped["degenerate"] += 1
            return None
        if self.tau is None:
            return 1.0
        center = center_of(trajectory, turn, self.centering, self.unparseable_reward, context.tally)
        if center is None:
            dropped["no_center"] += 1
            return None
        return weight_of(reward, center, self.tau)
