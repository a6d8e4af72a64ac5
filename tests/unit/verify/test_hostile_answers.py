"""Hostile answers: each is settled inside its deadline, in bounded memory, beside good ones."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rise_ray.config.settings import TaskConfig
from rise_ray.mdp import Outcome, Problem
from rise_ray.verify.checker import MAX_RESPONSE_CHARS, Checker
from tests.unit.verify.harness import DEADLINE_S, PROBLEM, checking
from tests.unit.verify.hostile_answers import CORPUS, WORTH_72

TASKS = ("gsm8k", "math", "countdown")
SLOW_MATH, SLOW_GSM8K = (pytest.param(n, marks=pytest.mark.slow) for n in ("math", "gsm8k"))
COUNTDOWN = replace(PROBLEM, task="countdown", data={"numbers": [5, 6, 9], "target": 21})
RIGHT = {
    "gsm8k": r"so \boxed{72}",
    "math": r"so \boxed{72}",
    "countdown": r"\boxed{ ( 6 * 5 ) - 9 }",
}
ANSWER_DEADLINE_S = 1.0
START_S = 6.0  # a killed child's replacement on a busy machine: it imports sympy
MEMORY_MIB = 768


def problem_of(task: str) -> Problem:
    return COUNTDOWN if task == "countdown" else replace(PROBLEM, task=task)


@pytest.fixture(scope="module")
def checkers() -> Iterator[dict[str, Checker]]:
    started = {n: Checker(TaskConfig(name=n), 2, ANSWER_DEADLINE_S, MEMORY_MIB) for n in TASKS}
    for name, checker in started.items():  # sympy's first use is slow
        checker.check([(problem_of(name), RIGHT[name])])
    yield started
    for checker in started.values():
        checker.close()


class PeakMemory:
    """The most resident memory that any child of ours had, in MiB, while the block ran."""

    def __enter__(self) -> PeakMemory:
        self.mib = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.02):
            for child in me.children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    if child.cmdline() != me.cmdline():  # before its exec, it is a copy of us
                        self.mib = max(self.mib, child.memory_info().rss / 2**20)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("task", ["countdown", SLOW_MATH, SLOW_GSM8K])
def test_every_hostile_answer_has_a_verdict_with_its_reason_in_time_and_memory(
    task: str, checkers: dict[str, Checker]
) -> None:
    problem, checker = problem_of(task), checkers[task]
    names = list(CORPUS)
    items = [(problem, rf"\boxed{{{CORPUS[name]}}}") for name in names]
    started = time.monotonic()
    with PeakMemory() as peak:
        verdicts = dict(zip(names, checker.check(items), strict=True))
    took_s = time.monotonic() - started
    for name, verdict in verdicts.items():
        assert verdict.outcome is not Outcome.CORRECT, name
        assert verdict.reason, name
        verdict.reason.encode()
        (verdict.answer or "").encode()
    errors = [name for name, verdict in verdicts.items() if verdict.outcome is Outcome.ERROR]
    assert took_s < 30 + len(errors) * (ANSWER_DEADLINE_S + START_S)
    assert peak.mib < MEMORY_MIB
    after = [checker.check([(problem, RIGHT[task])])[0].outcome for _ in range(3)]
    assert Outcome.CORRECT in after  # in a new process sympy's first use is slow
    assert set(after) <= {Outcome.CORRECT, Outcome.ERROR}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("task", ["math", SLOW_GSM8K])
def test_a_right_answer_that_is_too_deep_to_check_is_never_incorrect(
    task: str, checkers: dict[str, Checker]
) -> None:
    items = [(problem_of(task), rf"\boxed{{{text}}}") for text in WORTH_72.values()]
    verdicts = dict(zip(WORTH_72, checkers[task].check(items), strict=True))
    assert [n for n, v in verdicts.items() if v.outcome is Outcome.INCORRECT] == []
    assert verdicts["more signs"].outcome is Outcome.ERROR


@pytest.mark.slow
def test_without_a_box_the_corpus_is_read_too(checkers: dict[str, Checker]) -> None:
    short = [text for text in CORPUS.values() if len(text) < 1000]
    for marked in (short, [f"#### {text}" for text in short]):
        verdicts = checkers["gsm8k"].check([(problem_of("gsm8k"), text) for text in marked])
        assert Outcome.CORRECT not in {verdict.outcome for verdict in verdicts}


def test_ten_thousand_answers_at_once_are_settled_with_hostile_ones_among_them(hostile) -> None:
    responses = [f"r{n}" for n in range(10_000)]
    bad = {n: ("spin", "exit", "memory", "recurse")[n % 4] for n in range(7, 10_000, 1250)}
    for n, response in bad.items():
        responses[n] = response
    with checking(hostile, processes=2, deadline_s=DEADLINE_S) as checker:
        started = time.monotonic()
        verdicts = checker.check([(PROBLEM, text) for text in responses])
        took_s = time.monotonic() - started
    assert [n for n, v in enumerate(verdicts) if v.outcome is Outcome.ERROR] == list(bad)
    assert all(v.answer == responses[n] for n, v in enumerate(verdicts) if n not in bad)
    assert took_s < 30 + len(bad) * (DEADLINE_S + START_S)


@pytest.mark.parametrize("response", ["memory", "memory slowly"])
def test_memory_of_a_check_is_bounded(hostile, response: str) -> None:
    with checking(hostile, memory_mib=512) as checker, PeakMemory() as peak:
        bomb, good = checker.check([(PROBLEM, response), (PROBLEM, "ok")])
    assert (bomb.outcome, good.outcome) == (Outcome.ERROR, Outcome.CORRECT)
    assert "memory" in bomb.reason
    assert peak.mib < 512


PIECES = st.sampled_from(
    [
        *(r"\frac", r"\sqrt", r"\sum", r"\int", r"\left(", r"\right)", r"\text", r"\boxed{"),
        *(r"\begin{matrix}", r"\end{matrix}", r"\infty", r"\pi", r"\{", r"\}", r"\\", r"\%"),
        *("{", "}", "^", "_", "(", ")", "!", "+", "-", "*", "/", "=", "<", ",", "&", "|", "$"),
        *("0", "1", "9", "72", "1e9", ".", " ", "x", "####", "\x00", "\ud800", "\u202e", "\n"),
    ]
)
ANY_TEXT = st.text(st.characters(), max_size=80)  # lone surrogates included
HOSTILE_TEXT = st.lists(PIECES, max_size=25).map("".join) | ANY_TEXT


@pytest.mark.timeout(600)
@pytest.mark.parametrize("task", TASKS)
@settings(max_examples=25, deadline=None)
@given(texts=st.lists(HOSTILE_TEXT, min_size=1, max_size=6))
def test_any_text_gets_a_named_outcome_with_a_reason(
    task: str, texts: list[str], checkers: dict[str, Checker]
) -> None:
    problem = problem_of(task)
    responses = [form for text in texts for form in (text, rf"\boxed{{{text}}}", f"#### {text}")]
    verdicts = checkers[task].check([(problem, response) for response in responses])
    assert len(verdicts) == len(responses)
    for verdict in verdicts:
        assert verdict.reason
        if verdict.outcome is Outcome.ERROR:  # the machinery may fail to judge, and says why
            assert "deadline" in verdict.reason or "check failed" in verdict.reason


def test_the_corpus_fits_what_a_checker_looks_at() -> None:
    assert all(len(text) < MAX_RESPONSE_CHARS for text in CORPUS.values())
