"""The verifier, with its child processes and deadlines, against `math_verify` in this process.

    python jobs/benchmarks/run.py verifier [--quick]

Answers a second, both sides on one core, in turns; the ratio is of medians. The baseline is the
library as it is used without a verifier: no deadline, no limit of memory, and an exception inside
is an answer that is not equal. The answers are numbers, fractions, expressions and intervals, half
of them right, some in another form than the reference.

`verifier_hostile` is how much longer than others a batch takes, at worst, while one answer spins
until its deadline: against 0.1 s. It has all cores, since what spins has one.
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
HOSTILE = (Problem("hostile", "math", "?", "72"), "\\boxed{(a+b+c+d+e+f+g+h)^{40}}")
"""An answer that is expanded until its deadline."""
MOST_DELAY_S = 0.1
BATCH = 20


def run(quick: bool) -> list[dict[str, Any]]:
    """Two records."""
    return [_hostile(), _rate(quick)]


def _rate(quick: bool) -> dict[str, Any]:
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
    return {
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


def _hostile() -> dict[str, Any]:
    items = _items(BATCH, random.Random(0))
    config = VerifyConfig()
    limits = config.processes, config.deadline_s, config.memory_mib
    with closing(Checker(TaskConfig(name="math"), *limits, spare=True)) as checker:
        before = [_seconds(checker, items) for _ in range(100)]  # the spare one is warm, too
        first_s, (ticket,) = _seconds(checker, [*items, HOSTILE])
        beside = [first_s]
        while not (late := checker.check_beside([], [ticket]).late):
            beside.append(_seconds(checker, items)[0])
    assert late[ticket].outcome is Outcome.ERROR
    usual_s = statistics.median(seconds for seconds, _ in before[50:])
    delay_s = max(beside) - usual_s
    return {
        "name": "verifier_hostile",
        "ratio": round(delay_s / MOST_DELAY_S, 3),
        "delay_s": round(delay_s, 3),
        "baseline": f"{MOST_DELAY_S} s",
        "batch_s": round(usual_s, 3),
        "batches_beside": len(beside),
        "goal": "<= 1",
        "holds": delay_s <= MOST_DELAY_S,
    }


def _seconds(checker: Checker, items: list[Item]) -> tuple[float, list[int]]:
    """That a batch takes, and the tickets of what lasts."""
    started = time.perf_counter()
    verdicts = checker.check_beside(items).verdicts
    return time.perf_counter() - started, [v for v in verdicts if isinstance(v, int)]


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
