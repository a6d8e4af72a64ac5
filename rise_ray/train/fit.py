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
from collections.abc import Collection, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rise_ray.config.loading import may_change
from rise_ray.config.settings import TrainConfig
from rise_ray.errors import TrainError
from rise_ray.models.locate import locate_tokenizer
from rise_ray.store.examples import ExampleManifest, read_lengths, read_manifest, read_part
from rise_ray.store.files import Folder
from rise_ray.train.deepspeed_config import batch_sizes, checkpoint_dtype, deepspeed_config
from rise_ray.train.job import STATE_VERSION, TrainJob, TrainResult, WorkerResult, WorkerTask
from rise_ray.train.packing import PackingPlan, choose_layout, plan_epochs, plan_tokens

if TYPE_CHECKING:
    from rise_ray.train.ray_train import StoppableTrainer

logger = logging.getLogger(__name__)

_FULL = "full_attention"


def train(job: TrainJob) -> TrainResult:
    """Fine-tune `job.base` on `job.examples` and write the checkpoint to `job.output`.

    The checkpoint is a Hugging Face folder: weights, tokenizer with its chat template, generation
    config, model card, and `parity.json` (`rise_ray.sync.parity.ParityReference`).

    Raises:
        TrainError: an example longer than a row, a loss or a final log-probability that is not
            finite, too many steps in a row whose gradient is not, or workers that failed more than
            `max_failures` times.
        ConfigError: the DeepSpeed settings contradict the rest.
        StoreError: a folder cannot be read or written.
    """
    start = time.monotonic()
    config = job.config
    deepspeed = deepspeed_config(config)
    dtype = checkpoint_dtype(config, job.dtype)
    folder = Folder(job.examples)
    manifest = read_manifest(folder)
    plan = _plan(job, folder, manifest)
    rows_per_pass = plan.rows_at_once(config.workers, config.rows_per_pass)
    deepspeed |= batch_sizes(plan.rows_per_step, rows_per_pass, config.workers)
    task = WorkerTask(job, manifest, plan, rows_per_pass, deepspeed, dtype)
    with _ray_train_settings(config):
        result: WorkerResult = _fit(task)
    Folder(job.storage).remove(_run_name(task))
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


def _fit(task: WorkerTask) -> Any:
    """Have the ranks do their task; what rank 0 returns.

    Ray Train restarts workers that were lost while they trained. Of workers that were lost while
    they started it forgets the placement group, and then gives up or waits for resources that the
    group holds: so the group is given back here, and the run taken up again. So is one that gives
    no sign of life any more, or whose controller was lost.

    Raises:
        TrainError: workers were lost more than `max_failures` times, or so many of their starts.
    """
    import ray.train
    from ray.exceptions import RayActorError

    from rise_ray.cluster.heartbeat import start_heartbeat, watched

    job, heartbeat = task.job, start_heartbeat()
    deadline_s = job.config.progress_deadline_s
    for restarts_left in reversed(range(1 + job.config.max_failures)):
        before = set(_placement_groups())
        trainer = _trainer(task, heartbeat)
        waits = functools.partial(_waits_for_resources, before)
        try:
            with watched(heartbeat, deadline_s, waits, trainer.kill) as silent:
                return trainer.fit().return_value
        except KeyboardInterrupt:  # `rise_ray.cluster.stop`
            trainer.abort()
            _remove_placement_groups(before)
            raise
        except (ray.train.TrainingFailedError, RayActorError) as error:
            _remove_placement_groups(before)
            silence = f"no sign of life for {deadline_s:g} s (`train.progress_deadline_s`)"
            reason = silence if silent.is_set() else _root_cause(error)
            lost = isinstance(error, ray.train.ControllerError | RayActorError)
            if not restarts_left or not lost:
                raise TrainError(f"{job.name}: training failed: {reason}") from error
            logger.warning("%s: the workers are started again: %s", job.name, reason)
    raise AssertionError("the last round returns or raises")


def _placement_groups(besides: Collection[str] = ()) -> dict[str, str]:
    """The states of this job's placement groups that hold or await resources, by id."""
    import ray
    from ray.util import placement_group_table

    job_id = ray.get_runtime_context().get_job_id()
    return {
        group_id: group["state"]
        for group_id, group in placement_group_table().items()
        if group_id.endswith(job_id) and group["state"] != "REMOVED" and group_id not in besides
    }


def _waits_for_resources(before: Collection[str]) -> bool:
    """Whether a placement group that was not there before has not got its resources yet."""
    return any(state != "CREATED" for state in _placement_groups(before).values())


def _remove_placement_groups(before: Collection[str]) -> None:
    """Give back all placement groups that were not there before."""
    import ray
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    for group_id in _placement_groups(before):
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group_id))))


def _trainer(task: WorkerTask, heartbeat: Any) -> StoppableTrainer:
    import ray.train

    from rise_ray.train.loop import train_worker
    from rise_ray.train.ray_train import Rendezvous, StoppableTrainer

    config, storage = task.job.config, Folder(task.job.storage)
    resources = {"CPU": config.num_cpus, **config.resources}
    if config.num_gpus:
        resources["GPU"] = config.num_gpus
    return StoppableTrainer(
        train_worker,
        train_loop_config={"task": task, "heartbeat": heartbeat},
        torch_config=Rendezvous(
            backend="nccl" if config.num_gpus else "gloo",
            timeout_s=math.ceil(config.step_deadline_s),
        ),
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.workers, use_gpu=config.num_gpus > 0, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=_run_name(task),
            storage_path=storage.path,
            storage_filesystem=storage.arrow(),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            failure_config=ray.train.FailureConfig(
                max_failures=config.max_failures,
                controller_failure_limit=0,  # see _fit
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


@contextlib.contextmanager
def _ray_train_settings(config: TrainConfig) -> Iterator[None]:
    """Ray Train's settings that exist as environment variables of the driver only."""
    import ray

    attempts = 1 + config.max_failures
    settings = {
        # The controller looks for the workers' end this often: 2 s by default, of every fit().
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        # The autoscaler may need minutes for a GPU node; the default gives up after 60 s.
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(config.start_deadline_s / attempts),
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(config.step_deadline_s),
    }
    if len(ray.nodes()) == 1:
        # It watches for nodes about to be taken away: here, a process to start for nothing.
        settings["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    ours = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
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
