"""Whatever a response or a check does, every item gets its verdict, and only its own."""

from __future__ import annotations

import os
import random
import signal
import threading
from dataclasses import replace

import pytest

from rise_ray.config.settings import TaskConfig
from rise_ray.mdp import Outcome
from rise_ray.tasks.countdown import Countdown
from rise_ray.verify.checker import MAX_RESPONSE_CHARS, Checker
from tests.unit.verify.harness import DEADLINE_S, HOSTILE_TASK, PROBLEM, checking


@pytest.mark.parametrize("processes", [1, 3])
def test_verdicts_come_in_the_items_order_and_equal_the_tasks_own(processes):
    task = Countdown()
    chats = task.demonstrations(task.load("dev"), 500, random.Random(0))
    items = [(problem, messages[1].content) for problem, messages in chats]
    with checking(TaskConfig(name="countdown"), processes) as checker:
        assert len(checker.pids) == processes
        verdicts = checker.check(items)
        expected = [
            replace(task.check(*item), verifier_version=checker.verifier_version) for item in items
        ]
        assert verdicts == expected
        assert checker.check([]) == []


def test_verdicts_name_the_version_that_the_children_have_loaded(tmp_path, monkeypatch):
    (tmp_path / "own_task.py").write_text(HOSTILE_TASK)
    monkeypatch.syspath_prepend(tmp_path)
    task = TaskConfig(name="own_task:Hostile")
    with checking(task) as checker:
        (old,) = checker.check([(PROBLEM, "ok")])
        long = checker.check([(PROBLEM, "x" * (MAX_RESPONSE_CHARS + 1))])[0]
        assert old.verifier_version.startswith("own_task:Hostile/")
        assert long.verifier_version == checker.verifier_version == old.verifier_version
    with checking(task) as checker:
        assert checker.verifier_version == old.verifier_version
    (tmp_path / "own_task.py").write_text(HOSTILE_TASK + "# another rule\n")
    with checking(task) as checker:
        (new,) = checker.check([(PROBLEM, "ok")])
    assert new.verifier_version != old.verifier_version


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("spin", "deadline of 1 s"),
        ("spin in C", "deadline of 1 s"),
        ("sleep", "deadline of 1 s"),
        ("exit", "exit status 7"),
        ("sys.exit", "exit status 3"),
        ("segfault", "SIGSEGV"),
        ("memory", "memory"),
        ("memory slowly", "memory"),
        ("recurse", "RecursionError"),
        ("raise", "RuntimeError: boom"),
        ("nothing", "returned NoneType"),
    ],
)
def test_a_failing_check_costs_its_own_item_and_no_other(hostile, response, reason):
    responses = [*(f"a{n}" for n in range(40)), response, *(f"b{n}" for n in range(40))]
    with checking(hostile, deadline_s=DEADLINE_S if "deadline" in reason else 30.0) as checker:
        verdicts = checker.check([(PROBLEM, text) for text in responses])
        assert verdicts[40].outcome is Outcome.ERROR
        assert reason in verdicts[40].reason
        assert len(verdicts[40].reason) < 600
        others = verdicts[:40] + verdicts[41:]
        assert [v.answer for v in others] == responses[:40] + responses[41:]
        assert {v.outcome for v in others} == {Outcome.CORRECT}


def test_every_item_may_fail_and_all_get_their_own_verdict(hostile):
    responses = ["exit", "spin", "ok", "memory", "memory", "exit", "ok", "raise", "sleep", "ok"]
    with checking(hostile, processes=2, deadline_s=DEADLINE_S) as checker:
        verdicts = checker.check([(PROBLEM, text) for text in responses])
    good = [verdict.outcome is Outcome.CORRECT for verdict in verdicts]
    assert good == [text == "ok" for text in responses]


def test_a_deadline_counts_from_when_the_item_starts_and_not_from_when_it_was_sent(
    tmp_path, monkeypatch
):
    source = HOSTILE_TASK + "\nclass Slow(Hostile):\n    def check(self, problem, response):\n"
    source += "        time.sleep(0.1)\n        return super().check(problem, response)\n"
    (tmp_path / "slow_task.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    task = TaskConfig(name="slow_task:Slow")
    with checking(task, deadline_s=DEADLINE_S) as checker:  # 2 s of work
        verdicts = checker.check([(PROBLEM, text) for text in ["ok"] * 20])
    assert {verdict.outcome for verdict in verdicts} == {Outcome.CORRECT}


def test_a_deadline_is_cpu_time_that_a_busy_machine_does_not_take(hostile):
    with checking(hostile, deadline_s=DEADLINE_S) as checker:
        (pid,) = checker.pids
        resume = threading.Timer(1.5 * DEADLINE_S, os.kill, (pid, signal.SIGCONT))
        os.kill(pid, signal.SIGSTOP)
        resume.start()
        verdicts = checker.check([(PROBLEM, "stopped"), (PROBLEM, "nap")])
        assert checker.pids == [pid]
    assert {verdict.outcome for verdict in verdicts} == {Outcome.CORRECT}


def test_an_item_that_lasts_holds_up_no_other_where_a_process_is_spare(hostile):
    with checking(hostile, deadline_s=2.0, spare=True) as checker:
        old = start_spare(checker)
        good = [(PROBLEM, f"r{n}") for n in range(100)]
        first = checker.check_beside([*good, (PROBLEM, "spin"), *good])
        ticket = first.verdicts.pop(100)
        assert [v.answer for v in first.verdicts] == [response for _, response in good] * 2
        beside = checker.check_beside(good, [ticket])
        assert (beside.late, beside.unknown) == ({}, [])  # it spins still
        while not (late := checker.check_beside([], [ticket]).late):
            pass
        assert "deadline of 2 s" in late[ticket].reason
        assert checker.check_beside([], [ticket]).unknown == [ticket]
        assert len(set(checker.pids) & set(old)) == 1


def test_the_spare_process_takes_its_turn_so_that_it_is_warm_when_it_is_needed(hostile):
    with checking(hostile, spare=True) as checker:
        pids = start_spare(checker)
        checked = [checker.check_beside([(PROBLEM, "pid")]) for _ in range(2)]
    (first,), (second,) = (each.verdicts for each in checked)
    assert {first.answer, second.answer} == {str(pid) for pid in pids}


def test_what_lasts_gets_its_own_verdict_and_so_does_what_is_behind_it(hostile):
    responses = [f"{'count' if n % 7 == 3 else 'r'} {n}" for n in range(60)]
    with checking(hostile, spare=True) as checker:
        start_spare(checker)
        checked = checker.check_beside([(PROBLEM, response) for response in responses])
        tickets = [verdict for verdict in checked.verdicts if isinstance(verdict, int)]
        assert tickets
        late: dict = {}
        while len(late) < len(tickets):
            late |= checker.check_beside([], [t for t in tickets if t not in late]).late
        verdicts = [late[v] if isinstance(v, int) else v for v in checked.verdicts]
    assert [verdict.answer for verdict in verdicts] == responses


def test_an_interrupted_call_leaves_the_tickets_of_others_good(hostile, monkeypatch):
    with checking(hostile, deadline_s=5.0, spare=True) as checker:
        start_spare(checker)
        (ticket,) = checker.check_beside([(PROBLEM, "count")]).verdicts
        assert isinstance(ticket, int)

        def interrupt(child):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(checker, "_serve", interrupt)
            with pytest.raises(KeyboardInterrupt):
                checker.check_beside([(PROBLEM, "old")])
        while not (late := checker.check_beside([], [ticket]).late):
            pass
        assert late[ticket].answer == "count"


def start_spare(checker: Checker) -> list[int]:
    """The process ids once the spare one works, too."""
    checker.check_beside([(PROBLEM, "first")])
    checker.check_beside([])
    old = checker.pids
    assert len(old) == 2
    while not all(child.ready for child in checker._children):
        checker.check_beside([])
    return old


def test_what_a_task_prints_or_reads_does_not_disturb_the_protocol(hostile):
    with checking(hostile) as checker:
        verdicts = checker.check([(PROBLEM, text) for text in ("print", "read", "ok")])
    assert [verdict.answer for verdict in verdicts] == ["print", "read", "ok"]


def test_text_in_verdicts_can_be_stored(hostile):
    with checking(hostile) as checker:
        (verdict,) = checker.check([(PROBLEM, "surrogate")])
    assert verdict.answer.encode() == rb"\ud800"
    assert verdict.reason.encode()


def test_large_items_do_not_block_the_pipes(hostile):
    responses = ["\u202e" * 200_000, "spin"] * 2 + ["x" * 900_000] * 3
    with checking(hostile, deadline_s=DEADLINE_S) as checker:
        verdicts = checker.check([(PROBLEM, text) for text in responses])
    outcomes = [verdict.outcome.value for verdict in verdicts]
    assert outcomes == ["correct", "error", "correct", "error", "correct", "correct", "correct"]


def test_an_over_long_response_is_unparseable_and_never_sent(hostile):
    with checking(hostile) as checker:
        verdicts = checker.check(
            [(PROBLEM, "x" * (MAX_RESPONSE_CHARS + 1)), (PROBLEM, "x" * MAX_RESPONSE_CHARS)]
        )
    assert [verdict.outcome.value for verdict in verdicts] == ["unparseable", "correct"]
    assert str(MAX_RESPONSE_CHARS) in verdicts[0].reason


@pytest.mark.parametrize("unit", ["{", "}", r"\boxed{", "\\", "\x00", "#### ", "9", "\u202e"])
@pytest.mark.parametrize("name", ["gsm8k", "math", "countdown"])
def test_a_megabyte_of_anything_is_unparseable_and_no_error(name, unit, megabyte_checkers):
    checker = megabyte_checkers[name]
    problem = replace(PROBLEM, data={"numbers": [5, 6, 9], "target": 21})
    (verdict,) = checker.check([(problem, unit * (MAX_RESPONSE_CHARS // len(unit)))])
    assert verdict.outcome is Outcome.UNPARSEABLE


@pytest.fixture(scope="module")
def megabyte_checkers():
    checkers = {
        n: Checker(TaskConfig(name=n), 1, 20.0, 1024) for n in ("gsm8k", "math", "countdown")
    }
    yield checkers
    for checker in checkers.values():
        checker.close()
