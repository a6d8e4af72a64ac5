"""Rewards and weights (RISE, arXiv 2407.18219, section 4): what a checked response is worth."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from rise_ray.mdp import Attempt, FinishReason, Outcome, StopReason, Trajectory

Tally = Mapping[tuple[str, Outcome], int]
"""How often an outcome was sampled on a problem, by the problem's id: tallies simply add up."""


def reward_of(attempt: Attempt, unparseable_reward: float) -> float | None:
    """1 if right, 0 if wrong, `unparseable_reward` without a readable answer.

    None where no reward is known: the check failed, there was nothing to check, or the response
    was truncated. None never becomes a number further on; such a response enters neither the data
    nor a mean.
    """
    if attempt.finish_reason is FinishReason.LENGTH:
        return None
    match attempt.verdict.outcome:
        case Outcome.CORRECT:
            return 1.0
        case Outcome.INCORRECT:
            return 0.0
        case Outcome.UNPARSEABLE:
            return unparseable_reward
        case Outcome.ERROR | Outcome.PARTIAL:
            return None


def mean_reward(attempts: Iterable[Attempt], unparseable_reward: float) -> float | None:
    """Mean of the known rewards; None where there are none."""
    rewards = [r for a in attempts if (r := reward_of(a, unparseable_reward)) is not None]
    return sum(rewards) / len(rewards) if rewards else None


def tally_of(trajectories: Iterable[Trajectory]) -> Counter[tuple[str, Outcome]]:
    """The known outcomes of what models of the run sampled.

    So no teacher's answers, no attempts that an episode was given to start with, and nothing of
    an episode that ended as `error`.
    """
    return Counter(
        (trajectory.problem.id, response.verdict.outcome)
        for trajectory in trajectories
        if trajectory.stop_reason is not StopReason.ERROR
        for turn in trajectory.turns
        for response in (turn.attempt, *turn.candidates)
        if response.sampled and response.weight_version >= 0
        if reward_of(response, 0.0) is not None
    )


def problem_mean(tally: Tally, problem_id: str, unparseable_reward: float) -> float | None:
    """A problem's mean reward; None where no reward is known."""
    right, wrong, unparseable = (
        tally.get((problem_id, outcome), 0)
        for outcome in (Outcome.CORRECT, Outcome.INCORRECT, Outcome.UNPARSEABLE)
    )
    known = right + wrong + unparseable
    return (right + unparseable * unparseable_reward) / known if known else None


def center_of(
    trajectory: Trajectory,
    turn: int,
    centering: Literal["none", "problem", "state"],
    unparseable_reward: float,
    tally: Tally | None,
) -> float | None:
    """What is subtracted from a reward before it becomes a weight (`WeightedByReward.centering`).

    `none` is the released code's; `problem` is the paper's (the raw form favours easy problems), by
    a `tally` of all that is relabeled.
    """
    if centering == "none":
        return 0.0
    if centering == "state":
        return mean_reward(trajectory.turns[turn].candidates, unparseable_reward)
    assert tally is not None, "the rule's `needs_tally` asks for it"
    return problem_mean(tally, trajectory.problem.id, unparseable_reward)


def weight_of(reward: float, center: float, tau: float) -> float:
    """w = exp((reward - center) / tau): reward-weighted regression."""
    return math.exp((reward - center) / tau)


def is_degenerate(text: str) -> bool:
    """One word more than 150 times, or a word of more than 300 characters (released code)."""
    counts = Counter(text.split())
    return any(len(word) > 300 or count > 150 for word, count in counts.items())


def passes(
    name: Literal["all", "better", "best", "success"],
    reward: float,
    earlier: Sequence[float | None],
) -> bool | None:
    """RISE's filters (`Improved.filter`) on a `reward` after attempts with the rewards `earlier`.

    The first turn has none before it and is `better` and `best`. None where an earlier reward
    that decides is unknown.
    """
    if name == "all":
        return True
    if name == "success":
        return reward == 1.0
    if not earlier:
        return True
    if name == "better":
        return None if earlier[-1] is None else reward > earlier[-1]
    if any(r is not None and r > reward for r in earlier):
        return False
    return None if None in earlier else True
