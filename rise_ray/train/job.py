"""`train`: a base model and a folder of examples in, a Hugging Face checkpoint out.

    result = train(TrainJob(name="iteration=1", config=config.train, base=..., examples=..., ...))

Runs on the Ray that the caller is connected to. The driver makes the packing plan; the ranks
(`rise_ray.train.loop`) follow it under Ray Train (`rise_ray.train.fit`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from rise_ray.config.settings import TrainConfig
from rise_ray.errors import ConfigError, TrainError
from rise_ray.store.examples import ExampleManifest, read_lengths, read_manifest, read_part
from rise_ray.store.files import Folder
from rise_ray.train.deepspeed_config import deepspeed_config, uses_bfloat16
from rise_ray.train.fit import fit
from rise_ray.train.packing import ExampleTooLongError, PackingPlan, plan_epochs, plan_tokens


@dataclass(frozen=True)
class TrainJob:
    """Everything a training depends on."""

    name: str
    """Unique under `storage`, for example `iteration=1`."""
    config: TrainConfig
    base: str
    """The model to start from: a Hugging Face folder, a URI of one, or a hub name."""
    examples: str
    """The examples folder (`rise_ray.store.examples`)."""
    output: str
    """The checkpoint folder to write; it appears whole or not at all."""
    storage: str
    """Ray Train's own files: states that a failed run resumes from; removed at the end."""
    seed: int
    """Of the packing plan."""
    token_budget: int | None
    """Train on this many tokens (no padding), rounded to whole steps, instead of `epochs`."""
    dtype: Literal["auto", "float32", "bfloat16"]
    """Of the written checkpoint; `auto`: what is trained in."""
    trust_remote_code: bool
    parity_sequences: tuple[tuple[int, ...], ...]
    """Token ids whose log-probabilities under the final weights go into `parity.json`."""
    card: dict[str, str]
    """Facts for the model card."""
    log: Callable[[dict[str, object]], None] | None = None
    """Called on rank 0 about every 2 s with since_step, step, steps, loss, lr, grad_norm,
    tokens_per_s. The loss is the mean of the steps after `since_step`, up to `step`; a training
    that goes on from a state calls first with the state's step as `since_step`."""


@dataclass(frozen=True)
class TrainResult:
    """What a training did. Losses are means over the first and the last tenth of the steps."""

    steps: int
    tokens: int
    """Trained on, without padding, over all ranks and epochs."""
    loss_tokens: int
    seconds: float
    """Of the steps alone, without start-up and checkpoint (of the last start, if it resumed)."""
    total_seconds: float
    first_loss: float
    last_loss: float
    tokens_per_second: float
    resumed_at: int
    """The step that the last start went on from; 0 if no worker failed."""


@dataclass(frozen=True)
class WorkerTask:
    """What each rank is sent."""

    job: TrainJob
    manifest: ExampleManifest
    plan: PackingPlan
    deepspeed: dict[str, Any]
    dtype: Literal["float32", "bfloat16"]
    """Of the written checkpoint."""


@dataclass(frozen=True)
class WorkerResult:
    """What rank 0 returns; `error` is set where a repeat could only fail the same way."""

    error: str | None = None
    losses: list[float] = field(default_factory=list)
    resumed_at: int = 0
    seconds: float = 0.0


def train(job: TrainJob) -> TrainResult:
    """Fine-tune `job.base` on `job.examples` and write the checkpoint to `job.output`.

    The checkpoint is a Hugging Face folder: weights, tokenizer with its chat template,
    generation config, model card, and `parity.json` with the log-probabilities of
    `parity_sequences`: `{"sequences": [[id, ...]], "logprobs": [[nats, ...]]}`, one value for
    each token after a sequence's first.

    Raises:
        TrainError: no examples, one longer than a row, a non-finite loss or gradient, or
            workers that failed more than `max_failures` times.
        ConfigError: the DeepSpeed settings contradict the rest.
        StoreError: a folder cannot be read or written.
    """
    start = time.monotonic()
    deepspeed = deepspeed_config(job.config)
    dtype = checkpoint_dtype(job.config, job.dtype)
    folder = Folder(job.examples)
    manifest = read_manifest(folder)
    plan = _plan(job, folder, manifest)
    result = fit(WorkerTask(job, manifest, plan, deepspeed, dtype))
    if not isinstance(result, WorkerResult):
        raise TrainError(f"{job.name}: rank 0 returned no result")
    if result.error is not None:
        raise TrainError(f"{job.name}: {result.error}")
    tenth = max(1, plan.steps // 10)
    trained = int(plan.tokens[result.resumed_at :].sum())
    return TrainResult(
        steps=plan.steps,
        tokens=int(plan.tokens.sum()),
        loss_tokens=int(plan.loss_tokens.sum()),
        seconds=result.seconds,
        total_seconds=time.monotonic() - start,
        first_loss=sum(result.losses[:tenth]) / tenth,
        last_loss=sum(result.losses[-tenth:]) / tenth,
        tokens_per_second=trained / result.seconds,
        resumed_at=result.resumed_at,
    )


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


def _plan(job: TrainJob, folder: Folder, manifest: ExampleManifest) -> PackingPlan:
    config = job.config
    lengths = read_lengths(folder, manifest)
    rows = {
        "row_tokens": config.row_tokens,
        "rows_per_step": config.batch_tokens // config.row_tokens,
        "seed": job.seed,
    }
    try:
        if job.token_budget is not None:
            return plan_tokens(lengths, tokens=job.token_budget, **rows)
        return plan_epochs(lengths, epochs=config.epochs, **rows)
    except ExampleTooLongError as error:
        table = read_part(folder, manifest.parts[error.part])
        raise TrainError(f"example {table['id'][error.index]}: {error}") from error
