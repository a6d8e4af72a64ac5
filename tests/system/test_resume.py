"""A run whose driver is killed goes on: nothing is lost, nothing is doubled or done again."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from rise_ray.config.loading import load_config
from rise_ray.mdp import Place
from rise_ray.report.console import Console
from rise_ray.run.journal import Run
from rise_ray.run.stages import Stages
from rise_ray.store.trajectories import TrajectoryStore
from tests.chaos.audit import planned_episodes
from tests.chaos.plan import stage_keys
from tests.system.driver import (
    COMMAND,
    Reached,
    environment,
    journal,
    parts_of,
    started,
    store_of,
    stored_ids,
    wait_for,
)
from tests.system.miniature import BASE_EVAL, JOB, PROBLEMS, SETTINGS, responses
from tests.system.miniature import COLLECT as COLLECTED
from tests.system.processes import descendants, named, wait_gone
from tests.system.slow_recipe import SLOW_RECIPE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# The control has the same phases again.
RISE_ALONE = ["controls=[]"]
COLLECT, RELABEL, TRAIN = (f"iteration-1/{phase}" for phase in ("collect", "relabel", "train"))


@pytest.mark.usefixtures("ray_runtime")
def test_a_run_killed_in_every_kind_of_phase_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    command = [
        *COMMAND,
        f"storage={tmp_path}",
        *RISE_ALONE,
        SLOW_RECIPE,
        # What is sampled does not depend on these. One episode at a time, so that rolling lasts;
        "rollout.workers.episodes_in_flight=1",
        # workers that stay and take new weights in small buckets, so that syncing lasts.
        "rollout.release_during_training=false",
        "sync.bucket_bytes=4096",
        "ray.num_cpus=6",
    ]
    resume = [*command, "--resume"]
    folder, log = tmp_path / "miniature", tmp_path / "run.log"

    # An evaluation is rolled as a collection is.
    orphans = kill_when(command, log, lambda pid: bool(parts_of(folder, COLLECTED)))
    refused = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert refused.returncode == 1
    assert "--resume" in refused.stderr
    rolling = journal(folder)
    assert set(rolling) == {"base/eval"}
    stored = len(stored_ids(folder, COLLECTED))
    assert 0 < stored < PROBLEMS

    orphans += kill_when(resume, log, lambda pid: bool(named("ray::write_relabeled", pid)))
    relabeling = journal(folder)
    assert set(relabeling) == {"base/eval", COLLECT}
    assert relabeling[COLLECT]["rolled"] == PROBLEMS - stored

    orphans += kill_when(
        resume, log, lambda pid: bool(named("ray::RayTrainWorker", pid)) and trains(folder)
    )
    training = journal(folder)
    assert set(training) == {"base/eval", COLLECT, RELABEL}

    orphans += kill_when(resume, log, lambda pid: bool(named("ray::RolloutWorker.sync", pid)))
    syncing = journal(folder)
    assert list(syncing)[-1] == "iteration-2/train"

    subprocess.run(resume, check=True, capture_output=True, env=environment())
    finished = journal(folder)
    config = load_config(JOB, [*SETTINGS, *RISE_ALONE])
    assert list(finished) == stage_keys(config)
    for before in (rolling, relabeling, training, syncing):
        assert {stage: finished[stage] for stage in before} == before
    # What is planned is what an undisturbed run stores: see test_whole_run.
    for planned in planned_episodes(config).values():
        ids = stored_ids(folder, planned.place)
        assert sorted(ids) == sorted(planned.ids)
    same_samples(store_of(folder), undisturbed(tmp_path / "undisturbed").trajectories)
    # Ray's own agents first try for a minute to tell the driver of the loss.
    left = wait_gone(orphans, within_s=180)
    assert not left, f"still running after their driver was killed: {left}"


def trains(folder: Path) -> bool:
    """Whether a step of the training has been measured."""
    path = folder / "metrics.jsonl"
    return path.exists() and '"loss"' in path.read_text()


def undisturbed(folder: Path) -> Run:
    """A run as far as what it sampled was from the base's weights."""
    run = Run(load_config(JOB, [*SETTINGS, f"storage={folder}"]), resume=False)
    with Stages(run, Console()) as stages:
        for spec in stages.stages[:2]:
            stages.do(spec)
    return run


def same_samples(one: TrajectoryStore, other: TrajectoryStore) -> None:
    """Of the same weights: floating point makes trained ones differ in their last digits."""
    for place in (BASE_EVAL, COLLECTED):
        assert sampled(one, place) == sampled(other, place)


def sampled(store: TrajectoryStore, place: Place) -> dict[str, Any]:
    rolled = store.read(place)
    return {t.id: [response.token_ids for response in responses(t)] for t in rolled}


def kill_when(command: list[str], log: Path, reached: Reached) -> list[psutil.Process]:
    """Start a run and SIGKILL its driver once `reached(pid)`; the processes it leaves behind."""
    with started(command, log) as driver:
        wait_for(driver, log, reached)
        return descendants(driver.pid)
