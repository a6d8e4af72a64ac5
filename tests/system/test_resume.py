"""A run whose driver is killed goes on: nothing is lost, nothing is doubled or done again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from rise_ray.mdp import Phase
from rise_ray.store.files import Folder
from rise_ray.store.run import Run
from rise_ray.store.trajectories import TrajectoryStore, read_part
from tests.system.miniature import JOB, PROBLEMS, SETTINGS, phases, responses
from tests.system.processes import descendants, named, wait_gone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

Reached = Callable[[int], bool]

COLLECT = "iteration-1/collect"
COMMAND = [str(Path(sys.executable).with_name("rise-ray")), "run", str(JOB), *SETTINGS]


def test_a_run_killed_while_it_rolls_and_while_it_trains_ends_like_an_undisturbed_one(
    miniature_run: Run, tmp_path: Path
) -> None:
    # One episode at a time, so that rolling lasts: what is sampled does not depend on it.
    command = [*COMMAND, f"storage={tmp_path}", "rollout.workers.episodes_in_flight=1"]
    folder = tmp_path / "miniature"
    parts = folder / "trajectories" / "iteration=1" / "phase=collect"

    log = tmp_path / "run.log"
    orphans = kill_when(command, log, lambda pid: any(parts.glob("*.parquet")))
    rolling = journal(folder)
    assert set(rolling) == {"base/eval"}
    stored = len(stored_ids(folder, 1, Phase.COLLECT))
    assert 0 < stored < PROBLEMS

    refused = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert refused.returncode == 1
    assert "--resume" in refused.stderr

    resume = [*command, "--resume"]
    orphans += kill_when(
        resume,
        log,
        lambda pid: COLLECT in journal(folder) and bool(named("ray::RayTrainWorker", pid)),
    )
    training = journal(folder)
    assert list(training)[-1] == "iteration-1/relabel"
    assert training[COLLECT]["rolled"] == PROBLEMS - stored

    subprocess.run(resume, check=True, capture_output=True, env=environment())
    finished = journal(folder)
    assert list(finished) == list(miniature_run.stages)
    for before in (rolling, training):
        assert {stage: finished[stage] for stage in before} == before
    check_trajectories(miniature_run, folder)
    # Ray's own agents first try for a minute to tell the driver of the loss.
    left = wait_gone(orphans, within_s=180)
    assert not left, f"still running after their driver was killed: {left}"


def check_trajectories(undisturbed: Run, folder: Path) -> None:
    """The same ids in every phase, each once; and, of the same weights, the same samples."""
    for iteration, phase in phases(undisturbed):
        ids = sorted(t.id for t in undisturbed.trajectories.read(iteration, phase))
        assert sorted(stored_ids(folder, iteration, phase)) == ids
    for iteration, phase in ((0, Phase.EVAL), (1, Phase.COLLECT)):
        assert sampled(store_of(folder), iteration, phase) == sampled(
            undisturbed.trajectories, iteration, phase
        )


def sampled(store: TrajectoryStore, iteration: int, phase: Phase) -> dict[str, Any]:
    rolled = store.read(iteration, phase)
    return {t.id: [response.token_ids for response in responses(t)] for t in rolled}


def store_of(folder: Path) -> TrajectoryStore:
    return TrajectoryStore(Folder(str(folder / "trajectories")))


def stored_ids(folder: Path, iteration: int, phase: Phase) -> list[str]:
    """As they lie in the parts: one that was written twice is there twice."""
    store = store_of(folder)
    tables = [
        read_part(store.phase(iteration, phase), name, columns=["id"])
        for name in store.parts(iteration, phase)
    ]
    return [name for table in tables for name in table["id"].to_pylist()]


def journal(folder: Path) -> dict[str, Any]:
    path = folder / "state.json"
    return dict(json.loads(path.read_text())["stages"]) if path.exists() else {}


def environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}


def kill_when(command: list[str], log: Path, reached: Reached) -> list[psutil.Process]:
    """Start a run and SIGKILL its driver once `reached(pid)`; the processes it leaves behind."""
    with log.open("wb") as output:
        driver = subprocess.Popen(command, stdout=output, stderr=output, env=environment())
    deadline = time.monotonic() + 600
    while not reached(driver.pid):
        assert driver.poll() is None, f"the run ended by itself: {log.read_text()}"
        assert time.monotonic() < deadline, f"the run did not get there: {log.read_text()}"
        time.sleep(0.02)
    orphans = descendants(driver.pid)
    driver.kill()
    driver.wait()
    return orphans
