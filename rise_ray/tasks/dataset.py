"""What the tasks over question-and-answer data sets share: where problems come from, splits."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

from pydantic import Field, model_validator

from rise_ray.config.base import Settings
from rise_ray.errors import DataError
from rise_ray.mdp import Message, Problem
from rise_ray.tasks.source import Row, content_hash, is_file, read_rows

SPLITS = ("train", "dev", "test")
TEST_SHARE = 0.1
"""Of a single file that has to serve as all three splits."""
INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."
FEEDBACK = (
    "Please check your solution for mistakes and try again. "
    r"Put your final answer within \boxed{}."
)


class DatasetTask(Settings, ABC):
    """A task whose problems are the rows of a data set; its fields are the task's options."""

    name: ClassVar[str]

    path: str
    """A data set's name on the hub (with splits `train` and `test`), or a JSON-lines file
    (`.jsonl`, `.jsonl.gz`; a path or URI) that is divided 80/10/10 by a hash of the question."""
    subset: str | None = None
    """The hub data set's configuration."""
    paths: dict[str, str] = Field(default_factory=dict)
    """JSON-lines files of single splits, in place of `path`. Without `dev`, a `dev_share` of
    `train` is held out for it."""
    dev_share: float = Field(default=0.1, gt=0, lt=0.9)
    """Share of the questions, by hash, held out as `dev` where the source has none."""
    feedback_text: str = Field(default=FEEDBACK, alias="feedback", min_length=1)
    """The user's message after an attempt; `{question}` in it is replaced by the question, as
    the paper's feedback repeats it."""

    @model_validator(mode="after")
    def _files(self) -> DatasetTask:
        for split, path in self.paths.items():
            if split not in SPLITS:
                raise ValueError(f"`paths`: no split {split!r} (allowed: {', '.join(SPLITS)})")
            if not is_file(path):
                raise ValueError(f"`paths.{split}`: {path!r} is no .jsonl or .jsonl.gz file")
        return self

    @abstractmethod
    def problem(self, row: Row) -> Problem:
        """The problem of a row (its id is given by `problem_id`).

        Raises:
            DataError: a column is missing or empty, or holds no answer (file and line).
        """

    def load(self, split: str) -> list[Problem]:
        """All problems of `split`, in the source's order; exact repetitions are left out.

        Raises:
            DataError: no such split, it is empty, or its source is missing or malformed.
        """
        if split not in SPLITS:
            raise DataError(f"{self.name}: no split `{split}` (allowed: {', '.join(SPLITS)})")
        source, divided = self._source(split)
        problems: dict[str, Problem] = {}
        for row in read_rows(source, self.subset, "test" if split == "test" else "train"):
            problem = self.problem(row)
            if not divided or self._share_of(problem.question, source) == split:
                problems.setdefault(problem.id, problem)
        if not problems:
            raise DataError(f"{source}: no problem for split `{split}`")
        return list(problems.values())

    def prompt(self, problem: Problem) -> list[Message]:
        r"""The question and the instruction to put the answer within `\boxed{}`."""
        return [Message("user", f"{problem.question}\n\n{INSTRUCTION}")]

    def feedback(self, problem: Problem) -> str:
        """The configured text: the same after right and wrong answers."""
        return self.feedback_text.replace("{question}", problem.question)

    def demonstrations(
        self, problems: Sequence[Problem], count: int, rng: random.Random
    ) -> Iterator[tuple[Problem, list[Message]]]:
        """`count` single-turn chats with the worked solutions, every problem equally often."""
        order: list[Problem] = []
        for _ in range(count):
            if not order:
                order = rng.sample(problems, len(problems))
            problem = order.pop()
            solution = self.reference_response(problem)
            if solution is None:
                raise DataError(f"{problem.id}: has no worked solution to demonstrate")
            yield problem, [*self.prompt(problem), Message("assistant", solution)]

    @abstractmethod
    def reference_response(self, problem: Problem) -> str | None:
        r"""The worked solution with its answer in `\boxed{}`, or None if there is none."""

    def vocabulary(self) -> None:
        """None: the language is open."""

    def problem_id(self, question: str, reference: str) -> str:
        """An id that depends on the problem's content alone."""
        return f"{self.name}-{content_hash(question, reference)}"

    def _source(self, split: str) -> tuple[str, bool]:
        """Where the split's rows come from, and whether they are divided by hash."""
        if not self.paths:
            return self.path, is_file(self.path) or split != "test"
        if split in self.paths:
            return self.paths[split], split == "train" and "dev" not in self.paths
        if split == "dev" and "train" in self.paths:
            return self.paths["train"], True
        raise DataError(f"{self.name}: `task.options.paths` has no file for split `{split}`")

    def _share_of(self, question: str, source: str) -> str:
        """The split of a question in a source that is divided."""
        position = int(content_hash(question), 16) / 2**64
        if position < self.dev_share:
            return "dev"
        holds_test = is_file(self.path) and not self.paths
        return "test" if holds_test and position >= 1 - TEST_SHARE else "train"
