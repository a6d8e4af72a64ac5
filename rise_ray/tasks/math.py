"""MATH: competition problems whose answer is an expression (arXiv 2103.03874)."""

from __future__ import annotations

from typing import ClassVar

from rise_ray.errors import DataError
from rise_ray.mdp import Problem, Verdict
from rise_ray.tasks.answers import judge_answer
from rise_ray.tasks.boxed import last_boxed
from rise_ray.tasks.dataset import DatasetTask
from rise_ray.tasks.source import Row, text_column


class Math(DatasetTask):
    r"""Rows `{problem, level, type, solution}`; the solution holds its answer in `\boxed{}`."""

    name: ClassVar[str] = "math"

    path: str = "DigitalLearningGmbH/MATH-lighteval"

    def problem(self, row: Row) -> Problem:
        """The problem of a row; its level and type are kept in `data`."""
        question = text_column(row, "problem").strip()
        solution = text_column(row, "solution").strip()
        reference = last_boxed(solution)
        if not reference:
            raise DataError(f"{row[0]}: column `solution` has no \\boxed{{}} with an answer")
        return Problem(
            id=self.problem_id(question, reference),
            task=self.name,
            question=question,
            reference=reference,
            solution=solution,
            data={key: row[1][key] for key in ("level", "type") if key in row[1]},
        )

    def check(self, problem: Problem, response: str) -> Verdict:
        r"""Compare the last `\boxed{}` with the reference."""
        return judge_answer(problem.reference, last_boxed(response))

    def reference_response(self, problem: Problem) -> str | None:
        return problem.solution
