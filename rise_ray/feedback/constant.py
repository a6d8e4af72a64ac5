"""Feedback that is the same after right and wrong answers: RISE's own."""

from __future__ import annotations

from dataclasses import dataclass

from rise_ray.mdp import Attempt, Problem


@dataclass(frozen=True, slots=True)
class Constant:
    """One text, whatever was answered."""

    said: str
    name: str = "constant"

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.said,)

    @property
    def tells_verdict(self) -> bool:
        return False

    def text(self, problem: Problem, attempt: Attempt) -> str | None:
        return self.said
