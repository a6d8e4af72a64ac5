"""Verifiers as real Ray actors: whatever is killed or hangs, every item gets its own verdict."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import ray

from rise_ray.config.settings import TaskConfig, VerifyConfig
from rise_ray.errors import ConfigError, user_error
from rise_ray.mdp import Outcome, Verdict
from rise_ray.tasks.countdown import Countdown
from rise_ray.verify.actor import VerifierHandle, start_verifiers
from rise_ray.verify.checker import MAX_FAILED_STARTS, Item
from rise_ray.verify.client import MOST_LOSSES, Verification, verify_all
from tests.system.processes import wait_gone
from tests.system.verify.slow_task import CHECK_S, POISON, SHORT_TASK, SPIN, TASK

COUNTDOWN = TaskConfig(name="countdown")
SLOW = TaskConfig(name=TASK)
HUNG_S = 8.0  # a verifier starts in 2 s, on a busy machine in more
WITHIN_S = 120.0


@contextmanager
def verifying(task: TaskConfig, **settings: object) -> Iterator[list[VerifierHandle]]:
    verifiers = start_verifiers(task, VerifyConfig.model_validate(settings))
    try:
        yield verifiers
    finally:
        for verifier in verifiers:
            verifier.stop()


def make_items(count: int) -> list[Item]:
    task = Countdown()
    chats = task.demonstrations(task.load("dev"), count, random.Random(0))
    return [(problem, messages[1].content) for problem, messages in chats]


def expected(items: list[Item]) -> list[Outcome]:
    return [Countdown().check(*item).outcome for item in items]


def children(verifier: VerifierHandle) -> list[psutil.Process]:
    return [psutil.Process(pid) for pid in ray.get(verifier.actor.pids.remote())]


def process_of(verifier: VerifierHandle) -> psutil.Process:
    """The actor's own."""
    return children(verifier)[0].parent()


def disturbed(
    verifiers: list[VerifierHandle], items: list[Item], disturb: Callable[[], object]
) -> tuple[list[Verdict], float]:
    """The verdicts where `disturb` happens while the items are checked, and the seconds it took."""
    verification = Verification(verifiers)
    for tag, item in enumerate(items):
        verification.add(tag, [item])
    started = time.monotonic()
    found = dict(verification.poll(wait_s=20 * CHECK_S))
    assert not found, "too fast to be disturbed"
    disturb()
    while len(found) < len(items):
        found |= dict(verification.poll(wait_s=0.2))
        assert time.monotonic() - started < WITHIN_S
    return [found[tag][0] for tag in range(len(items))], time.monotonic() - started


def test_verifiers_judge_as_the_task_and_leave_no_process(ray_runtime: None) -> None:
    items = make_items(300)
    with verifying(COUNTDOWN, actors=2, processes=2) as verifiers:
        for verifier in verifiers:
            checked = ray.get(verifier.actor.check.remote(items))
            assert [verdict.outcome for verdict in checked.verdicts] == expected(items)
        assert [v.outcome for v in verify_all(verifiers, items)] == expected(items)
        started = [child for verifier in verifiers for child in children(verifier)]
        assert len(started) == 6  # each has one to spare
    assert wait_gone(started) == []


def test_a_killed_child_costs_no_verdict(ray_runtime: None) -> None:
    items = make_items(300)
    with verifying(COUNTDOWN) as (verifier,):
        (child,) = children(verifier)
        child.kill()
        assert wait_gone([child]) == []
        assert [v.outcome for v in verify_all([verifier], items)] == expected(items)


def test_a_killed_verifier_costs_no_verdict(ray_runtime: None) -> None:
    items = make_items(400)
    with verifying(SLOW, actors=2) as verifiers:
        old, old_children = process_of(verifiers[0]), children(verifiers[0])
        verdicts, _ = disturbed(verifiers, items, old.kill)
        assert [verdict.outcome for verdict in verdicts] == expected(items)
        assert wait_gone([old, *old_children]) == []
        assert process_of(verifiers[0]) != old  # Ray brought it back


def test_an_answer_whose_check_lasts_holds_up_no_other_and_survives_its_verifier(
    ray_runtime: None,
) -> None:
    items = make_items(20)
    with verifying(SLOW, deadline_s=3.0) as (verifier,):
        verify_all([verifier], items)
        while len(children(verifier)) < 2:
            verify_all([verifier], items[:1])
        verification = Verification([verifier])
        verification.add("spins", [(items[0][0], SPIN)])
        for tag, item in enumerate(items):
            verification.add(tag, [item])
        found: dict[object, list[Verdict]] = {}
        while len(found) < len(items):
            found |= dict(verification.poll(wait_s=0.2))
        assert "spins" not in found
        process_of(verifier).kill()  # between two calls: nobody is told of it
        while "spins" not in found:
            found |= dict(verification.poll(wait_s=0.2))
    assert [found[tag][0].outcome for tag in range(len(items))] == expected(items)
    assert "deadline of 3 s" in found["spins"][0].reason


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_hung_verifier_is_restarted_and_costs_no_verdict(ray_runtime: None) -> None:
    items = make_items(400)
    with verifying(SLOW, deadline_s=1.9, progress_deadline_s=HUNG_S) as (verifier,):
        old = process_of(verifier)
        verdicts, took_s = disturbed([verifier], items, lambda: old.send_signal(signal.SIGSTOP))
        assert [verdict.outcome for verdict in verdicts] == expected(items)
        assert took_s > HUNG_S
        assert wait_gone([old]) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_slow_verifier_is_not_taken_for_a_hung_one(ray_runtime: None) -> None:
    items = make_items(int(2 * HUNG_S / CHECK_S))
    with verifying(SLOW, deadline_s=1.9, progress_deadline_s=HUNG_S) as (verifier,):
        before = process_of(verifier)
        assert [v.outcome for v in verify_all([verifier], items)] == expected(items)
        assert process_of(verifier) == before


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_batch_that_kills_its_verifier_again_and_again_is_an_error_and_the_next_is_judged(
    ray_runtime: None,
) -> None:
    (problem, response), *_ = make_items(1)
    with verifying(SLOW) as (verifier,):
        verdicts = verify_all([verifier], [(problem, POISON)])
        assert verdicts[0].outcome is Outcome.ERROR
        assert f"the verifier was lost {MOST_LOSSES} times" in verdicts[0].reason
        assert "\n" not in verdicts[0].reason
        (after,) = verify_all([verifier], [(problem, response)])
        assert after.outcome is not Outcome.ERROR


def short_task(missing: Path) -> TaskConfig:
    """Whose processes do not start until that file is gone."""
    missing.touch()
    return TaskConfig(name=SHORT_TASK, options={"missing": str(missing)})


def test_a_verifier_without_processes_for_a_while_costs_no_verdict(
    ray_runtime: None, tmp_path: Path
) -> None:
    items, missing = make_items(50), tmp_path / "missing"
    with verifying(short_task(missing)) as verifiers:
        verification = Verification(verifiers)
        verification.add("all", items)
        while missing.stat().st_size < (MOST_LOSSES + 1) * MAX_FAILED_STARTS:
            assert verification.poll(wait_s=0.2) == []  # a batch is not lost again meanwhile
        missing.unlink()
        while not (found := verification.poll(wait_s=0.2)):
            pass
    ((_, verdicts),) = found
    assert [verdict.outcome for verdict in verdicts] == expected(items)


@pytest.mark.slow
def test_a_verifier_that_never_has_processes_is_restarted_and_at_last_its_verdicts_are_errors(
    ray_runtime: None, tmp_path: Path
) -> None:
    task = short_task(tmp_path / "missing")
    with verifying(task, deadline_s=1.9, progress_deadline_s=HUNG_S) as (verifier,):
        with pytest.raises(Exception, match="exit status 9"):  # it is up: only its children die
            ray.get(verifier.actor.wait_ready.remote())
        verdicts = verify_all([verifier], make_items(3))
    assert {verdict.outcome for verdict in verdicts} == {Outcome.ERROR}
    assert f"no verifier was up for {MOST_LOSSES * HUNG_S:g} s" in verdicts[0].reason
    assert "exit status 9" in verdicts[0].reason


def test_a_task_that_does_not_load_is_the_config_error_it_is(ray_runtime: None) -> None:
    bad = TaskConfig(name="gsm8k", options={"pathh": 1})
    with verifying(bad) as verifiers, pytest.raises(Exception, match="pathh") as caught:
        verify_all(verifiers, make_items(1))
    assert isinstance(user_error(caught.value), ConfigError)
