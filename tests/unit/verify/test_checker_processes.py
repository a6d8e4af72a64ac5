"""Children come back when they are killed, and none is left behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from rise_ray.config.settings import TaskConfig
from rise_ray.errors import ConfigError
from rise_ray.mdp import Outcome
from rise_ray.verify import checker as checker_module
from rise_ray.verify.checker import MAX_FAILED_STARTS, Checker, VerifierStartError
from rise_ray.verify.process import ChildProcess
from tests.unit.verify.harness import PROBLEM, checking


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_ended(pids):
    deadline = time.monotonic() + 60
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_child_killed_between_calls_is_replaced_and_no_item_is_blamed(hostile):
    with checking(hostile, processes=2) as checker:
        old = checker.pids
        for pid in old:
            os.kill(pid, signal.SIGKILL)
        wait_ended(old)
        verdicts = checker.check([(PROBLEM, "ok")] * 200)
        assert {verdict.outcome for verdict in verdicts} == {Outcome.CORRECT}
        assert not set(old) & set(checker.pids)


def test_children_that_are_killed_again_and_again_lose_no_item(hostile):
    with checking(hostile, processes=2) as checker:
        stop = threading.Event()

        def kill_some():
            for turn in range(4):
                stop.wait(0.8)
                for pid in checker.pids[turn % 2 : turn % 2 + 1]:
                    os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=kill_some)
        killer.start()
        responses = [f"r{n}" for n in range(60_000)]
        verdicts = checker.check([(PROBLEM, text) for text in responses])
        stop.set()
        killer.join()
    assert len(verdicts) == len(responses)
    for verdict, response in zip(verdicts, responses, strict=True):
        if verdict.outcome is Outcome.ERROR:
            assert "SIGKILL" in verdict.reason
        else:
            assert verdict.answer == response


@pytest.mark.parametrize("step", ["parse", "compare"])
def test_memory_that_runs_out_within_math_verify_is_an_error_and_the_process_goes(hostile, step):
    responses = [r"\boxed{72}", rf"{step} \boxed{{36 x}}", r"\boxed{72}"]
    with checking(TaskConfig(name="short_task:Short")) as checker:
        (old,) = checker.pids
        verdicts = checker.check([(PROBLEM, response) for response in responses])
        assert checker.pids != [old]
    assert [v.outcome.value for v in verdicts] == ["correct", "error", "correct"]
    assert "out of memory" in verdicts[1].reason


def test_an_interrupted_check_leaves_no_reply_for_the_next_one(hostile):
    def interrupt(signum, frame):
        raise KeyboardInterrupt

    def check_until_interrupted():
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        checker.check([(PROBLEM, "old"), (PROBLEM, "sleep"), (PROBLEM, "older")])

    with checking(hostile) as checker:
        previous = signal.signal(signal.SIGALRM, interrupt)
        try:
            with pytest.raises(KeyboardInterrupt):
                check_until_interrupted()
        finally:
            signal.signal(signal.SIGALRM, previous)
        assert [v.answer for v in checker.check([(PROBLEM, "new")])] == ["new"]


def test_closing_leaves_no_process(hostile):
    with checking(hostile, processes=2) as checker:
        pids = checker.pids
        assert len(pids) == 2
        assert all(map(is_running, pids))
    assert not any(map(is_running, pids))
    assert checker.pids == []


def test_no_child_outlives_a_parent_that_is_killed_in_the_middle_of_a_check(hostile, tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "from rise_ray.config.settings import TaskConfig\n"
        "from rise_ray.mdp import Problem\n"
        "from rise_ray.verify.checker import Checker\n"
        "c = Checker(TaskConfig(name='hostile_task:Hostile'), 2, 1000.0, 1024)\n"
        "print(*c.pids, flush=True)\n"
        "c.check([(Problem('p', 't', 'q', 'r'), 'spin in C')] * 2)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, env=environment
    ) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        time.sleep(0.5)
        assert len(pids) == 2
        assert all(map(is_running, pids))
        parent.kill()
    wait_ended(pids)


@pytest.mark.parametrize(
    ("task", "says"),
    [
        (TaskConfig(name="no_such_task"), "no_such_task"),
        (TaskConfig(name="gsm8k", options={"pathh": 1}), "pathh"),
    ],
)
def test_a_task_that_does_not_load_is_a_config_error_and_leaves_no_process(hostile, task, says):
    with pytest.raises(ConfigError, match=says):
        Checker(task, 2, 1.0, 1024)


def test_children_that_die_while_they_start_are_no_fault_of_the_config(hostile):
    with pytest.raises(VerifierStartError, match="exit status 9"):
        Checker(TaskConfig(name="hostile_task:Unloadable"), 2, 1.0, 1024)


@pytest.fixture
def refused_starts(monkeypatch):
    """How many of the next starts the system refuses, as one that has no process left."""
    refused = [0]

    def start(*args):
        if refused[0]:
            refused[0] -= 1
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return ChildProcess(*args)

    monkeypatch.setattr(checker_module, "ChildProcess", start)
    monkeypatch.setattr(checker_module, "START_PAUSE_S", 0.2)
    return refused


def test_a_start_that_the_system_refuses_is_tried_again(hostile, refused_starts):
    refused_starts[0] = 2
    with checking(hostile, processes=2) as checker:
        assert len(checker.pids) == 2
        refused_starts[0] = 2
        verdicts = checker.check([(PROBLEM, text) for text in ("exit", "exit", "ok", "ok")])
    assert [v.outcome.value for v in verdicts] == ["error", "error", "correct", "correct"]


def test_starts_that_are_refused_again_and_again_are_an_error_that_may_pass(
    hostile, refused_starts
):
    refused_starts[0] = 100
    with pytest.raises(VerifierStartError, match=r"does not start: .*temporarily unavailable"):
        Checker(hostile, 2, 1.0, 1024)


def test_a_checker_that_lost_its_children_starts_them_when_it_can_again(hostile, refused_starts):
    items = [(PROBLEM, "exit"), (PROBLEM, "ok")]
    with checking(hostile) as checker:
        refused_starts[0] = 2 * MAX_FAILED_STARTS
        for left in (MAX_FAILED_STARTS, 0):  # a second try has as many attempts as the first
            with pytest.raises(VerifierStartError):
                checker.check(items)
            assert refused_starts[0] == left
        checker.wait_ready()
        assert len(checker.pids) == 1
        assert [v.outcome.value for v in checker.check(items)] == ["error", "correct"]


def test_too_little_memory_to_start_is_said():
    with pytest.raises(ConfigError, match=r"`verify.memory_mib` is 16, .* takes \d+ MiB"):
        Checker(TaskConfig(name="math"), 1, 1.0, 16)


def test_a_child_that_never_starts_is_given_up_on(tmp_path, monkeypatch):
    (tmp_path / "sleepy_task.py").write_text("import time\ntime.sleep(1000)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(checker_module, "START_DEADLINE_S", 1.0)
    with pytest.raises(VerifierStartError, match="deadline of 1 s"):
        Checker(TaskConfig(name="sleepy_task:Sleepy"), 1, 1.0, 1024)
