"""One driver at a time, and a driver that is asked to stop leaves nothing but its run folder."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from rise_ray.cluster.stop import DEADLINE_S
from tests.chaos.processes import shared_memory_files, wait_freed
from tests.system.driver import (
    COMMAND,
    Reached,
    environment,
    journal,
    parts_of,
    started,
    stored_ids,
    wait_for,
)
from tests.system.miniature import COLLECT, PROBLEMS
from tests.system.processes import descendants, named, wait_gone
from tests.system.slow_recipe import SLOW_RISE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def stop(driver: subprocess.Popen[bytes], log: Path, number: signal.Signals) -> str:
    """Signal a driver; it ends in time, with its status and nothing left.

    SIGTERM comes to it alone, as by `kill`; Ctrl-C, by a terminal, to its whole process group.
    """
    children = descendants(driver.pid)
    assert children
    before = time.monotonic()
    if number is signal.SIGINT:
        os.killpg(driver.pid, number)
    else:
        driver.send_signal(number)
    assert driver.wait(2 * DEADLINE_S) == 128 + number
    assert time.monotonic() - before < DEADLINE_S
    assert wait_gone(children) == []
    said = log.read_text()
    assert "Traceback" not in said
    return said.splitlines()[-1]


def test_a_second_driver_is_refused_and_one_that_is_stopped_hands_its_run_on(
    tmp_path: Path,
) -> None:
    """The same run, stopped in whatever it does, and each time taken up where it was."""
    folder, log = tmp_path / "miniature", tmp_path / "run.log"
    small = ["evaluation.problems=2", "wandb={mode: offline}"]
    command = [*COMMAND, f"storage={tmp_path}", f"recipe.name={SLOW_RISE}", *small]
    resume = [*command, "rollout.workers.episodes_in_flight=1", "--resume"]
    memory = shared_memory_files()

    def stopped_when(reached: Reached, number: signal.Signals, *settings: str) -> None:
        with started([*resume, *settings], log) as driver:
            wait_for(driver, log, reached)
            said = stop(driver, log, number)
        assert said == f"rise-ray: stopped by {number.name}; the same command with --resume goes on"
        assert not (folder / "owner.json").exists()
        assert wait_freed(memory, 120.0) == []

    with started(resume, log) as driver:
        wait_for(driver, log, lambda pid: bool(parts_of(folder, COLLECT)))
        second = subprocess.run(resume, capture_output=True, text=True, env=environment())
        assert second.returncode == 1
        assert f"another driver works on this run: process {driver.pid} on" in second.stderr
        assert ", since 20" in second.stderr
        stop(driver, log, signal.SIGTERM)
    assert not (folder / "owner.json").exists()
    assert wait_freed(memory, 120.0) == []

    stopped_when(lambda pid: bool(named("ray::write_relabeled.do", pid)), signal.SIGTERM)
    assert "iteration-1/relabel" not in journal(folder)

    stopped_when(waits_for_resources, signal.SIGTERM, *SPOT_NODES)

    stopped_when(lambda pid: bool(named("ray::RayTrainWorker", pid)), signal.SIGTERM)
    assert len(stored_ids(folder, COLLECT)) == PROBLEMS

    # After a training, which Ray Train would take SIGINT over for, for good.
    trained = folder / "checkpoints" / "iteration=1"
    stopped_when(
        lambda pid: trained.exists() and bool(named("ray::RolloutWorker", pid)), signal.SIGINT
    )


SPOT_NODES = ["ray.autoscaling=true", "train.resources={spot: 1}"]
"""They do not come: the training waits, and Ray Train's controller hears nothing meanwhile."""


def waits_for_resources(driver: int) -> bool:
    """Whether the driver has had a controller for three seconds."""
    return any(time.time() - c.create_time() > 3 for c in named("ray::TrainController", driver))
