"""Example trajectories for the page, chosen by rule and not by taste."""

from __future__ import annotations

from collections import defaultdict
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
    runs: dict[tuple[bool, bool], list[Trajectory]] = defaultdict(list)
    for run in sorted(trajectories, key=lambda run: (run.problem.id, run.sample)):
        outcomes = [turn.attempt.verdict.outcome for turn in run.turns]
        if outcomes and Outcome.ERROR not in outcomes:
            first, last = (outcomes[turn] is Outcome.CORRECT for turn in (0, -1))
            runs[first, last].append(run)
    total = sum(map(len, runs.values()))
    return [
        Kind(title, len(runs[kind]), total, runs[kind][0])
        for kind, title in KINDS.items()
        if kind in runs
    ]
