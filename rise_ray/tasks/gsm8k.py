"""GSM8K: grade-school word problems whose answer is a number (arXiv 2110.14168)."""

from __future__ import annotations

import re
from typing import ClassVar

from rise_ray.errors import DataError
from rise_ray.mdp import Problem, Verdict
from rise_ray.tasks.answers import judge_answer
from rise_ray.tasks.boxed import last_boxed
from rise_ray.tasks.dataset import DatasetTask
from rise_ray.tasks.source import Row, text_column

MARK = "####"
_CALCULATION = re.compile(r"<<[^<>\n]*>>")
_SEPARATOR = re.compile(r"\{,\}|\\[,!;]|(?<=\d),(?=\d{3}(?!\d))")
# A number with its currency and its unit: `\$1,080.50`, `18 dollars`, `7\text{ hours}`, `50\%`.
_QUANTITY = re.compile(
    r"\\?[$€£]?\s*(?P<number>[-+]?\d+(?:\.\d+)?|[-+]?\.\d+)\s*"
    r"(?:\\?[%$€£]|\\(?:text|mathrm)\{[^{}\d]*\}|[A-Za-z][A-Za-z ]*)?\.?",
    re.ASCII,
)


class Gsm8k(DatasetTask):
    """Rows `{question, answer}`; the answer ends in `#### <number>`."""

    name: ClassVar[str] = "gsm8k"

    path: str = "openai/gsm8k"
    subset: str | None = "main"

    def problem(self, row: Row) -> Problem:
        """The problem of a row; calculator annotations (`<<48/2=24>>`) are stripped."""
        question = text_column(row, "question").strip()
        worked, mark, reference = text_column(row, "answer").rpartition(MARK)
        reference = _SEPARATOR.sub("", reference.strip())
        if not mark or not reference:
            raise DataError(f"{row[0]}: column `answer` has no `{MARK} <answer>` at its end")
        return Problem(
            id=self.problem_id(question, reference),
            task=self.name,
            question=question,
            reference=reference,
            solution=_CALCULATION.sub("", worked).strip(),
        )

    def check(self, problem: Problem, response: str) -> Verdict:
        r"""Compare the last `\boxed{}`, or else the text after the last `####`."""
        answer = last_boxed(response)
        if answer is None and MARK in response:
            answer = response.rpartition(MARK)[2].strip().partition("\n")[0].strip()
        return judge_answer(problem.reference, answer and number_of(answer))

    def reference_response(self, problem: Problem) -> str | None:
        r"""The worked solution, ending in its answer within `\boxed{}`."""
        if problem.solution is None:
            return None
        return f"{problem.solution}\nThe final answer is \\boxed{{{problem.reference}}}."


def number_of(answer: str) -> str:
    """The number in an answer that is one with a currency or a unit; else the answer itself."""
    quantity = _QUANTITY.fullmatch(_SEPARATOR.sub("", answer.strip()))
    return quantity["number"] if quantity else answer
