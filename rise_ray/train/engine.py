"""The model under DeepSpeed ZeRO-3, as each rank starts it."""

from __future__ import annotations

import logging
import math
import os
import warnings
from typing import Any

import torch

from rise_ray.cluster.imports import uncollected
from rise_ray.errors import StoreError
from rise_ray.models.locate import locate_model, resolve_dtype
from rise_ray.train.job import STATE_VERSION, TrainJob
from rise_ray.train.loss import WeightedLoss, check_trees
from rise_ray.train.packing import PackingPlan

TAG = "state"
"""The folder of a state in a checkpoint of Ray Train's."""


def start_engine(
    job: TrainJob, deepspeed_config: dict[str, Any], plan: PackingPlan
) -> tuple[Any, Any]:
    """The model under DeepSpeed, and an object that has to live as long as it."""
    with uncollected():
        import deepspeed
        from transformers import AutoModelForCausalLM
        from transformers.integrations import HfDeepSpeedConfig

    config = job.config
    take_over_process_group()  # from_pretrained needs it
    # Alive before from_pretrained, which then loads each weight straight into its partition.
    keep_alive = HfDeepSpeedConfig(deepspeed_config)
    model = AutoModelForCausalLM.from_pretrained(
        locate_model(job.base),
        dtype=getattr(torch, resolve_dtype(config.precision, config.num_gpus)),
        attn_implementation=config.attn_implementation,
        trust_remote_code=job.trust_remote_code,
        use_safetensors=True,
    )
    if not config.num_gpus:
        _gather_whole_layers(model)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    module = WeightedLoss(model, plan.trees)
    engine, *_ = deepspeed.initialize(
        model=module,
        model_parameters=[p for p in module.parameters() if p.requires_grad],
        config=deepspeed_config,
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: lr_factor(step, plan.steps, config.warmup_ratio, config.min_lr_ratio),
        ),
    )
    if plan.trees:
        check_trees(module, plan.row_tokens)
    engine.train()
    return engine, keep_alive


def lr_factor(step: int, steps: int, warmup_ratio: float, min_ratio: float) -> float:
    """The learning rate of step `step` (from 0) of `steps`, as a share of the peak.

    Unlike transformers' schedules the first step's is not 0: a step that changes nothing would
    be a large part of a short run.
    """
    warmup = math.ceil(warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


def take_over_process_group() -> None:
    """Have DeepSpeed use torch's process group, which Ray Train has started."""
    import deepspeed

    # A collective of DeepSpeed's inference that it would compile here, which takes half a minute
    # and a C++ compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed()


def _gather_whole_layers(model: Any) -> None:
    """Have ZeRO-3 fetch a decoder layer by one collective, with one hook, not weight by weight."""
    from deepspeed.utils import set_z3_leaf_modules

    names = model._no_split_modules or ()  # the names of the architecture's layer classes
    layers = {type(module) for module in model.modules() if type(module).__name__ in names}
    if layers:
        set_z3_leaf_modules(model, list(layers))


def load_state(engine: Any, path: str) -> dict[str, Any]:
    """Bring `engine` to the state that it saved under `path`; returns the caller's part of it.

    DeepSpeed writes its states by `torch.save` and reads them as pickles that may run anything.
    They lie in the run folder, so torch is told to refuse all but the types that such a state
    consists of: tensors and numbers, never code.

    Raises:
        pickle.UnpicklingError: the file holds anything but a state.
        StoreError: the state is of another schema version.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum

    # For the rest of this process: it overrides the `weights_only=False` of DeepSpeed's reader.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    torch.serialization.add_safe_globals([DynamicLossScaler, LossScaler, ZeroStageEnum])
    _, state = engine.load_checkpoint(path, tag=TAG)
    if state.get("schema_version") != STATE_VERSION:
        raise StoreError(
            f"{path}: a training's state of schema version {state.get('schema_version')}; this "
            f"rise-ray reads {STATE_VERSION}; delete it to train from the start"
        )
    return dict(state)


def quiet_libraries() -> None:
    """Leave out of the run's output what the libraries say to each other."""
    from transformers.utils import logging as transformers_logging

    for name in ("ray.data", "DeepSpeed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
