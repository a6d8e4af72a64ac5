"""`train`: a base model and a folder of examples in, a Hugging Face checkpoint out.

    result = train(TrainJob(name="iteration=1", config=config.train, base=..., examples=..., ...))

Runs on the Ray that the caller is connected to. The driver makes the packing plan; the ranks
(`rise_ray.train.loop`) follow it under Ray Train, and are started again after losses.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import math
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rise_ray.config.loading import may_change
from rise_ray.config.settings import TrainConfig
from rise_ray.errors import TrainError
from rise_ray.store.examples import ExampleManifest, read_lengths, read_manifest, read_part
from rise_ray.store.files import Folder
from rise_ray.train.deepspeed_config import checkpoint_dtype, deepspeed_config
from rise_ray.train.job import STATE_VERSION, TrainJob, TrainResult, WorkerResult, WorkerTask
from rise_ray.train.packing import ExampleTooLongError, PackingPlan, plan_epochs, plan_tokens

if TYPE_CHECKING:
    from rise_ray.train.ray_train import StoppableTrainer

logger = logging.getLogger(__name__)


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
    result = _fit(WorkerTask(job, manifest, plan, deepspeed, dtype))
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


def _fit(task: WorkerTask) -> Any:
    """Have the ranks do their task; what rank 0 returns.

    Raises:
        TrainError: workers were lost more than `max_failures` times, or so many of their starts.
    """
    import ray

    storage, name = Folder(task.job.storage), _run_name(task)
    with _ray_train_settings(task.job.config, nodes=len(ray.nodes())):
        value = _fit_again_if_a_start_fails(task, storage, name)
    storage.remove(name)
    return value


def _fit_again_if_a_start_fails(task: WorkerTask, storage: Folder, name: str) -> Any:
    """Run the training; what rank 0 returns.

    Ray Train restarts workers that were lost while they trained. Of workers that were lost while
    they started it forgets the placement group, and then gives up or waits for resources that the
    group holds: so the group is given back here, and the run taken up again. So is one that gives
    no sign of life any more, or whose controller was lost.
    """
    import ray.train
    from ray.exceptions import RayActorError

    from rise_ray.cluster.heartbeat import start_heartbeat, watched

    job, heartbeat = task.job, start_heartbeat()
    deadline_s = job.config.progress_deadline_s
    for restarts_left in reversed(range(1 + job.config.max_failures)):
        before = set(_placement_groups())
        trainer = _trainer(task, storage, name, heartbeat)
        waits = functools.partial(_waits_for_resources, before)
        try:
            with watched(heartbeat, deadline_s, waits, trainer.kill) as silent:
                return trainer.fit().return_value
        except KeyboardInterrupt:  # `rise_ray.cluster.stop`
            trainer.abort()
            _remove_placement_groups(_placement_groups().keys() - before)
            raise
        except (ray.train.TrainingFailedError, RayActorError) as error:
            _remove_placement_groups(_placement_groups().keys() - before)
            silence = f"no sign of life for {deadline_s:g} s (`train.progress_deadline_s`)"
            reason = silence if silent.is_set() else _root_cause(error)
            lost = isinstance(error, ray.train.ControllerError | RayActorError)
            if not restarts_left or not lost:
                raise TrainError(f"{job.name}: training failed: {reason}") from error
            logger.warning("%s: the workers are started again: %s", job.name, reason)
    raise AssertionError("the last round returns or raises")


def _waits_for_resources(before: set[str]) -> bool:
    """Whether a placement group that was not there before has not got its resources yet."""
    groups = _placement_groups()
    return any(groups[group_id] != "CREATED" for group_id in groups.keys() - before)


def _placement_groups() -> dict[str, str]:
    """The states of this job's placement groups that hold or await resources, by id."""
    import ray
    from ray.util import placement_group_table

    job_id = ray.get_runtime_context().get_job_id()
    return {
        group_id: group["state"]
        for group_id, group in placement_group_table().items()
        if group_id.endswith(job_id) and group["state"] != "REMOVED"
    }


def _remove_placement_groups(ids: Iterable[str]) -> None:
    import ray
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    for group_id in ids:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group_id))))


def _trainer(task: WorkerTask, storage: Folder, name: str, heartbeat: Any) -> StoppableTrainer:
    import ray.train

    from rise_ray.train.loop import train_worker
    from rise_ray.train.ray_train import Rendezvous, StoppableTrainer

    config = task.job.config
    return StoppableTrainer(
        train_worker,
        train_loop_config={"task": task, "heartbeat": heartbeat},
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
    settings = job.config.model_dump(mode="json").items()
    facts = [
        STATE_VERSION,
        job.base,
        job.seed,
        job.token_budget,
        {key: value for key, value in settings if not may_change(f"train.{key}")},
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
