"""Secrets stay where they are, and services on the loopback interface: looked for in real runs.

One run of every part that ends well, tracked by W&B offline; one with `--debug` that fails at an
endpoint which repeats the key. Secrets are planted in their environment, and looked for in
everything that the runs wrote and printed.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from wandb.proto.wandb_internal_pb2 import Record

from rise_ray.config.loading import load_config
from rise_ray.report.tracking import _flat, read_metrics
from rise_ray.run.journal import Run
from rise_ray.store.files import Folder
from tests.system.feedback.fake_endpoint import FakeEndpoint, serving
from tests.system.miniature import JOB, REPOSITORY, SETTINGS
from tests.system.processes import is_loopback, listening

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SECRETS = {
    name: f"pl4nted-{name.lower().replace('_', '-')}-0123456789"
    for name in ("OPENAI_API_KEY", "WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY")
}
SMALL = [
    *SETTINGS,
    "train.workers=2",
    *("iterations=1", "controls=[]", "problems=12"),
    *("evaluation.problems=4", "evaluation.turns=2", "evaluation.parallel=2"),
    "wandb={mode: offline, tags: [test]}",
]


@dataclass
class Finished:
    """A run of the command: what it printed, and who listened where while it ran."""

    run: Run
    status: int = -1
    output: str = ""
    ray_logs: Path = Path()
    listening: set[tuple[str, str]] = field(default_factory=set)
    """(process, IP address)"""

    @property
    def folder(self) -> Path:
        return Path(self.run.folder.path)


def run_command(settings: list[str], *options: str) -> Finished:
    """`rise-ray run` as a user starts it, its listening sockets watched."""
    finished = Finished(Run(load_config(JOB, settings), resume=False, create=False))
    # Ray's sockets lie in here, and their paths may have 107 characters.
    finished.ray_logs = Path(tempfile.mkdtemp(prefix="ray-"))
    process = subprocess.Popen(
        [sys.executable, "-m", "rise_ray.cli.main", "run", str(JOB), *settings, *options],
        cwd=REPOSITORY,
        env={**os.environ, **SECRETS, "RAY_TMPDIR": str(finished.ray_logs)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with listening(process.pid) as finished.listening:
        finished.output, _ = process.communicate()
    finished.status = process.returncode
    return finished


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    finished = run_command([*SMALL, f"storage={tmp_path_factory.mktemp('good')}"])
    yield finished
    shutil.rmtree(finished.ray_logs)


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    with serving(FakeEndpoint(lambda messages: "", refusals=[401] * 100)) as endpoint:
        teacher = f"{{kind: openai, model: fake, base_url: '{endpoint.base_url}'}}"
        settings = [
            *SMALL,
            f"recipe={{name: rise, turns: 2, teacher: {teacher}}}",
            f"storage={tmp_path_factory.mktemp('failed')}",
        ]
        finished = run_command(settings, "--debug")
        assert endpoint.keys == {f"Bearer {SECRETS['OPENAI_API_KEY']}"}
    yield finished
    shutil.rmtree(finished.ray_logs)


def holders_of_secrets(finished: Finished) -> list[str]:
    """Every file of a run, its Ray's logs included, and its output, where a secret is in it."""
    wanted = [value.encode() for value in SECRETS.values()]
    files = [f for f in finished.folder.rglob("*") if f.is_file() and not f.is_symlink()]
    files += [f for f in finished.ray_logs.rglob("logs/*") if f.is_file()]
    assert len(files) > 20
    texts = {str(file): file.read_bytes() for file in files} | {
        "the output": finished.output.encode()
    }
    return [name for name, text in texts.items() if any(secret in text for secret in wanted)]


def wandb_records(folder: Path) -> list[Record]:
    """What W&B's own file of an offline run holds: protocol buffers in a LevelDB log."""
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, offset, parts, records = file.read_bytes(), 7, b"", []
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


def test_a_run_leaves_no_secret_in_its_folder_its_logs_or_its_output(good: Finished) -> None:
    assert good.status == 0, good.output
    names = {path.name for path in good.folder.iterdir()}
    assert {"config.yaml", "state.json", "metrics.jsonl", "report.html", "wandb"} <= names
    assert holders_of_secrets(good) == []


def test_a_failed_run_in_debug_leaves_none_either_though_the_endpoint_repeats_it(
    failed: Finished,
) -> None:
    assert failed.status == 1
    assert "Traceback" in failed.output
    assert "Incorrect API key provided: Bearer ***" in failed.output
    assert holders_of_secrets(failed) == []


def test_every_service_of_a_run_listens_on_the_loopback_interface_only(good: Finished) -> None:
    assert good.status == 0, good.output
    assert {"gcs_server", "raylet"} <= {name for name, _ in good.listening}
    assert {(name, ip) for name, ip in good.listening if not is_loopback(ip)} == set()


def test_an_offline_wandb_run_holds_the_config_and_every_measurement(good: Finished) -> None:
    assert good.status == 0, good.output
    records = wandb_records(good.folder)
    (run,) = {record.run.run_id for record in records if record.HasField("run")}
    assert run == good.run.config.name
    config = {item.key for r in records if r.HasField("run") for item in r.run.config.update}
    assert {"task", "train", "rollout"} <= config
    logged = [
        {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in r.history.item}
        for r in records
        if r.HasField("history")
    ]
    measured = [_flat(record) for record in read_metrics(Folder(str(good.folder)))]
    assert len(measured) > 5
    assert [{k: v for k, v in h.items() if not k.startswith("_")} for h in logged] == measured
    keys = {key for flat in measured for key in flat}
    assert {"train/iteration-1/loss", "eval/base/m1@t1", "eval/iteration-1/m1@t1"} <= keys
    assert not any(r.HasField("output") or r.HasField("output_raw") for r in records)
