"""Feedback that says whether the answer was right, which only the verifier knows."""

from __future__ import annotations

from dataclasses import dataclass

from rise_ray.mdp import Attempt, Outcome, Problem


@dataclass(frozen=True, slots=True)
class Oracle:
    """One of two texts, by the verdict; an answer that nobody can read is a wrong one."""

    right: str = "Your answer is right. Give it again."
    wrong: str = "Your answer is wrong. Try again."
    name: str = "oracle"

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.right, self.wrong)

    @property
    def tells_verdict(self) -> bool:
        return True

    def text(self, problem: Problem, attempt: Attempt) -> str | None:
        """See `rise_ray.feedback.base.Feedback`; None after a check that failed or was not made."""
        match attempt.verdict.outcome:
            case Outcome.CORRECT:
                return self.right
            case Outcome.INCORRECT | Outcome.UNPARSEABLE:
                return self.wrong
            case Outcome.ERROR | Outcome.PARTIAL:
                return None
