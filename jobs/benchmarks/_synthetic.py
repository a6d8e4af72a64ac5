"""Trajectories that no model wrote, for benchmarks of what comes after it: random tokens."""

from __future__ import annotations

import random

from rise_ray.mdp import (
    Attempt,
    FinishReason,
    Outcome,
    Place,
    Problem,
    StopReason,
    Trajectory,
    Turn,
    Verdict,
    trajectory_id,
)

RUN = "benchmark"
VOCABULARY = 32_000


def trajectory(
    problem: Problem,
    place: Place,
    *,
    turns: int,
    candidates: int,
    tokens: int,
    rng: random.Random,
) -> Trajectory:
    """An episode of so many responses of about `tokens` each, a third of them right."""

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.choices(range(VOCABULARY), k=count))

    def attempt() -> Attempt:
        right = rng.random() < 1 / 3
        verdict = Verdict(
            Outcome.CORRECT if right else Outcome.INCORRECT,
            problem.reference if right else str(rng.randrange(1000)),
            "compared",
            verifier_version="benchmark",
        )
        length = rng.randint(tokens // 2, tokens * 3 // 2)
        return Attempt(
            "word " * length, ids(length), FinishReason.STOP, verdict, 0, 0, {"logprob": -1.0}
        )

    visited = tuple(
        Turn(attempt(), tuple(attempt() for _ in range(candidates)), ids(12)) for _ in range(turns)
    )
    return Trajectory(
        id=trajectory_id(RUN, place, problem.id, 0),
        run=RUN,
        place=place,
        problem=problem,
        sample=0,
        prompt_ids=ids(60),
        turns=visited,
        stop_reason=StopReason.MAX_TURNS,
        window=None,
    )


def problem(number: int) -> Problem:
    """Of no task."""
    return Problem(f"problem-{number}", "benchmark", "How many?", "7")
