"""Ray Train as a run uses it: ranks that do one training after another, and where they meet."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import threading
import uuid
from collections.abc import Collection, Iterator
from types import SimpleNamespace
from typing import Any, Self

import ray
import ray.train
from ray.exceptions import GetTimeoutError, RayActorError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import (
    _set_torch_distributed_env_vars,
    _setup_torch_process_group,
    _TorchBackend,
)
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController
from ray.util import placement_group_table
from ray.util.placement_group import PlacementGroup, remove_placement_group

from rise_ray.cluster.cleanup import temporary_folder
from rise_ray.cluster.connection import this_node
from rise_ray.cluster.dispatch import start_dispatcher, watched
from rise_ray.cluster.machine import this_machine
from rise_ray.config.settings import TrainConfig
from rise_ray.errors import TrainError
from rise_ray.store.files import Folder
from rise_ray.train.job import TrainJob, WorkerResult, WorkerTask
from rise_ray.train.loop import serve

logger = logging.getLogger(__name__)

_ABORT_S = 5.0  # a controller that waits for resources hears nothing before it has them
_RELEASE_S = 10.0  # of ranks that have nothing to do
_STATES = "states"  # the name of Ray Train's run, a folder with what ranks go on from


class Ranks:
    """The ranks of a run's trainings: started by the first of them, kept until `release`.

    Their processes have all libraries loaded and a process group; each training is one more task.
    Ray Train restarts ranks that were lost while they trained. Of ranks that were lost while they
    started it forgets the placement group, and then gives up or waits for resources that the group
    holds: so the group is given back here, and all are started again. So are ranks that give no
    sign of life any more, or whose controller was lost.
    """

    def __init__(self) -> None:
        self._trainer: StoppableTrainer | None = None
        self._dispatcher: Any = None
        self._started_for: TrainJob | None = None
        self._before: set[str] = set()
        self._busy = threading.Lock()
        self._stopped = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def do(self, task: WorkerTask) -> WorkerResult:
        """Have the ranks train; what rank 0 returns.

        Raises:
            TrainError: ranks were lost more than `max_failures` times, or so many of their starts;
                or they were stopped.
        """
        with self._busy:
            self._check_stopped(task.job)
            return self._do(task)

    def stop(self) -> None:
        """From another thread: a training that is under way there ends by an error, as do later."""
        self._stopped = True
        if (trainer := self._trainer) is not None:
            trainer.abort()

    def _do(self, task: WorkerTask) -> WorkerResult:
        job, config = task.job, task.job.config
        if self._started_for is not None and _group(self._started_for) != _group(job):
            self._release()
        if self._trainer is not None and ray.wait([self._trainer.running], timeout=0)[0]:
            self._forget()  # lost while they had nothing to do: no failure of this training
        for restarts_left in reversed(range(1 + config.max_failures)):
            try:
                trainer = self._trainer or self._start(job)
                waits = functools.partial(_waits_for_resources, self._before)
                with watched(
                    self._dispatcher, config.progress_deadline_s, waits, trainer.kill
                ) as silent:
                    result, starts = self._answer(trainer, task)
                if starts > config.workers:  # Ray Train counts all losses: others are to come
                    self._release()
                return result
            except KeyboardInterrupt:  # `rise_ray.cluster.stop`
                if self._trainer is not None:
                    self._trainer.abort()
                self._forget()
                raise
            except (ray.train.TrainingFailedError, RayActorError) as error:
                self._forget()
                silence = (
                    f"no sign of life for {config.progress_deadline_s:g} s "
                    "(`train.progress_deadline_s`)"
                )
                reason = silence if silent.is_set() else _root_cause(error)
                self._check_stopped(job)
                lost = isinstance(error, ray.train.ControllerError | RayActorError)
                if not restarts_left or not lost:
                    raise TrainError(f"{job.name}: training failed: {reason}") from error
                logger.warning("%s: the workers are started again: %s", job.name, reason)
        raise AssertionError("the last round returns or raises")

    def release(self) -> None:
        """Give their resources back; the next training starts them anew.

        Where a training is under way in another thread, it is waited for.
        """
        with self._busy:
            self._release()

    def _release(self) -> None:
        if self._trainer is None or self._started_for is None:
            return
        self._dispatcher.close.remote()
        ended, _ = ray.wait([self._trainer.running], timeout=_RELEASE_S)
        if not ended:
            self._trainer.abort()
        storage = Folder(self._started_for.storage)
        self._forget()
        storage.remove(_STATES)

    def _start(self, job: TrainJob) -> StoppableTrainer:
        self._before = set(_placement_groups())
        self._dispatcher = start_dispatcher()
        trainer = _trainer(job, self._dispatcher)
        self._trainer, self._started_for = trainer, job
        with _ray_train_settings(job.config):
            trainer.start()
        return trainer

    def _answer(self, trainer: StoppableTrainer, task: WorkerTask) -> tuple[WorkerResult, int]:
        """What rank 0 returns, and how many ranks were started for it, restarts included."""
        self._check_stopped(task.job)
        answer = self._dispatcher.do.remote([ray.put(task)])
        (ended,), _ = ray.wait([answer, trainer.running])
        if ended is not answer:
            trainer.check()
        result, starts = ray.get(answer)
        return result, starts

    def _check_stopped(self, job: TrainJob) -> None:
        if self._stopped:
            raise TrainError(f"{job.name}: the training was stopped")

    def _forget(self) -> None:
        """End what is left of them."""
        if self._trainer is not None:
            self._trainer.kill()
            ray.kill(self._dispatcher)
        for group_id in _placement_groups(self._before):  # also those that Ray Train forgot
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group_id))))
        self._trainer = self._dispatcher = self._started_for = None


class StoppableTrainer(TorchTrainer):
    """A trainer that runs beside the driver, until it is told to end.

    Ray Train's `fit` waits for the end, and takes SIGINT over, for good.
    """

    _controller: Any = None
    running: Any = None
    """The controller's work, as an object reference."""

    def start(self) -> None:
        self.fit()

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        controller = ray.remote(
            num_cpus=0,
            scheduling_strategy=this_node(),
            runtime_env={"env_vars": get_env_vars_to_propagate()},
        )(TrainController)
        self._controller = controller.remote(**parts)
        self.running = self._controller.run.remote()
        return SimpleNamespace(error=None)  # of the start: `fit` looks for one

    def check(self) -> None:
        """Wait for the end.

        Raises:
            ray.train.TrainingFailedError: what ended it, if it did not end by itself.
            RayActorError: the controller is lost.
        """
        ray.get(self.running)
        result = ray.get(self._controller.get_result.remote())
        if result.error:
            raise result.error

    def kill(self) -> None:
        """End it, from any thread: what waits for it raises RayActorError."""
        if self._controller is not None:
            ray.kill(self._controller)  # its workers end with it

    def abort(self) -> None:
        if self._controller is None:
            return
        try:
            ray.get(self._controller.abort.remote(), timeout=_ABORT_S)
        except GetTimeoutError:
            self.kill()
        except RayActorError:
            pass  # it ends itself at the end of an abort


def _trainer(job: TrainJob, dispatcher: Any) -> StoppableTrainer:
    config, storage = job.config, Folder(job.storage)
    resources = {"CPU": config.num_cpus, **config.resources}
    if config.num_gpus:
        resources["GPU"] = config.num_gpus
    return StoppableTrainer(
        serve,
        train_loop_config={"dispatcher": dispatcher, "gpu": bool(config.num_gpus)},
        torch_config=Rendezvous(
            backend="nccl" if config.num_gpus else "gloo",
            timeout_s=math.ceil(config.step_deadline_s),
        ),
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.workers, use_gpu=config.num_gpus > 0, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=_STATES,
            storage_path=storage.path,
            storage_filesystem=storage.arrow(),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            failure_config=ray.train.FailureConfig(
                max_failures=config.max_failures,
                controller_failure_limit=0,  # see `Ranks`
            ),
        ),
    )


def _group(job: TrainJob) -> tuple[Any, ...]:
    """What ranks are started for: equal for trainings that the same ranks can do."""
    config = job.config
    return (
        *(job.storage, config.workers, config.num_cpus, config.num_gpus, config.resources),
        *(config.max_failures, config.step_deadline_s, config.start_deadline_s),
    )


def _placement_groups(besides: Collection[str] = ()) -> dict[str, str]:
    """The states of this job's placement groups that hold or await resources, by id."""
    job_id = ray.get_runtime_context().get_job_id()
    return {
        group_id: group["state"]
        for group_id, group in placement_group_table().items()
        if group_id.endswith(job_id) and group["state"] != "REMOVED" and group_id not in besides
    }


def _waits_for_resources(before: Collection[str]) -> bool:
    """Whether a placement group that was not there before has not got its resources yet."""
    return any(state != "CREATED" for state in _placement_groups(before).values())


@contextlib.contextmanager
def _ray_train_settings(config: TrainConfig) -> Iterator[None]:
    """Ray Train's settings that exist as environment variables of the driver only."""
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


class Rendezvous(TorchConfig):
    """Ray Train's torch settings, with `Meeting` as what starts the process group."""

    @property
    def backend_cls(self) -> type[Meeting]:
        """What Ray Train calls when the workers are up."""
        return Meeting


class Meeting(_TorchBackend):
    """Starts the process group, for ranks of one machine at a file.

    Torch's store at rank 0's port, which Ray Train starts and has no setting for, listens on every
    network interface and lets anyone write.
    """

    def on_start(self, worker_group: Any, backend_config: Rendezvous) -> None:
        """Called by Ray Train in its controller, at the start and after each restart."""
        if len(set(worker_group.execute(_file_system))) > 1:
            super().on_start(worker_group, backend_config)
            return
        file = worker_group.execute_single(0, _meeting_file)
        worker_group.execute(_set_torch_distributed_env_vars)
        size = len(worker_group)
        joins = [
            worker_group.execute_single_async(
                rank,
                _setup_torch_process_group,
                backend=backend_config.backend,
                world_rank=rank,
                world_size=size,
                init_method=f"file://{file}",
                timeout_s=backend_config.timeout_s,
            )
            for rank in range(size)
        ]
        ray.get(joins)


def _file_system() -> str:
    """Equal for ranks that see the same files and, being on one machine, can lock them.

    Not the node: two of a machine may be of one cluster.
    """
    return f"{this_machine()}/{os.readlink('/proc/self/ns/mnt')}"


def _meeting_file() -> str:
    """A name that only this user's processes can use; it is gone with rank 0."""
    return str(temporary_folder() / f"ranks-{uuid.uuid4().hex}")
