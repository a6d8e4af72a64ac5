"""A rule that teaches checking beside improving: right answers, and wrong ones that know it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

from pydantic import Field

from rise_ray.mdp import Attempt, Outcome, Trajectory, shown_turns
from rise_ray.relabel.rewards import reward_of
from rise_ray.relabel.rule import Row, RuleContext, response_row
from rise_ray.relabel.rules.weighted import WeightedByReward

_WRONG = (Outcome.INCORRECT, Outcome.UNPARSEABLE)
_RIGHT = "revision_right"


class Revision(WeightedByReward):
    """For every visited state: right candidates, and one new wrong one before any success.

    The right ones: where the attempt before was right, a copy of it if there is one; else those
    whose own verdict says so; else the first. The wrong one only where no attempt that the
    state shows is right: its answer is none of those already shown, and it does not claim to
    be correct.
    """

    name: Literal["revision"] = "revision"
    answers: int = Field(default=1, ge=1)
    """Most right candidates of a state, different in their tokens; a copy is alone."""
    wrong_weight: float = Field(default=1.5, ge=0)
    """Factor on the weight of a state's one new wrong response; 0 takes none."""
    wrong_tokens: int | None = Field(default=None, ge=1)
    """Only so many of its last tokens have loss, those in which it judges itself and states its
    answer, say: so it teaches to know a wrong answer and not to give one. null: all."""

    def rows(
        self, trajectory: Trajectory, context: RuleContext, dropped: Counter[str]
    ) -> Iterator[Row]:
        for turn in range(len(trajectory.turns)):
            for candidate, rule, factor in self._choose(trajectory, turn, dropped):
                response = trajectory.turns[turn].candidates[candidate]
                reward = reward_of(response, self.unparseable_reward)
                assert reward is not None  # only such are chosen
                weight = self.weight(trajectory, turn, response, reward, context, dropped)
                if weight is not None:
                    weight *= factor
                    row = response_row(
                        trajectory, turn, candidate, rule=rule, reward=reward, weight=weight
                    )
                    yield row if rule == _RIGHT else self._only_the_end(row)

    def _only_the_end(self, row: Row) -> Row:
        (span,) = row.spans
        if self.wrong_tokens is None:
            return row
        start = max(span.start, span.end - self.wrong_tokens)
        return replace(row, spans=(replace(span, start=start),))

    def _choose(
        self, trajectory: Trajectory, turn: int, dropped: Counter[str]
    ) -> Iterator[tuple[int, str, float]]:
        """Candidates of a state: number, why it was taken, factor on its weight."""
        candidates = list(enumerate(trajectory.turns[turn].candidates))
        usable = [(n, c) for n, c in candidates if reward_of(c, 0.0) is not None]
        if len(usable) < len(candidates):  # a reason is named where it occurred
            dropped["no_reward"] += len(candidates) - len(usable)
        turns = shown_turns(trajectory.turns, turn, trajectory.window)
        shown = [earlier.attempt for earlier in turns]
        right = [(n, c) for n, c in usable if c.verdict.outcome is Outcome.CORRECT]
        for number in _preferred(right, shown)[: self.answers]:
            yield number, _RIGHT, 1.0
        if self.wrong_weight and all(a.verdict.outcome in _WRONG for a in shown):
            said = {a.verdict.answer for a in shown}
            new = [
                n
                for n, c in usable
                if c.verdict.outcome is Outcome.INCORRECT
                and c.verdict.claims_correct is not True
                and c.verdict.answer not in said
            ]
            if new:
                yield new[0], "revision_wrong", self.wrong_weight


def _preferred(right: list[tuple[int, Attempt]], shown: Sequence[Attempt]) -> list[int]:
    """Different right candidates, the best first; a copy of a right attempt before is alone."""
    different: dict[tuple[int, ...], tuple[int, Attempt]] = {}
    for number, candidate in right:
        different.setdefault(candidate.token_ids, (number, candidate))
    if shown and shown[-1].verdict.outcome is Outcome.CORRECT:
        copy = different.get(shown[-1].token_ids)
        if copy is not None:
            return [copy[0]]
    ranked = sorted(different.values(), key=lambda at: at[1].verdict.claims_correct is not True)
    return [number for number, _ in ranked]
