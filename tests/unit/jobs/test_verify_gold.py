"""The check of the verifier against gold solutions finds what disagrees, and says where."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs.verify_gold import main, raw_items
from rise_ray.config.settings import TaskConfig
from rise_ray.mdp import Outcome
from rise_ray.tasks import load_task
from rise_ray.tasks.gsm8k import Gsm8k
from rise_ray.tasks.math import Math
from tests.unit.problem_files import write_rows

GOOD = {"question": "What is 70 + 2?", "answer": "70 + 2 = <<70+2=72>>72\n#### 72"}
WRITTEN = {"question": "What is 1,000 + 80?", "answer": "<<1000+80=1080>>1080\n#### 1,080"}
BAD = {"question": "What is unreadable?", "answer": "nobody knows\n#### $"}
# Where the data are, for whoever has them: they are no part of the repository.
DATA = {"gsm8k": "RISE_RAY_GSM8K", "math": "RISE_RAY_MATH"}


def rows(last: dict[str, str]) -> list[object]:
    """Enough to have a problem in each split."""
    return [{**GOOD, "question": f"{GOOD['question']} ({n})"} for n in range(60)] + [last]


def test_gold_solutions_that_are_all_correct_are_exit_status_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gsm8k", str(write_rows(tmp_path / "data.jsonl", rows(WRITTEN)))]) == 0
    out = capsys.readouterr().out
    assert "gsm8k: 61 of 61 gold solutions are correct (100.00%)" in out
    assert "gsm8k: 61 of 61 answers as written are correct (100.00%)" in out


def test_an_answer_as_written_is_the_response_and_not_its_normal_form(tmp_path: Path) -> None:
    task = load_task(
        TaskConfig(
            name="gsm8k", options={"path": str(write_rows(tmp_path / "data.jsonl", [WRITTEN]))}
        )
    )
    ((problem, response),) = raw_items(task)
    assert (problem.reference, response) == ("1080", WRITTEN["answer"])


def test_a_disagreement_is_listed_with_its_cause(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gsm8k", str(write_rows(tmp_path / "data.jsonl", rows(BAD)))]) == 1
    solution, rate, row, written_rate, _ = capsys.readouterr().out.splitlines()
    for line in (solution, row):
        assert "error: the check failed: ValueError: the reference answer '$' cannot be" in line
    assert "60 of 61 gold solutions" in rate
    assert "60 of 61 answers" in written_rate


# References as people write them, each with another way to write it.
ODD_NUMBERS = {
    "1,080": "1080",
    "-1,000.25": "-1000.250",
    "12,345,678": r"12{,}345{,}678",
    "-3.50": "-3.5",
    "+7": "7",
    ".5": "0.50",
    "007": "7",
    "3/4": r"\frac{3}{4}",
    "$0.75": r"\$0.75",
    "50%": r"50\%",
}
ODD_EXPRESSIONS = {
    "1,080": "1080",
    r"\$12.50": "12.5",
    r"50\%": "50",
    r"\frac{3}{4}": "0.75",
    r"-\tfrac{7}{2}": "-3.5",
    r"1\frac{1}{2}": r"\frac{3}{2}",
    r"3\sqrt{5}": r"\sqrt{45}",
    r"\frac{2\pi}{3}": r"\dfrac{2}{3}\pi",
    "4+5i": "5i+4",
    "2^{10}": "1024",
    r"\binom{5}{2}": "10",
    "(1,2]": r"\left(1, 2\right]",
    r"(-\infty,-2)\cup(5,\infty)": r"(-\infty, -2) \cup (5, \infty)",
    r"\left(\frac{1}{2},-1\right)": "(0.5, -1)",
    r"\{1,-1\}": r"\{-1,1\}",
    r"45^\circ": r"45^{\circ}",
    r"12\text{ cm}^2": "12",
    r"\text{Thursday}": "Thursday",
    r"\text{(C)}": "C",
    "x=4": "4",
    "3x^2-2x+1": "1-2x+3x^2",
    r"x\le 5": r"x \leq 5",
    r"\begin{pmatrix}1&2\\3&4\end{pmatrix}": r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
}


@pytest.mark.parametrize(("written", "other"), ODD_NUMBERS.items())
def test_an_odd_number_is_found_in_its_row_and_in_another_form(written: str, other: str) -> None:
    row = {"question": "How many?", "answer": f"It is this.\n#### {written}"}
    task = Gsm8k()
    problem = task.problem(("row 1", row))
    for response in (row["answer"], str(task.reference_response(problem)), rf"\boxed{{{other}}}"):
        assert task.check(problem, response).outcome is Outcome.CORRECT, response


@pytest.mark.parametrize(("written", "other"), ODD_EXPRESSIONS.items())
def test_an_odd_expression_is_found_in_its_row_and_in_another_form(
    written: str, other: str
) -> None:
    row = {"problem": "What is it?", "solution": rf"Clearly it is $\boxed{{{written}}}$."}
    task = Math()
    problem = task.problem(("row 1", row))
    for response in (row["solution"], rf"\boxed{{{other}}}"):
        assert task.check(problem, response).outcome is Outcome.CORRECT, response


def test_missing_data_are_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["math", "/nowhere/data.jsonl"]) == 1
    assert capsys.readouterr().err.startswith("verify_gold: error: /nowhere/data.jsonl: ")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("task", DATA)
def test_every_gold_solution_is_correct(task: str) -> None:
    path = os.environ.get(DATA[task])
    if path is None:
        pytest.skip(f"{DATA[task]} does not say where the JSON-lines file is")
    # Again on a busy machine, where a check may meet its deadline: what is wrong stays wrong.
    assert main([task, path]) == 0 or main([task, path]) == 0
