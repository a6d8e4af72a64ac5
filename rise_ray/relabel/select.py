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

from rise_ray.config.settings import RelabelConfig
from rise_ray.mdp import Attempt, Outcome, Trajectory
from rise_ray.relabel.rewards import passes, reward_of


@dataclass(frozen=True, slots=True)
class Selected:
    """A response chosen in the state of `turn`; `candidate` -1 is the attempt itself.

    `factor` multiplies the reward weight.
    """

    turn: int
    candidate: int
    rule: str
    factor: float = 1.0

    def response(self, trajectory: Trajectory) -> Attempt:
        """The chosen response."""
        turn = trajectory.turns[self.turn]
        return turn.attempt if self.candidate < 0 else turn.candidates[self.candidate]


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
            else Selected(turn, -1, "own_attempt")
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
    """For every visited state: one right candidate, and one new wrong one before any success.

    The right one: where the attempt before was right, a copy of it if there is one; else one
    whose own verdict says so; else the first. The wrong one only where no attempt that the
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
        if right:
            yield Selected(turn, _preferred(right, shown), "revision_right")
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


def _preferred(right: list[tuple[int, Attempt]], shown: list[Attempt]) -> int:
    before = shown[-1] if shown and shown[-1].verdict.outcome is Outcome.CORRECT else None

    def preference(item: tuple[int, Attempt]) -> tuple[bool, bool, int]:
        number, candidate = item
        copies = before is not None and candidate.token_ids == before.token_ids
        return not copies, candidate.verdict.claims_correct is not True, number

    return min(right, key=preference)[0]


def _is_new_wrong(candidate: Attempt, said: set[str | None]) -> bool:
    verdict = candidate.verdict
    return (
        verdict.outcome is Outcome.INCORRECT
        and verdict.claims_correct is not True
        and verdict.answer not in said
    )
