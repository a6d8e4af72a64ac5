"""A run's own Ray on a machine that is too busy for it at first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.miniature import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Python imports it in every process that starts: the first of Ray's agents comes too late.
LATE_AGENT = """
import os, sys, time
if any("dashboard/agent.py" in argument for argument in sys.orig_argv):
    try:
        os.close(os.open(os.environ["FIRST_AGENT"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        pass
    else:
        time.sleep(25)
"""
CONNECT = """
import psutil, ray
from rise_ray.cluster.connection import start_local_ray
start_local_ray(num_cpus=1, object_store_memory=100_000_000)
print(ray.get(ray.remote(lambda: "up").remote()))
print([child.name() for child in psutil.Process().children()].count("gcs_server"))
"""


def test_it_is_started_again_where_its_agent_was_too_slow(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(LATE_AGENT)
    first = tmp_path / "first"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)]),
        "FIRST_AGENT": str(first),
    }
    done = subprocess.run(
        [sys.executable, "-c", CONNECT],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["up", "1"], done.stderr
    assert first.exists()
