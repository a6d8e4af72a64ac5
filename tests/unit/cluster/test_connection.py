"""What a run needs at the same time, in Ray's resources."""

from __future__ import annotations

from pathlib import Path

import pytest

from rise_ray.cluster.connection import required_resources
from rise_ray.config.loading import load_config, parse_config
from rise_ray.config.settings import RunConfig
from rise_ray.run.plans import teacher_workers
from rise_ray.run.tracks import stages_of

VERIFIER = 0.1
TASK = 1.0  # a sort task of Ray Data, beside the workers
TEXT = """
name: d
task: {name: countdown}
model: {path: m, max_model_len: 64}
rollout: {workers: {min_workers: 2, max_workers: 4, num_cpus: 1.5}}
train: {workers: 2, num_cpus: 1, batch_tokens: 128, row_tokens: 64}
"""


def _config(*overrides: str) -> RunConfig:
    return parse_config(TEXT, list(overrides), source="test")


def test_rollouts_and_training_take_turns_where_workers_are_released() -> None:
    assert required_resources(_config(), None) == {"CPU": 3.0 + TASK + VERIFIER}
    bigger = required_resources(_config("train.num_cpus=4"), None)
    assert bigger == {"CPU": 8.0 + VERIFIER}


@pytest.mark.parametrize(
    "stay", ["rollout.release_during_training=false", "train.release_during_rollouts=false"]
)
def test_both_are_needed_at_once_where_either_stays(stay: str) -> None:
    assert required_resources(_config(stay), None) == {"CPU": 3.0 + 2.0 + VERIFIER}


def test_a_task_of_the_run_has_a_whole_cpu_beside_workers_that_stay() -> None:
    config = _config("rollout.release_during_training=false", "train.num_cpus=0.2")
    assert required_resources(config, None) == {"CPU": 3.0 + TASK + VERIFIER}


def test_gpus_and_custom_resources_are_counted() -> None:
    config = _config(
        "rollout.workers.num_gpus=1",
        "rollout.workers.resources={spot: 1}",
        "train.num_gpus=1",
        "train.resources={big: 0.5}",
    )
    cpus = 3.0 + TASK + VERIFIER
    assert required_resources(config, None) == {"CPU": cpus, "GPU": 2.0, "big": 1.0, "spot": 2.0}


def test_a_reference_is_counted_beside_the_workers_or_on_gpus_before_them() -> None:
    beside = _config("sync.reference={num_cpus: 8, resources: {big: 1}}")
    assert required_resources(beside, None) == {"CPU": 3.0 + 8.0 + VERIFIER, "big": 1.0}
    workers = _config("rollout.workers.num_gpus=1")
    before = _config("rollout.workers.num_gpus=1", "sync.reference={num_cpus: 2, num_gpus: 4}")
    assert required_resources(workers, None)["GPU"] == 2.0
    assert required_resources(before, None) == {"CPU": 3.0 + TASK + VERIFIER, "GPU": 4.0}
    # A teacher's is made where students are already.
    assert required_resources(before, workers.rollout.workers)["GPU"] == 2.0 + 2.0 + 4.0


def test_a_teachers_pool_and_every_verifier_are_counted() -> None:
    config = _config(
        "recipe={name: rise, teacher: {kind: model, path: t, workers: {num_cpus: 2, num_gpus: 1}}}",
        "verify.actors=4",
    )
    cpus = 3.0 + 2.0 + TASK + 4 * VERIFIER
    assert required_resources(config, teacher_workers(stages_of(config))) == {
        "CPU": cpus,
        "GPU": 1.0,
    }


def test_the_bigger_of_warm_start_and_training_counts() -> None:
    train = "{workers: 4, num_cpus: 2, batch_tokens: 256, row_tokens: 64}"
    config = _config(f"warm_start={{examples: 1, train: {train}}}")
    assert required_resources(config, None) == {"CPU": 8.0 + VERIFIER}
    only_warm = _config("iterations=0", f"warm_start={{examples: 1, train: {train}}}")
    assert required_resources(only_warm, None) == {"CPU": 8.0 + VERIFIER}


def test_a_run_without_training_needs_its_rollout_workers_and_a_task() -> None:
    assert required_resources(_config("iterations=0"), None) == {"CPU": 3.0 + TASK + VERIFIER}


@pytest.mark.parametrize(
    "name", ["quickstart", "quickstart_plain", "countdown_warmstart", "gsm8k_cpu"]
)
def test_two_cores_are_enough_for_the_jobs_that_say_so(name: str) -> None:
    job = Path(__file__).parents[3] / "jobs" / f"{name}.yaml"
    assert required_resources(load_config(job), None)["CPU"] <= 2
