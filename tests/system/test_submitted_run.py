"""`ray job submit` and `ray job stop` of a run on a real head, as `cluster/README.md` says.

The run is on S3 and tracked by W&B offline. It is stopped, submitted again, and once more after
objects were lost, with a further control. Secrets are planted in the head's environment, and looked
for in everything that was written and printed.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import s3fs
from wandb.proto.wandb_internal_pb2 import Record

from rise_ray.report.tracking import _flat, read_metrics
from rise_ray.run.journal import read_journal
from rise_ray.run.lineage import open_run, problem_lineage, trace, training_rows
from rise_ray.store.files import Folder
from rise_ray.store.trajectories import TrajectoryStore
from tests.chaos.leftovers import left_in_cluster
from tests.chaos.nodes import free_ports
from tests.object_store import BUCKET, s3_server
from tests.system.miniature import BASE_EVAL, COLLECT, JOB, REPOSITORY, SETTINGS
from tests.system.planted import SECRETS, holders_of_secrets
from tests.system.processes import descendants, wait_gone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

BIN = Path(sys.executable).parent
RESTARTS = 2  # of a head whose raylet gave up on its agent (`chaos.nodes.Nodes`)
TRIES = 3  # of a command where the head says that it may be tried again, as on a busy machine
BUSY = ("Failed to store package in the GCS", "No available agent to submit job")
PROBLEMS = 96
TOKEN = secrets.token_hex(32)  # the head's own: nothing else on this machine can send it jobs
STORAGE = f"s3://{BUCKET}/runs"
RUN = [
    *("rise-ray", "run", str(JOB.relative_to(REPOSITORY)), *SETTINGS, f"storage={STORAGE}"),
    *("iterations=1", "controls=[]", "wandb={mode: offline, tags: [test]}"),
    # So that rolling lasts while `ray job stop` starts.
    *(f"problems={PROBLEMS}", "rollout.workers.episodes_in_flight=1", "--resume"),
]
FURTHER = "{name: variant, track: further, rule: {name: right_answers, turns: all}, epochs: 1}"
SUBMIT = ["submit", "--working-dir", ".", "--", *RUN]


@dataclass
class Head:
    """A Ray head of our own with its dashboard on the loopback interface."""

    jobs: str
    """Where jobs are sent to."""
    cluster: str
    """Where drivers connect to."""
    folder: Path
    """Ray's own, with its logs, and W&B's."""

    def environment(self) -> dict[str, str]:
        """The cluster's: its `rise-ray` is found by name, as where rise-ray is installed."""
        return {
            **{k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
            **SECRETS,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "WANDB_DIR": str(self.folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # of the head, in the end
            "RAY_JOB_STOP_WAIT_TIME_S": "60",  # until SIGKILL: of the head, not of the client
        }

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        """The head's process."""
        return subprocess.Popen(
            [*(str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=4"), *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=self.environment(),
            start_new_session=True,
        )

    def job(self, *arguments: str) -> str:
        """`ray job ARGUMENTS`; what it printed."""
        command = [BIN / "ray", "job", arguments[0], "--address", self.jobs, *arguments[1:]]
        for _ in range(TRIES):
            done = subprocess.run(
                command, cwd=REPOSITORY, env=self.environment(), capture_output=True, text=True
            )
            if not any(said in done.stderr for said in BUSY):
                break
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # Ray's sockets lie in here, and their paths may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    options = ["port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port"]
    ports = dict(zip(options, free_ports(len(options)), strict=True))
    jobs = f"http://127.0.0.1:{ports['dashboard-port']}"
    head = Head(jobs, f"127.0.0.1:{ports['port']}", folder)
    command = [
        *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"),
        *(f"--object-store-memory={200 * 2**20}", f"--temp-dir={folder}"),
        *(f"--{option}={port}" for option, port in ports.items()),
    ]
    with s3_server():
        process = head.start(*command)
        try:
            for _ in range(RESTARTS):
                if answers(f"{jobs}/api/jobs/", process):
                    break
                process = head.start(*command)
            assert answers(f"{jobs}/api/jobs/", process), "the head did not start"
            yield head
        finally:
            started = descendants(process.pid)
            process.terminate()
            process.wait(60)
            left = wait_gone(started)
            shutil.rmtree(folder)
    assert not left, f"still running after the head was stopped: {left}"


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


@dataclass
class Finished:
    """A run that was stopped once, and what its jobs printed."""

    folder: Folder
    stored: int
    """Episodes that the stopped job had stored."""
    output: str

    @property
    def store(self) -> TrajectoryStore:
        return TrajectoryStore(self.folder / "trajectories")


@pytest.fixture(scope="module")
def finished(head: Head) -> Finished:
    folder = Folder(f"{STORAGE}/miniature")
    store = TrajectoryStore(folder / "trajectories")
    head.job(SUBMIT[0], "--no-wait", "--submission-id", "first", *SUBMIT[1:])
    deadline = time.monotonic() + 600
    while not store.parts(COLLECT):
        assert time.monotonic() < deadline, head.job("logs", "first")
        time.sleep(0.05)
    head.job("stop", "first")
    assert "was stopped" in head.job("status", "first")
    output = head.job("logs", "first")
    assert "stopped by SIGTERM" in output
    assert left_in_cluster({**head.environment(), "RAY_ADDRESS": head.cluster}) == []
    stored = len(store.ids(COLLECT))
    output += head.job(*SUBMIT)
    return Finished(folder, stored, output)


def test_a_job_that_was_stopped_goes_on_when_it_is_submitted_again(finished: Finished) -> None:
    assert "succeeded" in finished.output
    assert 0 < finished.stored < PROBLEMS
    stages = read_journal(finished.folder)["stages"]
    assert stages["iteration-1/collect"]["rolled"] == PROBLEMS - finished.stored
    check_complete(finished)


def test_it_leaves_no_secret_in_its_folder_its_logs_or_its_output(
    finished: Finished, head: Head, tmp_path: Path
) -> None:
    s3fs.S3FileSystem().get(f"{BUCKET}/runs/miniature", str(tmp_path / "run"), recursive=True)
    assert holders_of_secrets(tmp_path / "run", head.folder, output=finished.output) == []


def test_wandbs_offline_runs_hold_the_config_and_every_measurement(
    finished: Finished, head: Head
) -> None:
    records = wandb_records(head.folder)
    (run,) = {record.run.run_id for record in records if record.HasField("run")}
    assert run == "miniature"
    config = {item.key for r in records if r.HasField("run") for item in r.run.config.update}
    assert {"task", "train", "rollout"} <= config
    logged = [
        {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in r.history.item}
        for r in records
        if r.HasField("history")
    ]
    measured = [_flat(record) for record in read_metrics(finished.folder)]
    assert len(measured) > 5
    assert [{k: v for k, v in h.items() if not k.startswith("_")} for h in logged] == measured
    keys = {key for flat in measured for key in flat}
    assert {"train/iteration-1/loss", "eval/base/m1@t1", "eval/iteration-1/m1@t1"} <= keys
    assert not any(r.HasField("output") or r.HasField("output_raw") for r in records)


def test_what_is_lost_later_comes_back_and_a_control_may_be_added(
    finished: Finished, head: Head
) -> None:
    lost = finished.store.folder_of(BASE_EVAL)
    for part in lost.names():
        lost.remove(part)
    finished.folder.remove("metrics.jsonl")
    said = head.job(*SUBMIT, f"controls=[{FURTHER}]")
    assert "goes on with other settings than before: `controls`" in said
    assert "base/eval: its stored trajectories are not whole" in said
    assert "metrics.jsonl: lacked" in said
    stages = read_journal(finished.folder)["stages"]
    assert finished.store.is_whole(BASE_EVAL, stages["base/eval"]["parts_sha256"])
    further = ["further-1/relabel", "further-1/train", "further-1/eval", "run/report"]
    assert [key for key in stages if key != "base/eval"][-4:] == further
    check_complete(finished)


def check_complete(finished: Finished) -> None:
    """Weights, report, measurements, and data that lead back to what was rolled."""
    folder = finished.folder
    assert folder.names() == ["config.yaml", "metrics.jsonl", "report.html", "state.json"]
    checkpoint = folder / "checkpoints" / "iteration=1"
    assert {"config.json", "model.safetensors", "parity.json"} <= set(checkpoint.names())
    record = open_run(folder)
    collected = finished.store.read(COLLECT, record.stages["iteration-1/collect"]["parts_sha256"])
    stored = {t.id: t for t in collected}
    assert len(stored) == PROBLEMS
    rows = list(training_rows(record))
    for row in rows:
        trace(record, row, stored[row.example.provenance.trajectory_id])
    relabeled = [result for key, result in record.stages.items() if key.endswith("/relabel")]
    assert len(rows) == sum(result["examples"] for result in relabeled) > 0
    problem = rows[0].example.provenance.problem_id
    assert rows[0].example.id in {r["example"] for r in problem_lineage(record, problem)}


def wandb_records(folder: Path) -> list[Record]:
    """What W&B's own files of offline runs hold, the earlier first."""
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda f: f.parent.name)
    return [record for file in files for record in _records(file.read_bytes())]


def _records(data: bytes) -> list[Record]:
    """Protocol buffers in a LevelDB log."""
    offset, parts, records = 7, b"", []
    while offset + 7 <= len(data):
        left = 2**15 - offset % 2**15
        if left < 7:  # a record's head is never divided over blocks
            offset += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, offset)
        parts += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            records.append(Record.FromString(parts))
            parts = b""
    return records
