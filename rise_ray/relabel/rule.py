"""What a rule is: a pure function of one trajectory and its own settings to weighted rows.

A rule is a frozen group of settings with a method `rows`, so it can be configured, compared, sent
to other processes and named in every row's provenance. It draws from `RuleContext.draw` only.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from rise_ray.config.settings import CertaintyQuestion
from rise_ray.mdp import Attempt, Span, Trajectory, after_response, derive_seed, state_ids
from rise_ray.relabel.rewards import Tally


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens with weighted spans, named by the response that the last span trains on.

    `turn` and `candidate` (-1: the attempt itself) say which response of the trajectory that is;
    `rule` says why it was taken.
    """

    rule: str
    turn: int
    candidate: int
    reward: float
    input_ids: tuple[int, ...]
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about a response, in tokens, and the words that answer it.

    `ids` are the end of the response's turn, the question, and the header of the answer to it;
    `labels` has the one token of each word.
    """

    ids: tuple[int, ...]
    end_of_turn: int
    labels: tuple[int, ...]

    def after(self, response: Attempt) -> tuple[int, ...]:
        """What follows the response, up to the word."""
        return after_response(self.ids, self.end_of_turn, response.token_ids)


@dataclass(frozen=True, slots=True)
class RuleContext:
    """What a rule may know beside its trajectory.

    `seed` is of its draws; `tally` counts what was sampled on each problem in all trajectories
    that are relabeled, for a rule that `needs_tally`; `asked` is the question of one that is
    `Asking`.
    """

    seed: int
    tally: Tally | None = None
    asked: Asked | None = None

    def draw(self, trajectory: Trajectory) -> random.Random:
        """The trajectory's own draws: the same for every order and division of the data."""
        return random.Random(derive_seed(self.seed, trajectory.id))


class Rule(Protocol):
    """Which responses of a trajectory are trained on, and with what weights."""

    @property
    def drop_duplicates(self) -> bool:
        """Whether one of several rows with the same tokens is enough."""

    @property
    def needs_tally(self) -> bool:
        """Whether it reads `RuleContext.tally`, which costs a pass over all trajectories."""

    def rows(
        self, trajectory: Trajectory, context: RuleContext, dropped: Counter[str]
    ) -> Iterator[Row]:
        """The rows of a trajectory that did not end as `error`.

        `dropped` counts the responses that become none, by reason.
        """


@runtime_checkable
class Asking(Protocol):
    """A rule whose rows ask about responses."""

    @property
    def question(self) -> CertaintyQuestion:
        """In words: a rule has no tokenizer, so `RuleContext.asked` has it in tokens."""


def response_at(trajectory: Trajectory, turn: int, candidate: int) -> Attempt:
    """A response of a trajectory; `candidate` -1 is the attempt itself."""
    at = trajectory.turns[turn]
    return at.attempt if candidate < 0 else at.candidates[candidate]


def response_row(
    trajectory: Trajectory,
    turn: int,
    candidate: int,
    *,
    rule: str,
    reward: float,
    weight: float,
    state_of: int | None = None,
) -> Row:
    """One response, all of it weighted alike, in the state of its turn, or of turn `state_of`."""
    shown = turn if state_of is None else state_of
    state = state_ids(trajectory.prompt_ids, trajectory.turns, shown, trajectory.window)
    ids = (*state, *response_at(trajectory, turn, candidate).token_ids)
    return Row(rule, turn, candidate, reward, ids, (Span(len(state), len(ids), weight),))
