"""Verifiers as real Ray actors: they judge, survive their children, and come back when killed."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest
import ray

from rise_ray.config import TaskConfig, VerifyConfig
from rise_ray.mdp import Outcome
from rise_ray.tasks.countdown import Countdown
from rise_ray.verify.actor import start_verifiers

COUNTDOWN = TaskConfig(name="countdown")


@pytest.fixture
def items():
    task = Countdown()
    chats = task.demonstrations(task.load("dev"), 300, random.Random(0))
    return [(problem, messages[1].content) for problem, messages in chats]


def check_until_back(verifier, items, within_s=60.0):
    deadline = time.monotonic() + within_s
    while True:
        try:
            return ray.get(verifier.check.remote(items))
        except ray.exceptions.RayActorError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def test_verifiers_judge_restart_and_leave_no_process(ray_runtime, items):
    verifiers = start_verifiers(COUNTDOWN, VerifyConfig(actors=2, processes=2))
    task = Countdown()
    expected = [task.check(*item).outcome for item in items]
    for verdicts in ray.get([verifier.check.remote(items) for verifier in verifiers]):
        assert [verdict.outcome for verdict in verdicts] == expected

    verifier, other = verifiers
    children = ray.get(verifier.pids.remote())
    assert len(children) == 2

    # A child is killed between calls: nobody is to blame, nothing is lost.
    os.kill(children[0], signal.SIGKILL)
    time.sleep(0.2)
    verdicts = ray.get(verifier.check.remote(items))
    assert Outcome.ERROR not in {verdict.outcome for verdict in verdicts}

    # The actor is killed: Ray brings it back, and its old children are gone.
    children = ray.get(verifier.pids.remote())
    ray.kill(verifier, no_restart=False)
    verdicts = check_until_back(verifier, items)
    assert [verdict.outcome for verdict in verdicts] == expected
    assert not any(os.path.exists(f"/proc/{pid}") for pid in children)

    # Closed: no child is left.
    children = [pid for v in verifiers for pid in ray.get(v.pids.remote())]
    ray.get([v.close.remote() for v in verifiers])
    assert not any(os.path.exists(f"/proc/{pid}") for pid in children)
    assert ray.get(other.pids.remote()) == []
