"""A whole run on S3: killed while it rolls, then complete; what is lost later comes back."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from rise_ray.run.journal import read_journal
from rise_ray.run.lineage import open_run, problem_lineage, trace, training_rows
from rise_ray.store.files import Folder
from rise_ray.store.trajectories import TrajectoryStore
from tests.object_store import BUCKET, s3_server
from tests.system.driver import COMMAND, environment, started, wait_for
from tests.system.miniature import BASE_EVAL, COLLECT, PROBLEMS
from tests.system.processes import descendants, wait_gone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

STORAGE = f"s3://{BUCKET}/runs"
SETTINGS = [
    *(f"storage={STORAGE}", "iterations=1", "controls=[]"),
    "rollout.workers.episodes_in_flight=1",  # so that rolling lasts
]


def test_a_run_on_s3_survives_its_driver_and_the_loss_of_objects(tmp_path: Path) -> None:
    log, folder = tmp_path / "run.log", Folder(f"{STORAGE}/miniature")
    with s3_server():
        store = TrajectoryStore(folder / "trajectories")
        with started([*COMMAND, *SETTINGS], log) as driver:
            wait_for(driver, log, lambda pid: len(store.parts(COLLECT)) > 1)
            orphans = descendants(driver.pid)
        stored = store.ids(COLLECT)
        assert 0 < len(stored) < PROBLEMS

        go_on()
        stages = read_journal(folder)["stages"]
        assert stages["iteration-1/collect"]["rolled"] == PROBLEMS - len(stored)
        check_complete(folder)

        lost = store.folder_of(BASE_EVAL)
        for part in lost.names():
            lost.remove(part)
        folder.remove("metrics.jsonl")
        said = go_on()
        assert "base/eval: its stored trajectories are not whole" in said
        assert "metrics.jsonl: lacked" in said
        stages = read_journal(folder)["stages"]
        assert store.is_whole(BASE_EVAL, stages["base/eval"]["parts_sha256"])
        check_complete(folder)
        # Ray's own agents first try for a minute to tell the driver of the loss.
        left = wait_gone(orphans, within_s=180)
        assert not left, f"still running after their driver was killed: {left}"


def go_on() -> str:
    """The run to its end; what it printed."""
    command = [*COMMAND, *SETTINGS, "--resume"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_complete(folder: Folder) -> None:
    """Weights, report, measurements, and data that lead back to what was rolled."""
    assert folder.names() == ["config.yaml", "metrics.jsonl", "report.html", "state.json"]
    checkpoint = folder / "checkpoints" / "iteration=1"
    assert {"config.json", "model.safetensors", "parity.json"} <= set(checkpoint.names())
    record = open_run(folder)
    collected = TrajectoryStore(folder / "trajectories").read(
        COLLECT, record.stages["iteration-1/collect"]["parts_sha256"]
    )
    stored = {t.id: t for t in collected}
    assert len(stored) == PROBLEMS
    rows = list(training_rows(record))
    for row in rows:
        trace(record, row, stored[row.example.provenance.trajectory_id])
    assert len(rows) == record.stages["iteration-1/relabel"]["examples"] > 0
    problem = rows[0].example.provenance.problem_id
    assert rows[0].example.id in {r["example"] for r in problem_lineage(record, problem)}
