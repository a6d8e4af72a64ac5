"""The chaos job on the miniature run: a cluster of three nodes, and every kind killed once.

It is the job itself that is run, with its exit status and its table, as a user would run it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from rise_ray.config.loading import load_config
from rise_ray.run.journal import Run
from tests.chaos.plan import Kind, stage_keys
from tests.system.driver import started
from tests.system.miniature import JOB, SETTINGS
from tests.system.processes import is_loopback, listening

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2100)]

# No vLLM on a CPU has processes of its own; each other kind once.
KINDS = set(Kind) - {Kind.ENGINE}
# One episode at a time, so that rolling lasts. Kills this close together may hit one episode, or
# one training, more often than a cluster's would.
CHAOS = [
    "name=chaos",
    "iterations=2",
    "controls=[]",
    "rollout.workers.episodes_in_flight=1",
    "rollout.workers.max_attempts=10",
    "train.workers=2",
    "train.max_failures=10",
]


def test_a_run_whose_parts_are_killed_one_after_another_loses_and_doubles_nothing(
    tmp_path: Path,
) -> None:
    settings = [*SETTINGS, *CHAOS, f"storage={tmp_path}"]
    command = [sys.executable, "-m", "tests.chaos", str(JOB), *settings]
    options = [f"--kills={len(KINDS)}", "--seed=0", "--deadline=1500"]
    log = tmp_path / "chaos.log"
    with started([*command, *options], log) as job, listening(job.pid) as sockets:
        status = job.wait(timeout=2000)
    said = log.read_text()
    print(said)  # `pytest -rP` shows the table
    assert status == 0, said
    assert {"gcs_server", "raylet"} <= {name for name, _ in sockets}
    assert {(name, ip) for name, ip in sockets if not is_loopback(ip)} == set()
    killed = re.findall(r"kill \d+: (\w+):", said)
    assert sorted(killed) == sorted(kind.value for kind in KINDS)
    config = load_config(JOB, settings)
    run = Run(config, resume=False)
    assert run.finished
    assert list(run.stages) == stage_keys(config)
