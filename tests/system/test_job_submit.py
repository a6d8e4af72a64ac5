"""`ray job submit` and `ray job stop` of a run on a real head, as `cluster/README.md` says."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rise_ray.config.loading import load_config
from rise_ray.run.journal import Run
from tests.chaos.leftovers import left_in_cluster
from tests.chaos.nodes import free_ports
from tests.system.driver import parts_of
from tests.system.miniature import COLLECT, JOB, REPOSITORY, SETTINGS
from tests.system.processes import descendants, wait_gone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

BIN = Path(sys.executable).parent
RESTARTS = 2  # of a head whose raylet gave up on its agent (`chaos.nodes.Nodes`)
UPLOADS = 3  # Ray gives the working directory a time that a busy machine may miss
TOKEN = secrets.token_hex(32)  # the head's own: nothing else on this machine can send it jobs


def environment() -> dict[str, str]:
    """The cluster's: its `rise-ray` is found by name, as on a node with rise-ray installed."""
    return {
        **{k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # of the head, in the end: it has no work
        "RAY_JOB_STOP_WAIT_TIME_S": "60",  # until SIGKILL: of the head, not of the client
    }


@dataclass
class Head:
    """Addresses of a head: for jobs, and for drivers."""

    jobs: str
    cluster: str


@pytest.fixture
def head() -> Iterator[Head]:
    """A Ray head of our own with its dashboard on the loopback interface."""
    # Ray's sockets lie in here, and their paths may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    options = ["port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port"]
    ports = dict(zip(options, free_ports(len(options)), strict=True))
    command = [
        *(str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=4"),
        *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"),
        *(f"--object-store-memory={200 * 2**20}", f"--temp-dir={folder}"),
        *(f"--{option}={port}" for option, port in ports.items()),
    ]
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    process = start(command)
    try:
        for _ in range(RESTARTS):
            if answers(f"{address}/api/jobs/", process):
                break
            process = start(command)
        assert answers(f"{address}/api/jobs/", process), "the head did not start"
        yield Head(address, f"127.0.0.1:{ports['port']}")
    finally:
        started = descendants(process.pid)
        process.terminate()
        process.wait(60)
        left = wait_gone(started)
        shutil.rmtree(folder)
    assert not left, f"still running after the head was stopped: {left}"


def start(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
        start_new_session=True,
    )


def answers(url: str, process: subprocess.Popen[bytes]) -> bool:
    """Wait until the process answers there; whether it lives so long."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {TOKEN}"})
    deadline = time.monotonic() + 300
    while process.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=5):
                return True
        except OSError:
            assert time.monotonic() < deadline, f"no answer from {url}"
            time.sleep(0.5)
    return False


def ray_job(head: Head, *arguments: str) -> str:
    """`ray job ARGUMENTS`; what it printed."""
    command = [BIN / "ray", "job", arguments[0], "--address", head.jobs, *arguments[1:]]
    for _ in range(UPLOADS):
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True
        )
        if "Failed to store package in the GCS" not in done.stderr:
            break
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_job_that_is_stopped_leaves_nothing_and_goes_on_when_it_is_submitted_again(
    head: Head, tmp_path: Path
) -> None:
    settings = [*SETTINGS, f"storage={tmp_path}", "iterations=1", "controls=[]"]
    run = ["rise-ray", "run", str(JOB.relative_to(REPOSITORY)), *settings, "--resume"]
    submit = ["submit", "--working-dir", ".", "--", *run]

    ray_job(head, submit[0], "--no-wait", "--submission-id", "first", *submit[1:])
    folder = tmp_path / "miniature"
    deadline = time.monotonic() + 300
    while not parts_of(folder, COLLECT):
        assert time.monotonic() < deadline, ray_job(head, "logs", "first")
        time.sleep(0.05)
    ray_job(head, "stop", "first")
    assert "was stopped" in ray_job(head, "status", "first")
    assert "stopped by SIGTERM" in ray_job(head, "logs", "first")
    assert left_in_cluster({**environment(), "RAY_ADDRESS": head.cluster}) == []

    assert "succeeded" in ray_job(head, *submit)
    finished = Run(load_config(JOB, settings), resume=False)
    assert finished.finished
    assert (finished.folder / "checkpoints" / "iteration=1").exists("config.json")
    assert finished.folder.exists("report.html")
