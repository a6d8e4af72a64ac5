"""`train`: a base model and a folder of examples in, a Hugging Face checkpoint out.

    result = train(TrainJob(name="iteration=1", config=config.train, base=..., examples=..., ...))

Runs on the Ray that the caller is connected to. The driver makes the packing plan; the ranks
(`rise_ray.train.loop`) follow it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from rise_ray.config import TrainConfig
from rise_ray.errors import ConfigError, TrainError
from rise_ray.stop import SIGNALS
from rise_ray.store.examples import ExampleManifest, read_lengths, read_manifest, read_part
from rise_ray.store.files import Folder
from rise_ray.train.deepspeed_config import deepspeed_config, uses_bfloat16
from rise_ray.train.packing import ExampleTooLongError, PackingPlan, plan_epochs, plan_tokens

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

logger = logging.getLogger(__name__)


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
    """Called on rank 0 about every 2 s with step, steps, loss, lr, grad_norm, tokens_per_s."""


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
    result = _fit(WorkerTask(job, manifest, plan, deepspeed, dtype))
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


def _fit(task: WorkerTask) -> WorkerResult:
    import ray

    job, config = task.job, task.job.config
    storage, name = Folder(job.storage), _run_name(task)
    with _ray_train_settings(config, nodes=len(ray.nodes())):
        value = _fit_again_if_a_start_fails(task, storage, name)
    storage.remove(name)
    if not isinstance(value, WorkerResult):
        raise TrainError(f"{job.name}: rank 0 returned no result")
    return value


def _fit_again_if_a_start_fails(task: WorkerTask, storage: Folder, name: str) -> Any:
    """Run the training; what rank 0 returns.

    Ray Train restarts workers that were lost while they trained. Of workers that were lost while
    they started it forgets the placement group, and then gives up or waits for resources that the
    group holds: so the group is given back here, and the run taken up again.
    """
    import ray.train

    job = task.job
    for restarts_left in reversed(range(1 + job.config.max_failures)):
        before = _placement_groups()
        try:
            with _stoppable():
                return _trainer(task, storage, name).fit().return_value
        except ray.train.TrainingFailedError as error:
            _remove_placement_groups(_placement_groups() - before)
            if not restarts_left or not isinstance(error, ray.train.ControllerError):
                raise TrainError(f"{job.name}: training failed: {_root_cause(error)}") from error
            logger.warning("%s: the workers did not start: %s", job.name, _root_cause(error))
    raise AssertionError("the last round returns or raises")


def _placement_groups() -> set[str]:
    """Ids of this job's placement groups that hold or await resources."""
    import ray
    from ray.util import placement_group_table

    job_id = ray.get_runtime_context().get_job_id()
    return {
        group_id
        for group_id, group in placement_group_table().items()
        if group_id.endswith(job_id) and group["state"] != "REMOVED"
    }


def _remove_placement_groups(ids: set[str]) -> None:
    import ray
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    for group_id in ids:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group_id))))


def _trainer(task: WorkerTask, storage: Folder, name: str) -> TorchTrainer:
    import ray.train
    from ray.train.torch import TorchTrainer

    from rise_ray.train.loop import train_worker
    from rise_ray.train.rendezvous import Rendezvous

    config = task.job.config
    return TorchTrainer(
        train_worker,
        train_loop_config={"task": task},
        torch_config=Rendezvous(
            backend="nccl" if config.num_gpus else "gloo",
            timeout_s=math.ceil(config.step_deadline_s),
        ),
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.workers,
            use_gpu=config.num_gpus > 0,
            resources_per_worker=_resources(config),
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage.path,
            storage_filesystem=storage.arrow(),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            failure_config=ray.train.FailureConfig(
                max_failures=config.max_failures,
                controller_failure_limit=0,  # see _fit_again_if_a_start_fails
            ),
        ),
    )


def _run_name(task: WorkerTask) -> str:
    """Ray Train resumes a run by its name: one that trains on anything else gets another."""
    job = task.job
    facts = [
        job.base,
        job.seed,
        job.token_budget,
        job.config.model_dump(mode="json"),
        asdict(task.manifest),
    ]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9._=-]', '-', job.name)}-{digest[:12]}"


def _resources(config: TrainConfig) -> dict[str, float]:
    resources = {"CPU": config.num_cpus, **config.resources}
    return resources | ({"GPU": config.num_gpus} if config.num_gpus else {})


@contextlib.contextmanager
def _ray_train_settings(config: TrainConfig, nodes: int) -> Iterator[None]:
    """Ray Train's settings that exist as environment variables of the driver only."""
    attempts = 1 + config.max_failures
    settings = {
        # The controller looks for the workers' end this often: 2 s by default, of every fit().
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        # The autoscaler may need minutes for a GPU node; the default gives up after 60 s.
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(config.start_deadline_s / attempts),
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(config.step_deadline_s),
    }
    if nodes == 1:
        # It watches for nodes about to be taken away: here, a process to start for nothing.
        settings["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update({n: v for n, v in settings.items() if before[n] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGINT and SIGTERM stop the training's workers and are then the caller's again.

    Ray Train takes SIGINT over, for good: it stops its workers and ends the process with 0.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python handles signals in the main thread, and so does Ray Train
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    asked = signal.SIGINT

    def terminate(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = signal.SIGTERM
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except (SystemExit, KeyboardInterrupt):
        _restore(before)
        signal.raise_signal(asked)
        raise
    finally:
        _restore(before)


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _root_cause(error: BaseException) -> str:
    """The one line that says what happened on the worker, without Ray's traces around it."""
    failures = getattr(error, "worker_failures", None) or {}
    if not failures:
        inner = getattr(error, "controller_failure", error)
        return str(inner).strip().splitlines()[0]
    rank = min(failures)
    lines = [line for line in str(failures[rank]).splitlines() if line.strip()]
    # An exception's own line is the last one of its trace that is not indented.
    flush = [line for line in lines if not line.startswith((" ", "\t", "Traceback"))]
    return f"rank {rank}: {(flush or lines or [repr(failures[rank])])[-1].strip()}"
