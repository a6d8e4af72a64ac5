"""A job's training written down plainly: one process, no packing, no ZeRO, torch's AdamW."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM

from rise_ray.mdp import Example
from rise_ray.store.examples import examples_from_table, read_lengths, read_manifest, read_part
from rise_ray.store.files import Folder
from rise_ray.train.engine import lr_factor
from rise_ray.train.job import TrainJob
from rise_ray.train.packing import PackingPlan, plan_epochs


def plain_steps(job: TrainJob) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The job's steps in one process, unpacked, on torch's AdamW: losses and final weights."""
    folder, config = Folder(job.examples), job.config
    manifest = read_manifest(folder)
    parts = [examples_from_table(read_part(folder, part)) for part in manifest.parts]
    plan = plan_of(job)
    model = AutoModelForCausalLM.from_pretrained(job.base, dtype=torch.float32)
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=config.betas, weight_decay=config.weight_decay
    )
    losses = []
    for step in range(plan.steps):
        batch = [parts[part][index] for part, index in plan.step_examples(step)]
        loss = batch_loss(model, batch, manifest.mean_weight) / int(plan.loss_tokens[step])
        factor = lr_factor(step, plan.steps, config.warmup_ratio, config.min_lr_ratio)
        optimizer.param_groups[0]["lr"] = config.lr * factor
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.step()
        losses.append(loss.item())
    return losses, model.state_dict()


def batch_loss(model: torch.nn.Module, batch: list[Example], mean_weight: float) -> torch.Tensor:
    total = torch.zeros(())
    for example in batch:
        ids = torch.tensor([example.input_ids])
        logprobs = torch.log_softmax(model(input_ids=ids).logits[0], dim=-1)
        for span in example.spans:
            at = torch.arange(max(span.start, 1), span.end)
            total = total - span.weight / mean_weight * logprobs[at - 1, ids[0, at]].sum()
    return total


def plan_of(job: TrainJob) -> PackingPlan:
    folder = Folder(job.examples)
    lengths = read_lengths(folder, read_manifest(folder))
    rows = job.config.batch_tokens // job.config.row_tokens
    return plan_epochs(
        lengths,
        row_tokens=job.config.row_tokens,
        rows_per_step=rows,
        epochs=job.config.epochs,
        seed=job.seed,
    )
