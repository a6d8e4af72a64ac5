"""What a run needs at the same time, in Ray's resources."""

from __future__ import annotations

from rise_ray.cluster import required_resources
from rise_ray.config import RunConfig
from rise_ray.config_file import parse_config

CHECKS = 0.1 + 0.25  # one verifier actor and one Ray Data task
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
    assert required_resources(_config()) == {"CPU": 3.0 + CHECKS}
    bigger = required_resources(_config("train.num_cpus=4"))
    assert bigger == {"CPU": 8.0 + CHECKS}


def test_both_are_needed_at_once_where_workers_stay() -> None:
    together = required_resources(_config("rollout.release_during_training=false"))
    assert together == {"CPU": 3.0 + 2.0 + CHECKS}


def test_gpus_and_custom_resources_are_counted() -> None:
    config = _config(
        "rollout.workers.num_gpus=1",
        "rollout.workers.resources={spot: 1}",
        "train.num_gpus=1",
        "train.resources={big: 0.5}",
    )
    assert required_resources(config) == {"CPU": 3.35, "GPU": 2.0, "big": 1.0, "spot": 2.0}


def test_a_teachers_pool_and_every_verifier_are_counted() -> None:
    config = _config(
        "relabel.strategy=distill",
        "teacher={kind: model, path: t, workers: {num_cpus: 2, num_gpus: 1}}",
        "verify.actors=4",
    )
    assert required_resources(config) == {"CPU": 3.0 + 2.0 + 0.4 + 0.25, "GPU": 1.0}


def test_the_bigger_of_warm_start_and_training_counts() -> None:
    train = "{workers: 4, num_cpus: 2, batch_tokens: 256, row_tokens: 64}"
    config = _config(f"warm_start={{examples: 1, train: {train}}}")
    assert required_resources(config) == {"CPU": 8.0 + CHECKS}
    only_warm = _config("iterations=0", f"warm_start={{examples: 1, train: {train}}}")
    assert required_resources(only_warm) == {"CPU": 8.0 + CHECKS}


def test_a_run_without_training_needs_its_rollout_workers_only() -> None:
    assert required_resources(_config("iterations=0")) == {"CPU": 3.0 + CHECKS}
