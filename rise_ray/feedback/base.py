"""What the model is told between two attempts, named by what it reveals about the first.

The name stands wherever results do: figures with `oracle` feedback know the reference answer.
A feedback is a value with its texts inside: rollout workers say them without the user's task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol, runtime_checkable

from rise_ray.errors import ConfigError
from rise_ray.feedback.constant import Constant
from rise_ray.feedback.oracle import Oracle
from rise_ray.mdp import Attempt, Problem
from rise_ray.tasks.base import Task


class Feedback(Protocol):
    """The user's message after an attempt."""

    @property
    def name(self) -> str:
        """What it reveals: `constant` and `neutral` nothing, `oracle` whether the answer is right,
        a task's own what the task says."""

    @property
    def texts(self) -> tuple[str, ...]:
        """All that it may say, to know before a run that it fits."""

    @property
    def tells_verdict(self) -> bool:
        """Whether `text` depends on the attempt's verdict: the next turn waits for it then."""

    def text(self, problem: Problem, attempt: Attempt) -> str | None:
        """After this attempt, whose verdict is known where it is told; None: it could not be.

        An episode cannot go on after None: the check failed, and any text would be a guess.
        """


@runtime_checkable
class OwnFeedback(Protocol):
    """A task with kinds of feedback of its own, or with its own words for `oracle`."""

    def own_feedback(self, problem: Problem) -> Mapping[str, Constant | Oracle]:
        """By the name under which results will show it. `constant` and `neutral` are taken."""


def feedback_of(name: str, task: Task, problem: Problem) -> Feedback:
    """The feedback that is called `name`, for one problem, in the task's words.

    `constant` and `neutral` are both the task's one sentence, the same after every attempt.

    Raises:
        ConfigError: there is no such feedback, with those that there are.
    """
    if name in ("constant", "neutral"):
        return Constant(task.feedback(problem), name)
    own: dict[str, Constant | Oracle] = {"oracle": Oracle()}
    if isinstance(task, OwnFeedback):
        own |= task.own_feedback(problem)
    if name not in own:
        raise ConfigError(
            f"feedback `{name}`: task {task.name} has none of this name (allowed: "
            f"constant, neutral, {', '.join(sorted(own))})"
        )
    return replace(own[name], name=name)
