"""`train`: a base model and a folder of examples in, a Hugging Face checkpoint out.

    result = train(TrainJob(name="iteration=1", config=config.train, base=..., examples=..., ...))

Runs on the Ray that the caller is connected to. The driver makes the packing plan; the ranks
(`rise_ray.train.ray_train`) follow it, and are started again after losses.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from rise_ray.config.loading import may_change
from rise_ray.errors import TrainError
from rise_ray.models.locate import locate_tokenizer
from rise_ray.store.examples import ExampleManifest, read_lengths, read_manifest, read_part
from rise_ray.store.files import Folder
from rise_ray.train.deepspeed_config import batch_sizes, checkpoint_dtype, deepspeed_config
from rise_ray.train.job import STATE_VERSION, TrainJob, TrainResult, WorkerTask
from rise_ray.train.packing import PackingPlan, choose_layout, plan_epochs, plan_tokens

if TYPE_CHECKING:
    from rise_ray.train.ray_train import Ranks

logger = logging.getLogger(__name__)

_FULL = "full_attention"


def train(job: TrainJob, ranks: Ranks | None = None) -> TrainResult:
    """Fine-tune `job.base` on `job.examples` and write the checkpoint to `job.output`.

    The checkpoint is a Hugging Face folder: weights, tokenizer with its chat template, generation
    config, model card, and `parity.json` (`rise_ray.sync.parity.ParityReference`).

    `ranks` do it, and stay; without them ranks are started for it alone.

    Raises:
        TrainError: an example longer than a row, a loss or a final log-probability that is not
            finite, too many steps in a row whose gradient is not, or workers that failed more than
            `max_failures` times.
        ConfigError: the DeepSpeed settings contradict the rest.
        StoreError: a folder cannot be read or written.
    """
    from rise_ray.train.ray_train import Ranks

    start = time.monotonic()
    config = job.config
    deepspeed = deepspeed_config(config)
    dtype = checkpoint_dtype(config, job.dtype)
    folder = Folder(job.examples)
    manifest = read_manifest(folder)
    plan = _plan(job, folder, manifest)
    rows_per_pass = plan.rows_at_once(config.workers, config.rows_per_pass)
    deepspeed |= batch_sizes(plan.rows_per_step, rows_per_pass, config.workers)
    state = _digest(job, manifest)
    task = WorkerTask(job, manifest, plan, rows_per_pass, deepspeed, dtype, state)
    if ranks is not None:
        result = ranks.do(task)
    else:
        with Ranks() as started:
            result = started.do(task)
    total_seconds = time.monotonic() - start
    if result.error is not None:
        raise TrainError(f"{job.name}: {result.error}")
    tenth = max(1, plan.steps // 10)
    trained = int(plan.tokens[result.resumed_at :].sum())
    return TrainResult(
        steps=plan.steps,
        tokens=int(plan.tokens.sum()),
        computed_tokens=int(plan.computed_tokens.sum()),
        loss_tokens=int(plan.loss_tokens.sum()),
        seconds=result.seconds,
        start_seconds=total_seconds - result.since_steps,
        total_seconds=total_seconds,
        first_loss=sum(result.losses[:tenth]) / tenth,
        last_loss=sum(result.losses[-tenth:]) / tenth,
        tokens_per_second=trained / result.seconds,
        resumed_at=result.resumed_at,
        skipped_steps=result.skipped_steps,
    )


def _plan(job: TrainJob, folder: Folder, manifest: ExampleManifest) -> PackingPlan:
    config = job.config
    lengths = read_lengths(folder, manifest)
    for part, of in zip(manifest.parts, lengths, strict=True):
        for index in (of.tokens > config.row_tokens).nonzero()[0]:
            raise TrainError(
                f"example {read_part(folder, part)['id'][index]} has {of.tokens[index]} tokens; "
                f"a packed row holds `row_tokens` = {config.row_tokens}"
            )
    choose = functools.partial(
        choose_layout,
        lengths,
        batch_tokens=config.batch_tokens,
        row_tokens=config.row_tokens,
        workers=config.workers,
    )
    layout = choose(shared_prefixes=config.shared_prefixes)
    if layout.fill is not None and not _sees_all(job):
        layout = choose(shared_prefixes=False)
    if job.token_budget is not None:
        return plan_tokens(lengths, layout, tokens=job.token_budget, seed=job.seed)
    return plan_epochs(lengths, layout, epochs=config.epochs, seed=job.seed)


def _sees_all(job: TrainJob) -> bool:
    """Whether each token attends to all before it, in all layers: what trees rest on."""
    from transformers import AutoConfig

    found = AutoConfig.from_pretrained(
        locate_tokenizer(job.base), trust_remote_code=job.trust_remote_code
    ).get_text_config(decoder=True)
    kinds = getattr(found, "layer_types", None)
    if kinds is None:
        kinds = ["sliding_attention" if getattr(found, "sliding_window", None) else _FULL]
    if set(kinds) == {_FULL}:
        return True
    logger.warning(
        "%s: shared prefixes are not used: the model has %s", job.name, sorted(set(kinds))
    )
    return False


def _digest(job: TrainJob, manifest: ExampleManifest) -> str:
    """Of all that a state's meaning depends on: ranks go on from one of the same only."""
    settings = job.config.model_dump(mode="json").items()
    facts = [
        STATE_VERSION,
        job.name,
        job.base,
        job.seed,
        job.token_budget,
        {key: value for key, value in settings if not may_change(f"train.{key}")},
        asdict(manifest),
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
