"""A recipe that is not rise-ray's: two phases an iteration, the second on what the first made.

First answers are sampled and the right ones trained on; then the trained model is asked for chains
of attempts, and their last attempts are trained on, by a rule of its own. It stands for what a user
writes in a module of theirs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Literal

from rise_ray.config.base import Settings
from rise_ray.config.recipe import RecipeConfig
from rise_ray.mdp import FinishReason, Trajectory
from rise_ray.relabel.rule import Row, RuleContext, response_row
from rise_ray.run.specs import Episodes
from rise_ray.run.tracks import Track


class LastAttempts(Settings):
    """The last attempt of every chain, if it ended by itself; later ones weigh more."""

    name: Literal["last_attempts"] = "last_attempts"
    drop_duplicates: bool = True
    needs_tally: bool = False
    per_turn: float = 0.5
    """Weight for each turn that was taken."""

    def rows(
        self, trajectory: Trajectory, context: RuleContext, dropped: Counter[str]
    ) -> Iterator[Row]:
        """See `rise_ray.relabel.rule.Rule`."""
        turn = len(trajectory.turns) - 1
        if trajectory.turns[turn].attempt.finish_reason is FinishReason.LENGTH:
            dropped["truncated"] += 1
            return
        weight = self.per_turn * (turn + 1)
        yield response_row(trajectory, turn, -1, rule=self.name, reward=0.0, weight=weight)


class Chains(RecipeConfig):
    """Settings of the recipe."""

    samples: int = 4
    """Attempts of each chain."""
    rule: LastAttempts = LastAttempts()

    def execute(self, track: Track) -> None:
        """One iteration after the other."""
        policy = track.base()
        for at in track.iterations():
            asked = at.roll("ask", policy, Episodes(turns=self.samples))
            again = at.roll("ask_again", policy, Episodes(turns=2, window=1))
            policy = at.train(at.rows(self.rule, asked, again), track.start(policy, policy))
            at.evaluate(policy)
