"""A recipe of the user's own runs, is killed in its second phase, and goes on like RISE does."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from rise_ray.config.loading import load_config
from rise_ray.mdp import Place, Trajectory
from rise_ray.run.journal import Run
from rise_ray.run.lineage import open_run, trace, training_rows
from rise_ray.run.tracks import stages_of
from tests.chaos.audit import audit, planned_episodes
from tests.system.driver import (
    COMMAND,
    environment,
    journal,
    parts_of,
    started,
    stored_ids,
    wait_for,
)
from tests.system.miniature import JOB, SETTINGS
from tests.system.processes import descendants, wait_gone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROBLEMS = 12
RECIPE = [
    "recipe={name: 'tests.system.own_recipe:Chains', samples: 3}",
    "controls=[{name: rejection_sampling, track: chats, layout: chat, answers: 3, epochs: 1}]",
    "iterations=1",
    f"problems={PROBLEMS}",
    "evaluation.problems=4",
    "rollout.workers.episodes_in_flight=1",  # so that rolling lasts
]
ASK, AGAIN = (Place("iteration", 1, phase) for phase in ("ask", "ask_again"))
PLACES = [ASK, AGAIN, Place("chats", 1, "collect")]


def test_it_is_killed_and_resumed_and_every_row_leads_back(tmp_path: Path) -> None:
    command, log = [*COMMAND, *RECIPE, f"storage={tmp_path}"], tmp_path / "run.log"
    folder = tmp_path / "miniature"
    with started(command, log) as driver:
        wait_for(driver, log, lambda pid: bool(parts_of(folder, AGAIN)))
        orphans = descendants(driver.pid)
    before = journal(folder)
    assert list(before) == ["base/eval", "iteration-1/ask"]
    stored = len(stored_ids(folder, AGAIN))
    assert 0 < stored < PROBLEMS
    resumed = [*command, "--resume"]
    subprocess.run(resumed, check=True, capture_output=True, env=environment())

    config = load_config(JOB, [*SETTINGS, *RECIPE, f"storage={tmp_path}"])
    run = Run(config, resume=False)
    assert list(run.stages) == [spec.key for spec in stages_of(config)]
    assert {key: run.stages[key] for key in before} == before
    assert run.stages[str(AGAIN)]["rolled"] == PROBLEMS - stored
    found = audit(run, planned_episodes(config))
    assert (found.lost, found.unknown, found.doubled, found.doubled_examples) == (0, 0, 0, 0)

    record = open_run(run.folder)
    rolled = {t.id: t for place in PLACES for t in read(run, place)}
    lines = [
        trace(record, row, rolled[row.example.provenance.trajectory_id])
        for row in training_rows(record)
    ]
    own = [line for line in lines if line["stage"] == "iteration-1"]
    assert {line["rule"] for line in own} == {"last_attempts"}
    assert {line["place"] for line in own} == {"iteration-1/ask", "iteration-1/ask_again"}
    assert {line["weight"] for line in own} == {1.0, 1.5}  # two and three turns
    chats = [line for line in lines if line["stage"] == "chats-1"]
    assert {(line["rule"], line["weight"]) for line in chats} == {("rejection_sampling", 1.0)}
    assert wait_gone(orphans, within_s=180) == []


def read(run: Run, place: Place) -> list[Trajectory]:
    return list(run.trajectories.read(place, run.stages[str(place)]["parts_sha256"]))
