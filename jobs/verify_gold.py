r"""Check the verifier against a data set's own solutions: how many does it call correct?

    python jobs/verify_gold.py gsm8k /data/gsm8k/train.jsonl
    python jobs/verify_gold.py math                    # the task's data set, from the hub

Every problem's worked solution is given to the verifier as a response, in the child processes
and under the deadline that a run has: in the form that the task asks the model for, and then as
the data set's row has it (GSM8K's ends in `#### 1,080`). Prints each one that is not found correct
with what the verifier says about it, and the rates. Exit status 0: all are correct.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Sequence

from rise_ray.cli.arguments import ArgumentParser
from rise_ray.config.settings import TaskConfig, VerifyConfig
from rise_ray.errors import DataError, RiseError
from rise_ray.mdp import Outcome, Problem, Verdict
from rise_ray.tasks import load_task
from rise_ray.tasks.dataset import SPLITS, DatasetTask
from rise_ray.tasks.source import is_file, read_rows, text_column
from rise_ray.text import terminal_text
from rise_ray.verify.checker import Checker

COLUMNS = {"gsm8k": "answer", "math": "solution"}
"""Which column holds a row's worked solution."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    options = _parser().parse_args(arguments)
    config = TaskConfig(name=options.task, options={"path": options.file} if options.file else {})
    started = time.monotonic()
    try:
        task = load_task(config)
        assert isinstance(task, DatasetTask)
        forms = {"gold solutions": gold_items(task), "answers as written": raw_items(task)}
        items = [item for form in forms.values() for item in form]
        verdicts = iter(check(config, items, options.processes))
    except RiseError as error:
        print(terminal_text(f"verify_gold: error: {error}"), file=sys.stderr)
        return error.exit_code
    status = 0
    for form, items in forms.items():
        wrong = disagreements(items, list(itertools.islice(verdicts, len(items))))
        for line in wrong:
            print(terminal_text(line, keep=""))
        right = len(items) - len(wrong)
        rate = f"{100 * right / len(items):.2f}%"
        print(f"{options.task}: {right:,} of {len(items):,} {form} are correct ({rate})")
        status = 1 if wrong else status
    print(f"{time.monotonic() - started:.0f} s")
    return status


def gold_items(task: DatasetTask) -> list[tuple[Problem, str]]:
    """Every problem of every split with its worked solution as the response."""
    items = []
    for split in SPLITS:
        for problem in task.load(split):
            response = task.reference_response(problem)
            if response is None:
                raise DataError(f"problem {problem.id}: has no worked solution")
            items.append((problem, response))
    return items


def raw_items(task: DatasetTask) -> list[tuple[Problem, str]]:
    """Every row's problem with the text that its reference was taken from as the response.

    A worked solution of GSM8K ends in the reference as the task has normalised it; this one ends
    in what its author wrote, so that reading it is checked too.
    """
    splits = ["train"] if is_file(task.path) else ["train", "test"]
    return [
        (task.problem(row), text_column(row, COLUMNS[task.name]))
        for split in splits
        for row in read_rows(task.path, task.subset, split)
    ]


def check(
    config: TaskConfig, items: Sequence[tuple[Problem, str]], processes: int
) -> list[Verdict]:
    """The verdicts, under a run's default limits."""
    limits = VerifyConfig()
    checker = Checker(config, processes, limits.deadline_s, limits.memory_mib)
    try:
        return checker.check(items)
    finally:
        checker.close()


def disagreements(items: Sequence[tuple[Problem, str]], verdicts: Sequence[Verdict]) -> list[str]:
    """One line for each solution that is not found correct."""
    return [
        f"{problem.id}: {verdict.outcome.value}: {verdict.reason}; answer {verdict.answer!r}, "
        f"reference {problem.reference!r}"
        for (problem, _), verdict in zip(items, verdicts, strict=True)
        if verdict.outcome is not Outcome.CORRECT
    ]


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=list(COLUMNS))
    parser.add_argument("file", nargs="?", help="JSON-lines file (default: the hub's data set)")
    parser.add_argument("--processes", type=int, default=2, help="that check (default: 2)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
