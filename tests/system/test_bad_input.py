"""What goes wrong inside Ray reaches the user as one message."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rise_ray.cluster.connection import check_resources
from rise_ray.config.loading import load_config
from rise_ray.config.settings import ReferenceConfig, RunConfig
from rise_ray.errors import ClusterError, ConfigError, ModelError, RiseError, StoreError, user_error
from rise_ray.store.files import Folder
from tests.system.miniature import COLLECT

ROOT = Path(__file__).parents[2]
WARM_START = ROOT / "jobs" / "countdown_warmstart.yaml"
SMALL = ["warm_start.examples=2000", "evaluation.problems=4", "ray.num_cpus=4"]
LONG_S = 500


@pytest.fixture
def rise_ray(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the command in a session of its own, as a terminal does."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "rise_ray.cli.main", *arguments, f"storage={tmp_path / 'runs'}"],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _ours(work: Callable[[], object]) -> RiseError:
    """The error for the user that `work` ends with, as the command line finds it."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - what it is, is what is tested
        work()
    ours = user_error(caught.value)
    assert ours is not None
    assert "Traceback" not in str(ours)
    assert "ray::" not in str(ours)
    return ours


def test_too_few_resources_are_told_before_a_run_folder_is_made(
    rise_ray: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = rise_ray("run", str(WARM_START), *SMALL, "ray.num_cpus=1")
    _, errors = process.communicate(timeout=LONG_S)
    assert process.returncode == 1
    assert errors.startswith("rise-ray: error: the Ray cluster is too small for this config: ")
    assert "1.7 CPU needed, 1 there" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., RunConfig]:
    def load(*overrides: str) -> RunConfig:
        return load_config(WARM_START, [*SMALL, f"storage={tmp_path}", *overrides])

    return load


@pytest.mark.usefixtures("ray_runtime")
def test_a_worker_that_no_node_can_hold_is_told(config: Callable[..., RunConfig]) -> None:
    check_resources(config(), None)
    spot = config("rollout.workers={num_cpus: 1, resources: {spot: 3}, min_workers: 1}")
    with pytest.raises(ClusterError, match="no node has the 1 CPU, 3 spot of one rollout worker"):
        check_resources(spot, None)


@pytest.mark.usefixtures("ray_runtime")
def test_an_architecture_that_is_none_comes_back_from_its_process(
    config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    from rise_ray.run.warm_start import initial_model
    from rise_ray.tasks import load_task

    bad = config("model.scratch.architecture={model_type: perceptron-9000}")
    folder = Folder(str(tmp_path / "scratch"))
    error = _ours(lambda: initial_model(bad, load_task(bad.task), [], folder))
    assert isinstance(error, ConfigError)
    assert str(error).startswith("`model.scratch.architecture`: ")


@pytest.mark.usefixtures("ray_runtime")
def test_a_model_that_cannot_be_loaded_comes_back_from_its_process(tmp_path: Path) -> None:
    from rise_ray.sync.parity import make_reference

    (tmp_path / "config.json").write_text("{")
    what = (str(tmp_path), [(1, 2)], "float32", False, 60.0, ReferenceConfig())
    error = _ours(lambda: make_reference(*what))
    assert isinstance(error, ModelError)
    assert str(tmp_path) in str(error)


@pytest.mark.usefixtures("ray_runtime")
def test_damaged_metrics_come_back_from_the_tracker(
    config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    from rise_ray.report.tracking import start_tracker

    (tmp_path / "metrics.jsonl").write_text("{")
    error = _ours(lambda: start_tracker(config(), Folder(str(tmp_path))))
    assert isinstance(error, StoreError)
    assert "metrics.jsonl: damaged" in str(error)


@pytest.mark.usefixtures("ray_runtime")
def test_a_damaged_part_is_named_by_the_relabeling(
    config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    from rise_ray.relabel.job import write_relabeled
    from rise_ray.relabel.rules.improved import Improved
    from rise_ray.store.trajectories import TrajectoryStore
    from tests.unit.relabel.builders import rolled

    store = TrajectoryStore(Folder(str(tmp_path / "trajectories")))
    part = store.write(COLLECT, [rolled("3 | 7 4", "7")])
    sealed = {COLLECT: store.seal(COLLECT)}
    store.folder_of(COLLECT).write(part, b"PAR1 nonsense")
    output = Folder(str(tmp_path / "examples"))
    error = _ours(lambda: write_relabeled(store, sealed, Improved(), 64, 0, output))
    assert isinstance(error, StoreError)
    assert f"{part}: damaged part" in str(error)
    assert not output.exists()
