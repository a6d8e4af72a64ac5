"""Which responses of a trajectory become examples, and under which rule.

A rule looks at one trajectory and names responses in its visited states. `improved` is RISE's
own (arXiv 2407.18219, section 4.1): the best candidate of a state, under one of four filters.
`revision` teaches checking as well: one right candidate, and, while nothing right has been said,
one new wrong one that knows it is wrong.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from rise_ray.config import RelabelConfig
from rise_ray.mdp import Attempt, Outcome, Trajectory
from rise_ray.relabel.rewards import passes, reward_of


ATTEMPT, ATTEMPT_BEFORE = -1, -2


@dataclass(frozen=True, slots=True)
class Selected:
    """A response chosen in the state of `turn`; `factor` multiplies its reward weight.

    `candidate` numbers the state's candidates; `ATTEMPT` is the attempt made in that state,
    `ATTEMPT_BEFORE` the one of the turn before.
    """

    turn: int
    candidate: int
    rule: str
    factor: float = 1.0

    def response(self, trajectory: Trajectory) -> Attempt:
        """The chosen response."""
        if self.candidate == ATTEMPT_BEFORE:
            return trajectory.turns[self.turn - 1].attempt
        turn = trajectory.turns[self.turn]
        return turn.attempt if self.candidate == ATTEMPT else turn.candidates[self.candidate]


def improved(
    trajectory: Trajectory, config: RelabelConfig, dropped: Counter[str]
) -> Iterator[Selected]:
    """The best candidate of every state, or of the last with the attempts of the others.

    Of several best the first is taken. `dropped` counts what does not enter, by reason.
    """
    assert config.filter != "revision"
    rewards = [reward_of(t.attempt, config.unparseable_reward) for t in trajectory.turns]
    for turn in range(len(trajectory.turns)):
        relabeled = config.states == "all" or turn == len(trajectory.turns) - 1
        choice = (
            _best_candidate(trajectory, turn, config)
            if relabeled
            else Selected(turn, ATTEMPT, "own_attempt")
        )
        if choice is None:
            dropped["no_candidate_with_reward"] += 1
            continue
        reward = reward_of(choice.response(trajectory), config.unparseable_reward)
        if reward is None:
            dropped["no_reward"] += 1
            continue
        verdict = passes(config.filter, reward, rewards[:turn])
        if verdict:
            yield choice
        else:
            dropped["filtered" if verdict is False else "earlier_reward_unknown"] += 1


def revision(
    trajectory: Trajectory, config: RelabelConfig, dropped: Counter[str]
) -> Iterator[Selected]:
    """For every visited state: one right response, and one new wrong one before any success.

    The right one: where the attempt before was right, a copy of it; else a right candidate whose
    own verdict says so, else the first right one. The wrong one only where no attempt that the
    state shows is right: its answer is none of those already shown, and it does not claim to
    be correct.
    """
    for turn in range(len(trajectory.turns)):
        candidates = list(enumerate(trajectory.turns[turn].candidates))
        usable = [(n, c) for n, c in candidates if reward_of(c, 0.0) is not None]
        if len(usable) < len(candidates):
            dropped["no_reward"] += len(candidates) - len(usable)
        shown = _shown(trajectory, turn)
        right = [(n, c) for n, c in usable if c.verdict.outcome is Outcome.CORRECT]
        if shown and reward_of(shown[-1], 0.0) == 1.0:
            yield Selected(turn, ATTEMPT_BEFORE, "revision_keep")
        elif right:
            claimed = (n for n, c in right if c.verdict.claims_correct)
            yield Selected(turn, next(claimed, right[0][0]), "revision_right")
        if all(a.verdict.outcome in (Outcome.INCORRECT, Outcome.UNPARSEABLE) for a in shown):
            said = {a.verdict.answer for a in shown}
            new = [n for n, c in usable if _is_new_wrong(c, said)]
            if new:
                yield Selected(turn, new[0], "revision_wrong", config.wrong_weight)


def rejection_sampled(trajectory: Trajectory, rng: random.Random) -> Iterator[Selected]:
    """The control: one right answer to the bare problem, drawn evenly from all that were found."""
    first = trajectory.turns[:1]
    right = [
        Selected(0, n, "rejection_sampling")
        for turn in first
        for n, response in enumerate((turn.attempt, *turn.candidates), start=-1)
        if reward_of(response, 0.0) == 1.0
    ]
    if right:
        yield rng.choice(right)


def _best_candidate(trajectory: Trajectory, turn: int, config: RelabelConfig) -> Selected | None:
    candidates = trajectory.turns[turn].candidates
    rewards = [reward_of(c, config.unparseable_reward) for c in candidates]
    known = [(reward, -n) for n, reward in enumerate(rewards) if reward is not None]
    if not known:
        return None
    rule = "teacher" if config.strategy == "distill" else "best_of_n"
    return Selected(turn, -max(known)[1], rule)


def _shown(trajectory: Trajectory, turn: int) -> list[Attempt]:
    """The attempts that the state of `turn` holds."""
    first = 0 if trajectory.window is None else max(0, turn - (trajectory.window - 1))
    return [t.attempt for t in trajectory.turns[first:turn]]


def _is_new_wrong(candidate: Attempt, said: set[str | None]) -> bool:
    verdict = candidate.verdict
    return (
        verdict.outcome is Outcome.INCORRECT
        and verdict.claims_correct is not True
        and verdict.answer not in said
    )
