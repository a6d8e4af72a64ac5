"""A run's own tasks and actors: room beside rollout workers, an end in time, another try."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from rise_ray.cluster.deadline import SideProcess
from rise_ray.config.loading import load_config
from rise_ray.config.settings import ReferenceConfig
from rise_ray.errors import ClusterError
from rise_ray.mdp import Place
from rise_ray.relabel.job import RelabelResult, write_relabeled
from rise_ray.relabel.rules.improved import Improved
from rise_ray.report.console import Console
from rise_ray.report.tracking import TrackerHandle
from rise_ray.run.journal import Run
from rise_ray.run.stages import Stages
from rise_ray.store.examples import read_manifest
from rise_ray.store.files import Folder
from rise_ray.store.trajectories import TrajectoryStore
from rise_ray.sync.parity import make_reference
from tests.system.miniature import COLLECT, JOB, SETTINGS
from tests.system.processes import losing, named, wait_gone
from tests.unit.relabel.builders import rolled

PARTS = 11
"""So many stream through Ray Data."""


@pytest.fixture
def no_cpu(ray_runtime: None) -> Iterator[None]:
    """Every CPU of the cluster is taken, as by nodes that went away."""
    groups = [placement_group([{"CPU": 0.5}])]
    while groups[-1].wait(2) or ray.available_resources().get("CPU", 0.0) >= 0.5:
        groups.append(placement_group([{"CPU": 0.5}]))
    yield
    for group in groups:
        remove_placement_group(group)


@pytest.mark.usefixtures("no_cpu")
def test_a_relabeling_that_no_node_has_room_for_is_told_in_time(tmp_path: Path) -> None:
    late = r"^relabeling did not end within 15 s; .*`ray.task_deadline_s`.* free ones are {"
    with pytest.raises(ClusterError, match=late):
        relabeler().do("relabeling", 15.0, *work(tmp_path))
    assert wait_gone(named("ray::write_relabeled")) == []
    assert not (tmp_path / "examples").exists()


@pytest.mark.usefixtures("ray_runtime")
def test_a_relabeling_whose_process_dies_is_done_again_and_the_process_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Ray Data and by one process the rows are the same, also of problems' means over parts."""
    process = relabeler()
    with losing("ray::write_relabeled.do", signal.SIGKILL):
        struck = process.do("relabeling", 120.0, *work(tmp_path / "struck"))
    started = named("ray::write_relabeled")
    few = process.do("relabeling", 120.0, *work(tmp_path / "few", parts=2))
    assert named("ray::write_relabeled") == started
    process.close()
    assert wait_gone(started) == []
    assert (few.manifest.examples, struck.manifest.examples) == (2 * 5, PARTS * 5)
    monkeypatch.setattr("rise_ray.relabel.job._PARTS_IN_PROCESS", PARTS)
    assert write_relabeled(*work(tmp_path / "whole")) == struck


@pytest.mark.usefixtures("ray_runtime")
def test_what_dies_again_and_again_has_one_deadline_for_all_its_tries() -> None:
    late = r"^dying did not end within 8 s"
    with closing(SideProcess(die, num_cpus=0)) as process, pytest.raises(ClusterError, match=late):
        process.do("dying", 8.0)


def die() -> None:
    time.sleep(3)
    os._exit(1)


def relabeler() -> SideProcess[RelabelResult]:
    return SideProcess(write_relabeled, num_cpus=0)


def work(folder: Path, parts: int = PARTS) -> tuple[Any, ...]:
    """A stage's: the same five problems in each iteration, whose place is a part."""
    store, sealed = TrajectoryStore(Folder(str(folder / "trajectories"))), {}
    for n in range(1, parts + 1):
        place = Place("iteration", n, "collect")
        right = "7" if n % 3 else "4"
        rows = [rolled(f"{n} | 7 {right}", problem=f"p{p}", place=place) for p in range(5)]
        store.write(place, rows)
        sealed[place] = store.seal(place)
    rule = Improved(centering="problem", drop_duplicates=False)
    return store, sealed, rule, 64, 0, Folder(str(folder / "examples"))


@pytest.mark.usefixtures("no_cpu")
def test_a_reference_that_no_node_has_room_for_is_told_in_time(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"^the parity reference of .* did not end within 2 s"):
        make_reference(str(tmp_path), [(1, 2)], "float32", False, 2.0, ReferenceConfig())


@pytest.mark.usefixtures("ray_runtime")
def test_a_tracker_that_hangs_is_told_in_time() -> None:
    hung = ray.remote(num_cpus=0)(_HungTracker).remote()
    tracker = TrackerHandle(hung, 2.0)
    with pytest.raises(ClusterError, match=r"^writing the measurements did not end within 2 s"):
        tracker.flush()
    ray.kill(hung)


class _HungTracker:
    def flush(self) -> None:
        """As a storage does that answers nothing."""
        time.sleep(60)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_runtime")
def test_relabeling_has_a_cpu_after_the_pool_grew_over_all_of_them(tmp_path: Path) -> None:
    workers = {"min_workers": 1, "max_workers": 3, "num_cpus": 1, "episodes_in_flight": 4}
    settings = [f"rollout.workers.{name}={value}" for name, value in workers.items()]
    config = load_config(JOB, [*SETTINGS, f"storage={tmp_path}", *settings])
    with Stages(Run(config, resume=False), Console()) as stages:
        roll, rows = (s for s in stages.stages if s.key in (str(COLLECT), "iteration-1/relabel"))
        stages.do(roll)
        assert ray.available_resources()["CPU"] < 1
        assert named("ray::write_relabeled")  # it has started beside the rollouts
        stages.do(rows)
    assert read_manifest(stages.run.folder / "examples" / "iteration-1").examples
