"""The DeepSpeed config of a run: ZeRO-3 from `TrainConfig`, the user's own settings over it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from rise_ray.config.settings import TrainConfig
from rise_ray.errors import ConfigError
from rise_ray.models.locate import resolve_dtype

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


def checkpoint_dtype(
    config: TrainConfig, setting: Literal["auto", "float32", "bfloat16"]
) -> Literal["float32", "bfloat16"]:
    """The precision that a checkpoint is written in, for `model.dtype` = `setting`.

    Raises:
        ConfigError: it would pretend to more precision than was trained in.
    """
    trained = resolve_dtype(config.precision, config.num_gpus)
    if setting == "float32" and trained == "bfloat16":
        raise ConfigError(
            "`model.dtype` is float32, but training is in bfloat16: "
            "set `train.precision=float32` or `model.dtype=bfloat16`"
        )
    return trained if setting == "auto" else setting


def batch_sizes(rows_per_step: int, rows_per_pass: int, workers: int) -> dict[str, int]:
    """A step's rows, as DeepSpeed has them: all, a rank's at once, and its passes."""
    return {
        "train_batch_size": rows_per_step,
        "train_micro_batch_size_per_gpu": rows_per_pass,
        "gradient_accumulation_steps": rows_per_step // (workers * rows_per_pass),
    }


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
        merged = _merge_theirs(merged, _read(config.deepspeed_file, source), source)
    merged = _merge_theirs(merged, config.deepspeed, "`train.deepspeed`")
    # DeepSpeed's own Adam has to be compiled first, by a toolkit that few nodes have: only where
    # torch's is refused, beside weights that lie in the CPU's memory.
    offload = _get(merged, "zero_optimization.offload_optimizer.device")
    merged["optimizer"]["params"].setdefault("torch_adam", offload in (None, "none"))
    return merged


def _base(config: TrainConfig) -> dict[str, Any]:
    on_gpu = config.num_gpus > 0
    rows = config.batch_tokens // config.row_tokens
    return {
        **batch_sizes(rows, config.rows_per_pass, config.workers),
        "gradient_clipping": config.grad_clip,
        "bf16": {"enabled": resolve_dtype(config.precision, config.num_gpus) == "bfloat16"},
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": config.lr,
                "betas": list(config.betas),
                "eps": 1e-8,
                "weight_decay": config.weight_decay,
            },
        },
        "zero_optimization": {"stage": 3, **({} if on_gpu else _ZERO3_ON_CPU)},
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
    }


def _read(path: str, source: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{source}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{source}: must hold a JSON object")
    return content


def _merge_theirs(ours: dict[str, Any], theirs: dict[str, Any], source: str) -> dict[str, Any]:
    for key, setting in _OURS.items():
        wanted = _get(theirs, key)
        if wanted not in (None, "auto") and wanted != (_get(ours, key) or False):
            raise ConfigError(f"{source}: `{key}` is {wanted!r}; it is set by {setting}")
    return _merge(ours, theirs)


def _get(tree: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _merge(under: Any, over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under) if isinstance(under, dict) else {}
    for key, value in over.items():
        if isinstance(value, dict):
            merged[key] = _merge(merged.get(key), value)
        elif value != "auto":
            merged[key] = value
    return merged
