"""The user's DeepSpeed settings go over ours; ZeRO stage 3 and the batch stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rise_ray.config.settings import TrainConfig
from rise_ray.errors import ConfigError
from rise_ray.train.deepspeed_config import deepspeed_config


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(
        **{"workers": 2, "batch_tokens": 2048, "row_tokens": 128, "rows_per_pass": 2} | changes
    )


def test_the_batch_is_workers_times_rows_times_passes() -> None:
    made = deepspeed_config(config())
    assert made["train_batch_size"] == 16
    assert made["train_micro_batch_size_per_gpu"] == 2
    assert made["gradient_accumulation_steps"] == 4


def test_precision_auto_is_float32_on_cpu_and_bfloat16_on_gpu() -> None:
    assert deepspeed_config(config())["bf16"] == {"enabled": False}
    assert deepspeed_config(config(num_gpus=1))["bf16"] == {"enabled": True}
    assert deepspeed_config(config(precision="bfloat16"))["bf16"] == {"enabled": True}


def test_the_file_goes_over_ours_and_the_mapping_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(
        json.dumps(
            {
                "zero_optimization": {"stage": 3, "sub_group_size": 5, "reduce_bucket_size": 7},
                "optimizer": {"params": {"eps": 1e-6}},
            }
        )
    )
    theirs = {"zero_optimization": {"reduce_bucket_size": 9}}
    made = deepspeed_config(config(deepspeed_file=str(path), deepspeed=theirs, lr=0.5))
    assert made["zero_optimization"]["sub_group_size"] == 5
    assert made["zero_optimization"]["reduce_bucket_size"] == 9
    assert made["zero_optimization"]["stage"] == 3
    assert made["optimizer"]["params"]["eps"] == 1e-6
    assert made["optimizer"]["params"]["lr"] == 0.5


def test_auto_leaves_our_value() -> None:
    theirs = {"train_batch_size": "auto", "optimizer": {"params": {"lr": "auto"}}}
    made = deepspeed_config(config(deepspeed=theirs, lr=0.5))
    assert made["train_batch_size"] == 16
    assert made["optimizer"]["params"]["lr"] == 0.5


@pytest.mark.parametrize(("num_gpus", "device"), [(0, None), (1, None), (1, "none"), (1, "cpu")])
def test_only_an_offloaded_optimizer_is_one_that_has_to_be_compiled(
    num_gpus: int, device: str | None
) -> None:
    theirs = {"zero_optimization": {"offload_optimizer": {"device": device}}} if device else {}
    made = deepspeed_config(config(num_gpus=num_gpus, deepspeed=theirs))
    assert made["optimizer"]["params"]["torch_adam"] is (device != "cpu")


def test_the_user_may_have_deepspeed_s_own_adam() -> None:
    made = deepspeed_config(config(deepspeed={"optimizer": {"params": {"torch_adam": False}}}))
    assert made["optimizer"]["params"]["torch_adam"] is False


@pytest.mark.parametrize(
    ("theirs", "named"),
    [
        ({"zero_optimization": {"stage": 2}}, "zero_optimization.stage"),
        ({"train_batch_size": 3}, "train.batch_tokens"),
        ({"gradient_accumulation_steps": 1}, "train.batch_tokens"),
        ({"fp16": {"enabled": True}}, "train.precision"),
        ({"bf16": {"enabled": True}}, "train.precision"),
        ({"scheduler": {"type": "WarmupLR"}}, "train.warmup_ratio"),
    ],
)
def test_what_contradicts_our_settings_names_the_setting(
    theirs: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        deepspeed_config(config(deepspeed=theirs))


@pytest.mark.parametrize("content", [None, "{", "[1]"])
def test_an_unreadable_file_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "ds.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=r"ds\.json"):
        deepspeed_config(config(deepspeed_file=str(path)))
