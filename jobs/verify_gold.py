r"""Check the verifier against a data set's own solutions: how many does it call correct?

    python jobs/verify_gold.py gsm8k /data/gsm8k/train.jsonl
    python jobs/verify_gold.py math                    # the task's data set, from the hub

Every problem's worked solution is given to the verifier as a response, in the child processes
and under the deadline that a run has. Prints each one that is not found correct with what the
verifier says about it, and the rate. Exit status 0: all are correct.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from rise_ray.config import TaskConfig, VerifyConfig
from rise_ray.errors import DataError, RiseError
from rise_ray.mdp import Outcome, Problem, Verdict
from rise_ray.tasks import load_task
from rise_ray.tasks.base import Task
from rise_ray.tasks.dataset import SPLITS
from rise_ray.text import terminal_text
from rise_ray.verify.checker import Checker


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    options = _parser().parse_args(arguments)
    config = TaskConfig(name=options.task, options={"path": options.file} if options.file else {})
    started = time.monotonic()
    try:
        items = gold_items(load_task(config))
        verdicts = check(config, items, options.processes)
    except RiseError as error:
        print(terminal_text(f"verify_gold: error: {error}"), file=sys.stderr)
        return error.exit_code
    wrong = disagreements(items, verdicts)
    for line in wrong:
        print(terminal_text(line, keep=""))
    right = len(items) - len(wrong)
    print(
        f"{options.task}: {right:,} of {len(items):,} gold solutions are correct "
        f"({100 * right / len(items):.2f}%), {time.monotonic() - started:.0f} s"
    )
    return 1 if wrong else 0


def gold_items(task: Task) -> list[tuple[Problem, str]]:
    """Every problem of every split with its worked solution as the response."""
    items = []
    for split in SPLITS:
        for problem in task.load(split):
            response = task.reference_response(problem)
            if response is None:
                raise DataError(f"problem {problem.id}: has no worked solution")
            items.append((problem, response))
    return items


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=["gsm8k", "math"])
    parser.add_argument("file", nargs="?", help="JSON-lines file (default: the hub's data set)")
    parser.add_argument("--processes", type=int, default=2, help="that check (default: 2)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
