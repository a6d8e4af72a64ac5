"""What a task is: it loads problems, words the prompt and the feedback, and checks answers.

A task of your own is a class with these methods; name it in the config as
`task.name: my_package.my_module:MyTask`. It must not import torch, Ray or vLLM: its checker runs
in small child processes (`rise_ray.verify`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Protocol

from rise_ray.mdp import Message, Problem, Verdict


class Task(Protocol):
    """One kind of problem. Constructed as `Task(**task.options)` from the config."""

    name: str
    """Stored with every problem and in every problem id."""

    def load(self, split: str) -> list[Problem]:
        """All problems of `split`, in a fixed order.

        Raises:
            DataError: the source is missing, unreadable or malformed (file and line).
        """

    def prompt(self, problem: Problem) -> list[Message]:
        """The first turn's messages (optionally a system message, then one user message)."""

    def feedback(self, problem: Problem) -> str:
        """The user's message after an attempt: constant, so that it tells nothing about it."""

    def check(self, problem: Problem, response: str) -> Verdict:
        """Judge a response. Runs in a child process that is killed at its deadline.

        Never returns `error`: that outcome is the verifier's own, for a check that failed.
        """

    def reference_response(self, problem: Problem) -> str | None:
        """The data set's worked solution in the form the task asks the model for, or None."""

    def demonstrations(
        self, problems: Sequence[Problem], count: int, rng: random.Random
    ) -> Iterator[tuple[Problem, list[Message]]]:
        """`count` chats (user and assistant messages in turn) for a warm start.

        Every assistant message is trained on.
        """

    def vocabulary(self) -> list[str] | None:
        """The words of a closed-vocabulary task (for a word-level tokenizer), or None."""
