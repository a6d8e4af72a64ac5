"""GSM8K and MATH: rows become problems, splits are stable, and bad rows are named by line."""

from __future__ import annotations

import gzip
import itertools
import json
import random

import pytest

from rise_ray.config.settings import TaskConfig
from rise_ray.errors import DataError
from rise_ray.mdp import Outcome
from rise_ray.tasks import load_task


def gsm8k_row(number):
    return {
        "question": f"What is {number} plus 1,000?",
        "answer": f"{number} + 1000 = <<{number}+1000={number + 1000}>>{number + 1000}.\n"
        f"#### {number + 1000:,}",
    }


def math_row(number):
    return {
        "problem": f"What is half of ${number}$?",
        "level": "Level 1",
        "type": "Algebra",
        "solution": rf"Note \boxed{{x}}. We get $\boxed{{\frac{{{number}}}{{2}}}}$.",
    }


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def task_over(name, path, **options):
    return load_task(TaskConfig(name=name, options={"path": str(path), **options}))


@pytest.fixture
def gsm8k_file(tmp_path):
    return write(tmp_path / "rows.jsonl", [gsm8k_row(n) for n in range(300)])


def test_a_gsm8k_row_becomes_a_problem_without_calculator_annotations(tmp_path):
    path = write(tmp_path / "one.jsonl", [gsm8k_row(7)])
    problem = load_task(TaskConfig(name="gsm8k", options={"paths": {"test": path}})).load("test")[0]
    assert problem.question == "What is 7 plus 1,000?"
    assert problem.reference == "1007"
    assert problem.solution == "7 + 1000 = 1007."
    assert problem.id.startswith("gsm8k-")


def test_a_math_row_refers_to_its_last_box(tmp_path):
    path = write(tmp_path / "one.jsonl", [math_row(5)])
    problem = load_task(TaskConfig(name="math", options={"paths": {"test": path}})).load("test")[0]
    assert problem.reference == r"\frac{5}{2}"
    assert problem.data == {"level": "Level 1", "type": "Algebra"}


@pytest.mark.parametrize(("name", "row"), [("gsm8k", gsm8k_row), ("math", math_row)])
def test_every_gold_solution_is_correct_and_another_problems_is_not(tmp_path, name, row):
    task = task_over(name, write(tmp_path / "rows.jsonl", [row(n) for n in range(1, 200)]))
    problems = task.load("train")
    for problem, other in itertools.pairwise(problems):
        gold = task.check(problem, task.reference_response(problem))
        assert (gold.outcome, problem.id) == (Outcome.CORRECT, problem.id)
        wrong = task.check(problem, task.reference_response(other))
        assert wrong.outcome is Outcome.INCORRECT


def test_one_file_serves_as_three_disjoint_splits_that_cover_it(gsm8k_file):
    task = task_over("gsm8k", gsm8k_file)
    ids = {split: {p.id for p in task.load(split)} for split in ("train", "dev", "test")}
    assert len(ids["train"] | ids["dev"] | ids["test"]) == 300 == sum(map(len, ids.values()))
    assert len(ids["dev"]) == pytest.approx(30, abs=15)
    assert len(ids["test"]) == pytest.approx(30, abs=15)


def test_splits_and_ids_do_not_depend_on_the_order_or_number_of_rows(tmp_path):
    rows = [gsm8k_row(n) for n in range(300)]
    whole = task_over("gsm8k", write(tmp_path / "a.jsonl", rows))
    part = task_over("gsm8k", write(tmp_path / "b.jsonl", rows[200::-1]))
    for split in ("train", "dev", "test"):
        assert {p.id for p in part.load(split)} <= {p.id for p in whole.load(split)}
    assert whole.load("dev") == whole.load("dev")


def test_dev_is_held_out_of_train_where_only_train_and_test_are_given(tmp_path):
    train = write(tmp_path / "train.jsonl", [gsm8k_row(n) for n in range(300)])
    test = write(tmp_path / "test.jsonl", [gsm8k_row(n) for n in range(1000, 1010)])
    options = {"paths": {"train": train, "test": test}, "dev_share": 0.2}
    task = load_task(TaskConfig(name="gsm8k", options=options))
    ids = {split: {p.id for p in task.load(split)} for split in ("train", "dev", "test")}
    assert not ids["train"] & ids["dev"]
    assert len(ids["train"] | ids["dev"]) == 300
    assert len(ids["dev"]) == pytest.approx(60, abs=20)
    assert len(ids["test"]) == 10


def test_a_given_dev_file_leaves_train_whole(tmp_path, gsm8k_file):
    dev = write(tmp_path / "dev.jsonl", [gsm8k_row(n) for n in range(1000, 1005)])
    options = {"paths": {"train": gsm8k_file, "dev": dev}}
    task = load_task(TaskConfig(name="gsm8k", options=options))
    assert len(task.load("train")) == 300
    assert len(task.load("dev")) == 5
    with pytest.raises(DataError, match="`test`"):
        task.load("test")


def test_repeated_rows_are_one_problem(tmp_path):
    path = write(tmp_path / "rows.jsonl", [gsm8k_row(1)] * 3 + [gsm8k_row(2)])
    task = load_task(TaskConfig(name="gsm8k", options={"paths": {"test": path}}))
    assert len(task.load("test")) == 2


def test_a_compressed_file_is_read_like_a_plain_one(tmp_path, gsm8k_file):
    packed = tmp_path / "rows.jsonl.gz"
    with open(gsm8k_file, "rb") as plain:
        packed.write_bytes(gzip.compress(plain.read()))
    assert task_over("gsm8k", packed).load("train") == task_over("gsm8k", gsm8k_file).load("train")


@pytest.mark.parametrize(
    ("name", "line", "says"),
    [
        ("gsm8k", "{not json", ["not valid JSON"]),
        ("gsm8k", '["a"]', ["must be a JSON object", "list"]),
        ("gsm8k", '{"question": "q"}', ["`answer` is missing"]),
        ("gsm8k", '{"question": "q", "answer": ""}', ["`answer`"]),
        ("gsm8k", '{"question": "q", "answer": null}', ["`answer` is None"]),
        ("gsm8k", '{"question": "q", "answer": 72}', ["`answer` is 72"]),
        ("gsm8k", '{"question": " ", "answer": "#### 1"}', ["`question`"]),
        ("gsm8k", '{"question": "q", "answer": "it is 72"}', ["####"]),
        ("gsm8k", '{"question": "q", "answer": "72 ####  "}', ["####"]),
        ("math", '{"problem": "p", "solution": "it is 72"}', ["boxed"]),
        ("math", r'{"problem": "p", "solution": "\\boxed{72"}', ["boxed"]),
        ("math", r'{"problem": "p", "solution": "\\boxed{}"}', ["boxed"]),
    ],
)
def test_a_bad_row_is_an_error_with_its_file_and_line(tmp_path, name, line, says):
    good = json.dumps(gsm8k_row(1) if name == "gsm8k" else math_row(1))
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{good}\n{line}\n")
    with pytest.raises(DataError) as caught:
        load_task(TaskConfig(name=name, options={"paths": {"test": str(path)}})).load("test")
    for text in [f"{path}:2", *says]:
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("name", "column", "row"),
    [
        ("gsm8k", "question", {**gsm8k_row(1), "question": "\ud800?"}),
        ("gsm8k", "answer", {**gsm8k_row(1), "answer": "half an emoji \ud83d\n#### 1"}),
        ("math", "solution", {**math_row(1), "solution": r"\boxed{1}" + "\udfff"}),
    ],
)
def test_half_a_character_is_an_error_with_its_line_and_column(tmp_path, name, column, row):
    good = gsm8k_row(2) if name == "gsm8k" else math_row(2)
    path = write(tmp_path / "rows.jsonl", [good, row])
    with pytest.raises(DataError, match=rf"rows\.jsonl:2: column `{column}` holds half a char"):
        task_over(name, path).load("train")


def test_bytes_that_are_no_text_are_an_error_with_their_line(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'\n{"question": "\xff"}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl:2: not valid JSON"):
        task_over("gsm8k", path).load("train")


def test_a_missing_file_an_empty_file_and_an_unknown_split_are_errors(tmp_path, gsm8k_file):
    with pytest.raises(DataError, match=r"gone\.jsonl: cannot be read"):
        task_over("gsm8k", tmp_path / "gone.jsonl").load("train")
    with pytest.raises(DataError, match=r"empty\.jsonl: cannot be read: .* no data"):
        task_over("gsm8k", write(tmp_path / "empty.jsonl", [])).load("train")
    with pytest.raises(DataError, match="`valid`"):
        task_over("gsm8k", gsm8k_file).load("valid")


def test_a_truncated_compressed_file_is_an_error(tmp_path, gsm8k_file):
    packed = tmp_path / "cut.jsonl.gz"
    with open(gsm8k_file, "rb") as plain:
        packed.write_bytes(gzip.compress(plain.read())[:500])
    with pytest.raises(DataError, match=r"cut\.jsonl\.gz: cannot be read"):
        task_over("gsm8k", packed).load("train")


def test_the_prompt_asks_for_the_box_and_the_feedback_is_constant(gsm8k_file):
    task = task_over("gsm8k", gsm8k_file)
    first, second = task.load("train")[:2]
    (message,) = task.prompt(first)
    assert message.role == "user"
    assert first.question in message.content
    assert r"\boxed{}" in message.content
    assert task.feedback(first) == task.feedback(second)


def test_the_feedback_option_may_repeat_the_question(gsm8k_file):
    task = task_over("gsm8k", gsm8k_file, feedback="Wrong? Again: {question} {x}")
    problem = task.load("train")[0]
    assert task.feedback(problem) == f"Wrong? Again: {problem.question} {{x}}"


def test_demonstrations_are_single_turn_gold_solutions_of_every_problem_equally(gsm8k_file):
    task = task_over("gsm8k", gsm8k_file)
    problems = task.load("dev")
    chats = list(task.demonstrations(problems, 2 * len(problems), random.Random(0)))
    assert sorted(p.id for p, _ in chats) == sorted(2 * [p.id for p in problems])
    for problem, messages in chats:
        assert [m.role for m in messages] == ["user", "assistant"]
        assert messages[1].content == task.reference_response(problem)


def test_a_hub_name_is_loaded_with_its_subset_and_split(monkeypatch):
    """The hub cannot be reached from tests: this checks the call and the rows' way from there."""
    calls = []
    rows = [gsm8k_row(1)]
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: calls.append((a, k)) or rows)
    assert len(load_task(TaskConfig(name="gsm8k")).load("test")) == 1
    assert calls == [(("openai/gsm8k", "main"), {"split": "test"})]


def test_datasets_itself_loads_what_is_no_json_lines_file(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "math_data"
    folder.mkdir()
    for split, count in (("train", 100), ("test", 10)):
        write(folder / f"{split}.jsonl", [math_row(n) for n in range(1, count + 1)])
    task = task_over("math", folder)
    counts = {split: len(task.load(split)) for split in ("train", "dev", "test")}
    assert counts["train"] + counts["dev"] == 100
    assert counts["dev"] > 0
    assert counts["test"] == 10


def test_an_unreachable_hub_is_an_error_that_names_the_data_set(tmp_path, monkeypatch):
    missing = tmp_path / "no_such_folder"  # `datasets` looks for a folder before the hub
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"no_such_folder.*\.jsonl"):
        task_over("math", missing).load("test")
