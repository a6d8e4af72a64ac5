"""A run's own tasks find a CPU beside rollout workers that took all they could, or say so."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from rise_ray.cluster import await_cpu
from rise_ray.config_file import load_config
from rise_ray.console import Console
from rise_ray.errors import ClusterError
from rise_ray.mdp import Phase
from rise_ray.stages import Stages
from rise_ray.store.examples import read_manifest
from rise_ray.store.run import Run
from tests.system.miniature import JOB, SETTINGS


@pytest.mark.usefixtures("ray_runtime")
def test_a_task_that_no_node_has_room_for_is_told_in_time() -> None:
    groups = [placement_group([{"CPU": 0.5}])]
    while groups[-1].wait(2):
        groups.append(placement_group([{"CPU": 0.5}]))
    with pytest.raises(ClusterError, match=r"^relabeling needs 1 CPU, .* within 2 s .* has free: "):
        await_cpu("relabeling", 2.0)
    for group in groups:
        remove_placement_group(group)
    await_cpu("relabeling", 60.0)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_runtime")
def test_relabeling_has_a_cpu_after_the_pool_grew_over_all_of_them(tmp_path: Path) -> None:
    workers = {"min_workers": 1, "max_workers": 3, "num_cpus": 1, "episodes_in_flight": 4}
    settings = [f"rollout.workers.{name}={value}" for name, value in workers.items()]
    config = load_config(JOB, [*SETTINGS, f"storage={tmp_path}", *settings])
    with Stages(Run(config, resume=False), Console()) as stages:
        stages.collect(1, Phase.COLLECT, stages.base())
        assert ray.available_resources()["CPU"] < 1
        examples = stages.relabel(1, Phase.COLLECT)
    assert read_manifest(examples).examples
