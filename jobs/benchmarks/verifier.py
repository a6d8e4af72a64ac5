"""The verifier, with its child processes and deadlines, against `math_verify` in this process.

    python jobs/benchmarks/run.py verifier [--quick]

Answers a second, both sides on one core, in turns; the ratio is of medians. The baseline is the
library as it is used without a verifier: no deadline, no limit of memory, and an exception inside
is an answer that is not equal. The answers are numbers, fractions, expressions and intervals, half
of them right, some in another form than the reference.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from contextlib import closing
from typing import Any

import psutil
from math_verify import parse, verify

from rise_ray.config.settings import TaskConfig, VerifyConfig
from rise_ray.mdp import Outcome, Problem
from rise_ray.verify.checker import Checker, Item

GOAL = 0.8
ROUNDS = 5


def run(quick: bool) -> list[dict[str, Any]]:
    """One record."""
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])  # of the children, too
    items = _items(300 if quick else 2000, random.Random(0))
    ours, baseline = [], []
    config = VerifyConfig()
    checker = Checker(TaskConfig(name="math"), 1, config.deadline_s, config.memory_mib)
    with closing(checker):
        checker.check(items[:20])
        for _ in range(ROUNDS):
            started = time.perf_counter()
            verdicts = checker.check(items)
            ours.append(time.perf_counter() - started)
            started = time.perf_counter()
            equal = [_equal(problem.reference, response) for problem, response in items]
            baseline.append(time.perf_counter() - started)
        (child,) = checker.pids
        mbytes = psutil.Process(child).memory_info().rss / 1e6
    right = [verdict.outcome is Outcome.CORRECT for verdict in verdicts]
    rate, baseline_rate = (len(items) / statistics.median(s) for s in (ours, baseline))
    return [
        {
            "name": "verifier",
            "ratio": round(rate / baseline_rate, 3),
            "answers_per_s": round(rate),
            "baseline": "math_verify in this process",
            "baseline_answers_per_s": round(baseline_rate),
            "goal": f">= {GOAL}",
            "holds": rate / baseline_rate >= GOAL,
            "agreement": sum(map(bool.__eq__, right, equal)) / len(items),
            "child_mbytes": round(mbytes),
        }
    ]


def _equal(reference: str, response: str) -> bool:
    gold = parse(f"\\boxed{{{reference}}}", parsing_timeout=None)
    return bool(verify(gold, parse(response, parsing_timeout=None), timeout_seconds=None))


def _items(count: int, rng: random.Random) -> list[Item]:
    made = []
    for number in range(count):
        a, b, c = rng.sample(range(2, 60), 3)
        reference, equal = rng.choice(
            [
                (f"{a * b}", f"{a * b}"),
                (f"\\frac{{{a}}}{{{b}}}", f"{a}/{b}"),
                (f"{a / 8}", f"\\frac{{{a}}}{{8}}"),
                (f"x^2+{a + b}x+{a * b}", f"(x+{a})(x+{b})"),
                (f"{a}\\sqrt{{{b}}}", f"\\sqrt{{{b}}} \\cdot {a}"),
                (f"({a},{a + b}]", f"({a}, {a + b}]"),
            ]
        )
        said = equal if rng.random() < 0.5 else f"{reference}+{c}"
        response = f"We find it step by step. The answer is \\boxed{{{said}}}."
        made.append((Problem(str(number), "math", "?", reference), response))
    return made


if __name__ == "__main__":
    import json
    import sys

    for record in run(quick="--quick" in sys.argv):
        print(json.dumps(record))
