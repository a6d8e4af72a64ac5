"""A run whose driver is killed goes on: nothing is lost, nothing is doubled or done again.

It is a run of a recipe of the user's own, of two phases an iteration, beside a control of ours.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from rise_ray.config.loading import load_config
from rise_ray.mdp import Place, Trajectory
from rise_ray.report.console import Console
from rise_ray.run.journal import Run
from rise_ray.run.lineage import open_run, trace, training_rows
from rise_ray.run.stages import Stages
from rise_ray.store.trajectories import TrajectoryStore
from tests.chaos.audit import audit, planned_episodes
from tests.chaos.plan import stage_keys
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
from tests.system.miniature import BASE_EVAL, JOB, SETTINGS, responses
from tests.system.processes import descendants, named, wait_gone
from tests.system.slow_recipe import SLOW_CHAINS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PROBLEMS = 12
RECIPE = [
    f"recipe={{name: '{SLOW_CHAINS}', samples: 3}}",
    "controls=[{name: rejection_sampling, track: chats, layout: chat, answers: 3, epochs: 1}]",
    "iterations=1",
    f"problems={PROBLEMS}",
    "evaluation.problems=4",
    "train.epochs=40",  # so that training lasts
]
LASTING = [
    # What is sampled does not depend on these. One episode at a time, so that rolling lasts;
    "rollout.workers.episodes_in_flight=1",
    # workers that stay and take new weights in small buckets.
    "rollout.release_during_training=false",
    "sync.bucket_bytes=4096",
    "ray.num_cpus=6",
]
ASK, AGAIN = (Place("iteration", 1, phase) for phase in ("ask", "ask_again"))
AFTER, CHATS = Place("iteration", 1, "eval"), Place("chats", 1, "collect")
RELABEL, TRAIN, EVAL = (f"iteration-1/{phase}" for phase in ("relabel", "train", "eval"))
OF_CHATS = {f"chats-1/{phase}" for phase in ("collect", "relabel", "train")}
"""What of the control may be done by then, beside the recipe's own stages."""
ASKED = ["base/eval", str(ASK), str(AGAIN)]


@pytest.mark.usefixtures("ray_runtime")
def test_a_run_killed_in_every_kind_of_phase_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    command = [*COMMAND, *RECIPE, *LASTING, f"storage={tmp_path}"]
    resume = [*command, "--resume"]
    folder, log = tmp_path / "miniature", tmp_path / "run.log"

    # An evaluation is rolled as a collection is.
    orphans = kill_when(command, log, lambda pid: bool(parts_of(folder, AGAIN)))
    refused = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert refused.returncode == 1
    assert "--resume" in refused.stderr
    rolling = journal(folder)
    assert list(rolling) == ASKED[:2]
    stored = len(stored_ids(folder, AGAIN))
    assert 0 < stored < PROBLEMS

    orphans += kill_when(resume, log, lambda pid: bool(named("ray::write_relabeled.do", pid)))
    relabeling = journal(folder)
    assert list(relabeling) == ASKED
    assert relabeling[str(AGAIN)]["rolled"] == PROBLEMS - stored

    # The control's collection begins beside it.
    orphans += kill_when(
        resume, log, lambda pid: bool(named("ray::RayTrainWorker", pid)) and trains(folder)
    )
    training = journal(folder)
    assert set(training) - OF_CHATS == {*ASKED, RELABEL}

    # A busy machine may not show the sync, of some 0.3 s: then it is killed as the first episode
    # is stored, which may be the last one.
    orphans += kill_when(
        resume,
        log,
        lambda pid: bool(named("ray::RolloutWorker.sync", pid) or parts_of(folder, AFTER)),
    )
    syncing = journal(folder)
    assert set(syncing) - OF_CHATS - {EVAL} == {*ASKED, RELABEL, TRAIN}

    subprocess.run(resume, check=True, capture_output=True, env=environment())
    config = load_config(JOB, [*SETTINGS, *RECIPE, f"storage={tmp_path}"])
    run = Run(config, resume=False)
    assert sorted(run.stages) == sorted(stage_keys(config))
    for before in (rolling, relabeling, training, syncing):
        assert {stage: run.stages[stage] for stage in before} == before
    # What is planned is what an undisturbed run stores: see test_whole_run.
    found = audit(run, planned_episodes(config))
    assert (found.lost, found.unknown, found.doubled, found.doubled_examples) == (0, 0, 0, 0)
    same_samples(run.trajectories, undisturbed(tmp_path / "undisturbed").trajectories)
    every_row_leads_back(run)
    # Ray's own agents first try for a minute to tell the driver of the loss.
    left = wait_gone(orphans, within_s=180)
    assert not left, f"still running after their driver was killed: {left}"


def trains(folder: Path) -> bool:
    """Whether a step of the training has been measured."""
    path = folder / "metrics.jsonl"
    return path.exists() and '"loss"' in path.read_text()


def undisturbed(folder: Path) -> Run:
    """A run as far as what it sampled was from the base's weights."""
    config = load_config(JOB, [*SETTINGS, *RECIPE, f"storage={folder}"])
    with Stages(Run(config, resume=False), Console()) as stages:
        for spec in stages.stages[: len(ASKED)]:
            stages.do(spec)
        return stages.run


def same_samples(one: TrajectoryStore, other: TrajectoryStore) -> None:
    """Of the same weights: floating point makes trained ones differ in their last digits."""
    for place in (BASE_EVAL, ASK, AGAIN):
        assert sampled(one, place) == sampled(other, place)


def sampled(store: TrajectoryStore, place: Place) -> dict[str, Any]:
    rolled = store.read(place)
    return {t.id: [response.token_ids for response in responses(t)] for t in rolled}


def every_row_leads_back(run: Run) -> None:
    """To its phase, by the recipe's own rule or the control's."""
    record = open_run(run.folder)
    rolled = {t.id: t for place in (ASK, AGAIN, CHATS) for t in read(run, place)}
    lines = [
        trace(record, row, rolled[row.example.provenance.trajectory_id])
        for row in training_rows(record)
    ]
    own = [line for line in lines if line["stage"] == "iteration-1"]
    assert {line["rule"] for line in own} == {"last_attempts"}
    assert {line["place"] for line in own} == {str(ASK), str(AGAIN)}
    assert {line["weight"] for line in own} == {1.0, 1.5}  # two and three turns
    chats = [line for line in lines if line["stage"] == "chats-1"]
    assert {(line["rule"], line["weight"]) for line in chats} == {("rejection_sampling", 1.0)}


def read(run: Run, place: Place) -> list[Trajectory]:
    return list(run.trajectories.read(place, run.stages[str(place)]["parts_sha256"]))


def kill_when(command: list[str], log: Path, reached: Reached) -> list[psutil.Process]:
    """Start a run and SIGKILL its driver once `reached(pid)`; the processes it leaves behind."""
    with started(command, log) as driver:
        wait_for(driver, log, reached)
        return descendants(driver.pid)
