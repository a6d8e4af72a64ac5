"""From ZeRO-3's partitions to a Hugging Face folder, with the probe that its readers must match.

`parity.json` holds log-probabilities of fixed sequences under the written weights, computed by
the trainer: after weights were sent to an engine, the engine has to find the same ones.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rise_ray.models.locate import locate_model
from rise_ray.store.files import Folder
from rise_ray.sync.parity import ParityReference, sequence_logprobs
from rise_ray.train.job import TrainJob, WorkerTask


def export_checkpoint(model: Any, task: WorkerTask, seconds: float) -> None:
    """Write the checkpoint. Every rank has to call this; rank 0 writes.

    The weights of `model`, a Hugging Face model, are partitioned by ZeRO-3; the model card says the
    `seconds` that the steps took.

    Raises:
        StoreError: the output folder cannot be written.
        SyncError: the weights give a log-probability that is not finite; nothing is written.
    """
    dtype = getattr(torch, task.dtype)
    sequences = task.job.parity_sequences
    model.eval()
    weights = gather_weights(model, dtype)
    with torch.autocast(model.device.type, dtype, enabled=dtype != model.dtype):
        logprobs = sequence_logprobs(model, sequences)
    if dist.get_rank() != 0:
        return
    with tempfile.TemporaryDirectory() as path:
        ParityReference(sequences, logprobs).save(Folder(path))
        _write_model(Path(path), model, weights, dtype, task.job)
        (Path(path) / "README.md").write_text(model_card(task, seconds))
        Folder(task.job.output).upload(Path(path))


def gather_weights(model: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The whole weights in `dtype` on rank 0's CPU, one at a time; {} on the other ranks.

    The partitions keep the rounded values, so that what is measured next is what was written.
    """
    import deepspeed

    gathered: dict[str, torch.Tensor] = {}
    # Where rounding changes a weight, rank 0 sends the rounded one back to the partitions.
    modifier = 0 if dtype != model.dtype else None
    for name, parameter in model.named_parameters():
        with torch.no_grad(), deepspeed.zero.GatheredParameters([parameter], modifier):
            if dist.get_rank() == 0:
                gathered[name] = parameter.detach().to("cpu", dtype, copy=True)
                if modifier is not None:
                    parameter.data.copy_(gathered[name])
    if dist.get_rank() == 0:
        state = model.state_dict()
        buffers = {name: buffer for name, buffer in model.named_buffers() if name in state}
        gathered |= {name: buffer.to("cpu", copy=True) for name, buffer in buffers.items()}
    return gathered


def _write_model(
    path: Path, model: Any, weights: dict[str, torch.Tensor], dtype: torch.dtype, job: TrainJob
) -> None:
    from transformers import AutoTokenizer

    model.config.use_cache = True
    model.save_pretrained(path, state_dict=weights)
    model.config.dtype = dtype  # save_pretrained puts down what the model was trained in
    model.config.save_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(
        locate_model(job.base), trust_remote_code=job.trust_remote_code
    )
    tokenizer.chat_template = job.chat_template
    tokenizer.save_pretrained(path)


def model_card(task: WorkerTask, seconds: float) -> str:
    """The README.md of a checkpoint: where it came from and what it was trained with."""
    job, plan = task.job, task.plan
    facts = {
        "Base model": job.base,
        "Training": job.name,
        "Examples": f"{task.manifest.examples} ({job.examples})",
        "Optimizer steps": str(plan.steps),
        "Tokens": f"{int(plan.tokens.sum())} ({int(plan.loss_tokens.sum())} with loss, "
        f"{int(plan.computed_tokens.sum())} computed)",
        "Peak learning rate": str(job.config.lr),
        "Tokens of a batch": str(job.config.batch_tokens),
        "Seed": str(job.seed),
        "Workers": f"{job.config.workers} (DeepSpeed ZeRO-3)",
        "Seconds of training": f"{seconds:.0f}",
        **job.card,
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [rise, self-correction, rise-ray]
---

# {job.name}

Fine-tuned with rise-ray: reward-weighted regression on multi-turn attempts
(RISE, [arXiv 2407.18219](https://arxiv.org/abs/2407.18219)).

| | |
|---|---|
{rows}
"""
