"""One driver at a time, and a driver that is asked to stop leaves nothing but its run folder."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from rise_ray.cluster.stop import DEADLINE_S
from tests.chaos.processes import shared_memory_files
from tests.system.driver import COMMAND, environment, parts_of, started, stored_ids, wait_for
from tests.system.miniature import BASE_EVAL, EVAL_PROBLEMS
from tests.system.processes import descendants, named, wait_freed, wait_gone

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


def test_a_second_driver_is_refused_and_a_stopped_one_hands_its_run_on(tmp_path: Path) -> None:
    folder, log = tmp_path / "miniature", tmp_path / "run.log"
    resume = [*COMMAND, f"storage={tmp_path}", "--resume"]
    settings = ["wandb={mode: offline}", "rollout.workers.episodes_in_flight=1"]
    memory = shared_memory_files()

    with started([*resume, *settings], log) as driver:
        wait_for(driver, log, lambda pid: bool(parts_of(folder, BASE_EVAL)))
        second = subprocess.run(
            [*resume, *settings], capture_output=True, text=True, env=environment()
        )
        assert second.returncode == 1
        assert f"another driver works on this run: process {driver.pid} on" in second.stderr
        assert ", since 20" in second.stderr
        said = stop(driver, log, signal.SIGTERM)
    assert said == "rise-ray: stopped by SIGTERM; the same command with --resume goes on"
    assert not (folder / "owner.json").exists()
    assert wait_freed(memory) == []

    with started([*resume, *settings], log) as driver:
        wait_for(driver, log, lambda pid: bool(named("ray::write_relabeled", pid)))
        stop(driver, log, signal.SIGTERM)
    assert not (folder / "examples" / "iteration-1" / "manifest.json").exists()

    with started([*resume, *settings], log) as driver:
        wait_for(driver, log, lambda pid: bool(named("ray::RayTrainWorker", pid)))
        said = stop(driver, log, signal.SIGTERM)
    assert said == "rise-ray: stopped by SIGTERM; the same command with --resume goes on"
    assert len(stored_ids(folder, BASE_EVAL)) == EVAL_PROBLEMS
    assert wait_freed(memory) == []


def test_ctrl_c_reaches_a_run_that_has_trained(tmp_path: Path) -> None:
    """While workers start after a training: Ray Train would take SIGINT over for good."""
    log = tmp_path / "run.log"
    trained = tmp_path / "miniature" / "checkpoints" / "iteration=1"
    settings = [
        "evaluation.problems=2",
        "rollout.release_during_training=true",
        f"storage={tmp_path}",
    ]
    with started([*COMMAND, *settings], log) as driver:
        wait_for(driver, log, lambda pid: trained.exists())
        wait_for(driver, log, lambda pid: bool(named("ray::RolloutWorker.start", pid)))
        said = stop(driver, log, signal.SIGINT)
    assert said == "rise-ray: stopped by SIGINT; the same command with --resume goes on"


def test_a_training_that_waits_for_its_resources_is_stopped_in_time(tmp_path: Path) -> None:
    """As on a cluster whose spot nodes do not come: Ray Train's controller then hears nothing."""
    log = tmp_path / "run.log"
    settings = [
        "evaluation.problems=2",
        "ray.autoscaling=true",
        "train.resources={spot: 1}",
        f"storage={tmp_path}",
    ]
    with started([*COMMAND, *settings], log) as driver:
        wait_for(driver, log, lambda pid: bool(named("ray::TrainController", pid)))
        time.sleep(3)
        said = stop(driver, log, signal.SIGTERM)
    assert said == "rise-ray: stopped by SIGTERM; the same command with --resume goes on"
