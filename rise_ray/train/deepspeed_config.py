"""The DeepSpeed config of a run: ZeRO-3 from `TrainConfig`, the user's own settings over it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from rise_ray.config.settings import TrainConfig
from rise_ray.errors import ConfigError

# What rise-ray's own settings decide, or what the packing plan's batches rest on.
_OURS = {
    "train_batch_size": "train.batch_tokens",
    "train_micro_batch_size_per_gpu": "train.rows_per_pass",
    "gradient_accumulation_steps": "train.batch_tokens",
    "scheduler": "train.warmup_ratio and train.min_lr_ratio",
    "bf16.enabled": "train.precision",
    "fp16.enabled": "train.precision",
    "zero_optimization.stage": "nothing: rise-ray trains with stage 3",
}

# Between processes of one machine a collective's latency and Python's own time are what costs,
# not bandwidth: few, large collectives. On a GPU DeepSpeed's own defaults hold.
_ZERO3_ON_CPU = {
    "overlap_comm": False,
    # Small weights kept whole are gathered again after each step, one by one.
    "stage3_param_persistence_threshold": 0,
    # A linear layer in Python that saves memory only where layers are released in between.
    "memory_efficient_linear": False,
}


def uses_bfloat16(config: TrainConfig) -> bool:
    """Whether `precision` means bfloat16 on the workers' devices."""
    return config.precision == "bfloat16" or (config.precision == "auto" and config.num_gpus > 0)


def checkpoint_dtype(
    config: TrainConfig, setting: Literal["auto", "float32", "bfloat16"]
) -> Literal["float32", "bfloat16"]:
    """The precision that a checkpoint is written in, for `model.dtype` = `setting`.

    Raises:
        ConfigError: it would pretend to more precision than was trained in.
    """
    trained: Literal["float32", "bfloat16"] = "bfloat16" if uses_bfloat16(config) else "float32"
    if setting == "auto":
        return trained
    if setting == "float32" and trained == "bfloat16":
        raise ConfigError(
            "`model.dtype` is float32, but training is in bfloat16: "
            "set `train.precision=float32` or `model.dtype=bfloat16`"
        )
    return setting


def passes_per_step(config: TrainConfig) -> int:
    """Forward passes of a rank in one optimizer step (gradient accumulation)."""
    rows = config.batch_tokens // config.row_tokens
    return rows // (config.workers * config.rows_per_pass)


def deepspeed_config(config: TrainConfig) -> dict[str, Any]:
    """The config for `deepspeed.initialize`, `deepspeed_file` and `deepspeed` merged over ours.

    A value of "auto", as in files made for transformers' Trainer, leaves ours or, where we have
    none, DeepSpeed's default.

    Raises:
        ConfigError: the user's settings are unreadable or contradict the rest of the config.
    """
    merged = _base(config)
    if config.deepspeed_file is not None:
        source = f"`train.deepspeed_file` {config.deepspeed_file}"
        merged = _merge(merged, _checked(_read(config.deepspeed_file), merged, source))
    return _merge(merged, _checked(config.deepspeed, merged, "`train.deepspeed`"))


def _base(config: TrainConfig) -> dict[str, Any]:
    on_gpu = config.num_gpus > 0
    return {
        "train_batch_size": config.batch_tokens // config.row_tokens,
        "train_micro_batch_size_per_gpu": config.rows_per_pass,
        "gradient_accumulation_steps": passes_per_step(config),
        "gradient_clipping": config.grad_clip,
        "bf16": {"enabled": uses_bfloat16(config)},
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": config.lr,
                "betas": list(config.betas),
                "eps": 1e-8,
                "weight_decay": config.weight_decay,
                "torch_adam": not on_gpu,  # DeepSpeed's own CPU Adam has to be compiled first
            },
        },
        "zero_optimization": {"stage": 3, **({} if on_gpu else _ZERO3_ON_CPU)},
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
    }


def _read(path: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"`train.deepspeed_file` {path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"`train.deepspeed_file` {path}: must hold a JSON object")
    return content


def _checked(theirs: Mapping[str, Any], ours: Mapping[str, Any], source: str) -> dict[str, Any]:
    theirs = _without_auto(theirs)
    for key, setting in _OURS.items():
        wanted = _get(theirs, key)
        if wanted is not None and wanted != (_get(ours, key) or False):
            raise ConfigError(f"{source}: `{key}` is {wanted!r}; it is set by {setting}")
    return theirs


def _without_auto(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_auto(value) if isinstance(value, Mapping) else value
        for key, value in tree.items()
        if value != "auto"
    }


def _get(tree: Mapping[str, Any], dotted: str) -> Any:
    value: Any = tree
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            value = _merge(below, value)
        merged[key] = value
    return merged
