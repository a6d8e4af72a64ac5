"""`ray job submit` of a run to a real cluster head, as `cluster/README.md` says."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from rise_ray.config import load_config
from rise_ray.store.run import Run
from tests.system.miniature import JOB, REPOSITORY, SETTINGS
from tests.system.processes import descendants, wait_gone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

BIN = Path(sys.executable).parent
TOKEN = secrets.token_hex(32)  # the head's own: nothing else on this machine can send it jobs


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def environment() -> dict[str, str]:
    """The cluster's: its `rise-ray` is found by name, as on a node with rise-ray installed."""
    return {
        **{k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
    }


@pytest.fixture
def head() -> Iterator[str]:
    """A Ray head of our own with its dashboard on the loopback interface: the jobs' address."""
    # Ray's sockets lie in here, and their paths may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    options = ["port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port"]
    ports = dict(zip(options, free_ports(len(options)), strict=True))
    process = subprocess.Popen(
        [
            *(str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=4"),
            *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"),
            *(f"--object-store-memory={200 * 2**20}", f"--temp-dir={folder}"),
            *(f"--{option}={port}" for option, port in ports.items()),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    try:
        wait_for(f"{address}/api/jobs/", process)
        yield address
    finally:
        started = descendants(process.pid)
        process.terminate()
        process.wait(60)
        left = wait_gone(started)
        shutil.rmtree(folder)
    assert not left, f"still running after the head was stopped: {left}"


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {TOKEN}"})
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except OSError:
            assert process.poll() is None, "the head did not start"
            assert time.monotonic() < deadline, f"no answer from {url}"
            time.sleep(0.5)


def test_a_submitted_run_trains_on_the_cluster_and_leaves_its_folder(
    head: str, tmp_path: Path
) -> None:
    settings = [*SETTINGS, f"storage={tmp_path}", "iterations=1", "control.enabled=false"]
    job = ["rise-ray", "run", str(JOB.relative_to(REPOSITORY)), *settings]
    submitted = subprocess.run(
        [BIN / "ray", "job", "submit", "--address", head, "--working-dir", ".", "--", *job],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert "succeeded" in submitted.stdout
    run = Run(load_config(JOB, settings), resume=False)
    assert run.finished
    assert (run.folder / "checkpoints" / "iteration=1").exists("config.json")
    assert run.folder.exists("report.html")
