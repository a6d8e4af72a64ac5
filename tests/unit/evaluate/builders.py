"""Small evaluation trajectories from a shorthand, so that tests read like the table they check.

An answer is `7` (right if it is the reference), `?` (no readable answer), `!` (the check failed),
`_` (no answer, so not checked); a `~` before it means truncated, `+` or `-` after it is its own
opinion of its answer.
"""

from __future__ import annotations

import math
from dataclasses import replace

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

REFERENCE = "7"
_CLAIMS = {"+": True, "-": False}


def verdict(answer: str) -> Verdict:
    if answer == "!":
        return Verdict(Outcome.ERROR, None, "deadline of 5 s")
    if answer == "_":
        return Verdict(Outcome.PARTIAL, None, "was not to be checked")
    if answer == "?":
        return Verdict(Outcome.UNPARSEABLE, None, "no box")
    claims, answer = _CLAIMS.get(answer[-1]), answer.rstrip("+-")
    outcome = Outcome.CORRECT if answer == REFERENCE else Outcome.INCORRECT
    return Verdict(outcome, answer, "compared", claims)


def verdicts(answers: str) -> list[Verdict]:
    return [verdict(answer) for answer in answers.split()]


def attempt(answer: str, tokens: int = 10, text: str | None = None) -> Attempt:
    finish = FinishReason.LENGTH if answer.startswith("~") else FinishReason.STOP
    answer = answer.removeprefix("~")
    return Attempt(text or f"it is {answer}", (1,) * tokens, finish, verdict(answer), 0, 0)


def sure(response: Attempt, p: float, logprob: float = -1.0) -> Attempt:
    """The response, asked about: P(right) as the model says, and the answer's log-probability."""
    return replace(response, scores={"sure": math.log(p), "logprob": logprob})


def all_asked(run: Trajectory, right: float, wrong: float) -> Trajectory:
    """Every response asked about, with one P for right answers and one for all others."""

    def of(response: Attempt) -> Attempt:
        return sure(response, right if response.verdict.outcome is Outcome.CORRECT else wrong)

    turns = tuple(
        replace(turn, attempt=of(turn.attempt), candidates=tuple(map(of, turn.candidates)))
        for turn in run.turns
    )
    return replace(run, turns=turns)


def trajectory(
    answers: str,
    parallel: str = "",
    *,
    problem: str = "p0",
    sample: int = 0,
    stop_reason: StopReason = StopReason.MAX_TURNS,
    tokens: int = 10,
    parallel_tokens: int | None = None,
    error: str | None = None,
    question: str = "What is 3 + 4?",
    text: str | None = None,
) -> Trajectory:
    """An episode with these sequential answers and, at its first state, these parallel ones.

    `tokens` is the length of each response, `parallel_tokens` of the parallel ones if it differs.
    """
    candidates = tuple(attempt(answer, parallel_tokens or tokens) for answer in parallel.split())
    turns = tuple(
        Turn(attempt(answer, tokens, text), candidates if i == 0 else ())
        for i, answer in enumerate(answers.split())
    )
    return Trajectory(
        id=trajectory_id("run", Place("iteration", 0, "eval"), problem, sample),
        run="run",
        place=Place("iteration", 0, "eval"),
        problem=Problem(problem, "test", question, REFERENCE),
        sample=sample,
        prompt_ids=(0,),
        turns=turns,
        stop_reason=stop_reason,
        window=None,
        error=error,
    )
