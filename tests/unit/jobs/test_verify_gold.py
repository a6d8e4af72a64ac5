"""The check of the verifier against gold solutions finds what disagrees, and says where."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs.verify_gold import main, raw_items
from rise_ray.config import TaskConfig
from rise_ray.tasks import load_task
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
    assert main([task, path]) == 0
