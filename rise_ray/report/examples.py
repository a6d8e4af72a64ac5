"""Example trajectories for the page, chosen by rule and not by taste."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rise_ray.mdp import Outcome, Trajectory

KINDS = {
    (False, True): "wrong at first, right at the end",
    (True, True): "right at first, right at the end",
    (True, False): "right at first, wrong at the end",
    (False, False): "wrong at first, wrong at the end",
}
"""What became of a run, by (first turn right, last turn right)."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of run: how many there are of it, and the first by problem id."""

    title: str
    count: int
    total: int
    example: Trajectory


def first_of_each_kind(trajectories: Iterable[Trajectory]) -> list[Kind]:
    """For each kind of run that occurs, its first by problem id and sample.

    Runs with an unknown verdict, and runs without a turn, belong to no kind.
    """
    known = sorted(filter(_is_known, trajectories), key=lambda t: (t.problem.id, t.sample))
    kinds = []
    for (first, last), title in KINDS.items():
        members = [t for t in known if (_right(t, 0), _right(t, -1)) == (first, last)]
        if members:
            kinds.append(Kind(title, len(members), len(known), members[0]))
    return kinds


def _is_known(trajectory: Trajectory) -> bool:
    outcomes = [turn.attempt.verdict.outcome for turn in trajectory.turns]
    return bool(outcomes) and Outcome.ERROR not in outcomes


def _right(trajectory: Trajectory, turn: int) -> bool:
    return trajectory.turns[turn].attempt.verdict.outcome is Outcome.CORRECT
