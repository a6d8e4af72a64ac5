"""`train`: a base model and a folder of examples in, a Hugging Face checkpoint out.

    result = train(TrainJob(name="iteration=1", config=config.train, base=..., examples=..., ...))

Runs on the Ray that the caller is connected to. The driver makes the packing plan; the ranks
(`rise_ray.train.loop`) follow it under Ray Train (`rise_ray.train.fit`).
"""

from __future__ import annotations

import time
from typing import Literal

from rise_ray.config.settings import TrainConfig
from rise_ray.errors import ConfigError, TrainError
from rise_ray.store.examples import ExampleManifest, read_lengths, read_manifest, read_part
from rise_ray.store.files import Folder
from rise_ray.train.deepspeed_config import deepspeed_config, uses_bfloat16
from rise_ray.train.fit import fit
from rise_ray.train.packing import ExampleTooLongError, PackingPlan, plan_epochs, plan_tokens
from rise_ray.train.task import TrainJob, TrainResult, WorkerResult, WorkerTask


def train(job: TrainJob) -> TrainResult:
    """Fine-tune `job.base` on `job.examples` and write the checkpoint to `job.output`.

    The checkpoint is a Hugging Face folder: weights, tokenizer with its chat template,
    generation config, model card, and `parity.json` with the log-probabilities of
    `parity_sequences`: `{"sequences": [[id, ...]], "logprobs": [[nats, ...]]}`, one value for
    each token after a sequence's first.

    Raises:
        TrainError: no examples, one longer than a row, a loss that is not finite, too many steps
            in a row whose gradient is not, or workers that failed more than `max_failures` times.
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
        skipped_steps=result.skipped_steps,
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
