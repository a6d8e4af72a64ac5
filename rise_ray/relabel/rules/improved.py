"""RISE's own rule (arXiv 2407.18219, section 4.1): the best candidate of a state, if it passes.

The candidates are the model's own samples (self-distillation) or a teacher's answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Literal

from rise_ray.mdp import Trajectory
from rise_ray.relabel.rewards import passes, reward_of
from rise_ray.relabel.rule import Row, RuleContext, response_at, response_row
from rise_ray.relabel.rules.weighted import WeightedByReward


class Improved(WeightedByReward):
    """The best candidate of every state, or of the last with the attempts of the others.

    Of several best the first is taken.
    """

    name: Literal["improved"] = "improved"
    states: Literal["all", "last"] = "all"
    """Relabel every visited state (the paper) or a trajectory's last (the released code)."""
    filter: Literal["all", "better", "best", "success"] = "all"
    """Which responses enter: all; those with a higher reward than the turn before; than which no
    earlier turn has a higher one; the right ones."""

    def rows(
        self, trajectory: Trajectory, context: RuleContext, dropped: Counter[str]
    ) -> Iterator[Row]:
        rewards = [reward_of(t.attempt, self.unparseable_reward) for t in trajectory.turns]
        for turn in range(len(trajectory.turns)):
            candidate, rule = self._choose(trajectory, turn)
            if candidate is None:
                dropped["no_candidate_with_reward"] += 1
                continue
            response = response_at(trajectory, turn, candidate)
            reward = reward_of(response, self.unparseable_reward)
            if reward is None:
                dropped["no_reward"] += 1
                continue
            passed = passes(self.filter, reward, rewards[:turn])
            if not passed:
                dropped["filtered" if passed is False else "earlier_reward_unknown"] += 1
                continue
            weight = self.weight(trajectory, turn, response, reward, context, dropped)
            if weight is not None:
                yield response_row(
                    trajectory, turn, candidate, rule=rule, reward=reward, weight=weight
                )

    def _choose(self, trajectory: Trajectory, turn: int) -> tuple[int | None, str]:
        """The candidate of a state (None: no reward of one is known), and why it was taken."""
        if self.states == "last" and turn < len(trajectory.turns) - 1:
            return -1, "own_attempt"
        candidates = trajectory.turns[turn].candidates
        rewards = [reward_of(c, self.unparseable_reward) for c in candidates]
        known = [(reward, -n) for n, reward in enumerate(rewards) if reward is not None]
        if not known:
            return None, ""
        best = -max(known)[1]
        return best, "teacher" if candidates[best].weight_version < 0 else "best_of_n"
