"""Training trajectories from a shorthand: `attempt | candidate candidate`, one text per turn.

A response is `7` (right), another number (wrong), `?` (no readable answer) or `!` (the check
failed); `~` before it means truncated; `+` or `-` after it is its own opinion of its answer.
Equal shorthands have equal token ids.
"""

from __future__ import annotations

from dataclasses import replace

from rise_ray.mdp import (
    Attempt,
    FinishReason,
    Place,
    Problem,
    StopReason,
    Trajectory,
    Turn,
    trajectory_id,
)
from tests.unit.evaluate.builders import REFERENCE, verdict

COLLECT = Place("iteration", 1, "collect")
PROMPT = (1, 2)
FEEDBACK = (3,)


def response(shorthand: str, seed: int = 0) -> Attempt:
    finish = FinishReason.LENGTH if shorthand.startswith("~") else FinishReason.STOP
    answer = shorthand.strip("~+-")
    claims = {"+": True, "-": False}.get(shorthand[-1])
    found = replace(verdict(answer), claims_correct=claims, verifier_version="v1")
    return Attempt(f"it is {answer}", tuple(shorthand.encode()), finish, found, 2, seed)


def rolled(
    *turns: str,
    place: Place = COLLECT,
    problem: str = "p0",
    window: int | None = None,
    stop_reason: StopReason = StopReason.MAX_TURNS,
) -> Trajectory:
    visited = []
    for number, text in enumerate(turns):
        attempt, _, candidates = text.partition("|")
        visited.append(
            Turn(
                response(attempt.strip(), seed=100 * number),
                tuple(
                    response(word, seed=100 * number + n)
                    for n, word in enumerate(candidates.split(), start=1)
                ),
                FEEDBACK if number < len(turns) - 1 else (),
            )
        )
    return Trajectory(
        id=trajectory_id("run", place, problem, 0),
        run="run",
        place=place,
        problem=Problem(problem, "test", "What is 3 + 4?", REFERENCE),
        sample=0,
        prompt_ids=PROMPT,
        turns=tuple(visited),
        stop_reason=stop_reason,
        window=window,
        error="lost" if stop_reason is StopReason.ERROR else None,
    )
