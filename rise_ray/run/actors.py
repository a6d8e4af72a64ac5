"""The actors of a run: verifiers, rollout workers, a teacher, ranks. Each starts when first used.

A resumed run that only lacks its report starts none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import ray

from rise_ray.cluster.connection import this_node
from rise_ray.cluster.deadline import SideProcess
from rise_ray.cluster.imports import uncollected
from rise_ray.config.settings import ModelConfig, ReferenceConfig, WorkersConfig
from rise_ray.config.teacher import ModelTeacher, NoTeacher, TeacherConfig
from rise_ray.feedback.teacher import Spending, Student, Teacher, make_teacher
from rise_ray.mdp import Trajectory, WeightVersion, derive_seed
from rise_ray.models.locate import locate_tokenizer, resolve_dtype, shared_model
from rise_ray.relabel.job import RelabelResult, write_relabeled
from rise_ray.report.console import Console
from rise_ray.rollout.chat import ChatFormat, load_chat
from rise_ray.rollout.episode import EpisodeSpec
from rise_ray.rollout.pool import RolloutPool
from rise_ray.run.journal import Run
from rise_ray.store.files import Folder
from rise_ray.sync.parity import PARITY_FILE, drift_record, make_reference
from rise_ray.tasks.base import Task
from rise_ray.verify.actor import VerifierHandle, start_verifiers

if TYPE_CHECKING:
    from rise_ray.train.ray_train import Ranks

Probe = Callable[[ChatFormat], tuple[tuple[int, ...], ...]]
Roll = Callable[[Sequence[EpisodeSpec], int, int], Iterable[Trajectory]]


class Actors:
    """Started, synced and stopped for a run; `probe` gives the parity probe in a model's tokens."""

    def __init__(self, run: Run, console: Console, task: Task, probe: Probe) -> None:
        self._config = run.config
        self._run = run
        self._console = console
        self._task = task
        self._probe = probe
        self._pool: RolloutPool | None = None
        self._teacher_pool: RolloutPool | None = None
        self._teacher: Teacher | None = None
        self._relabeler: SideProcess[RelabelResult] | None = None

    def stop(self) -> None:
        self.release_workers()
        if "ranks" in self.__dict__:
            self.ranks.release()
        if self._relabeler is not None:
            self._relabeler.close()
        for verifier in self.__dict__.get("_verifiers", ()):
            verifier.stop()

    def stop_rolling(self) -> None:
        """From another thread: a roll that is under way there ends by an error."""
        for pool in self._pools():
            pool.stop()

    def stop_training(self) -> None:
        """From another thread: a training that is under way there ends by an error."""
        if "ranks" in self.__dict__:
            self.ranks.stop()

    def release_workers(self) -> None:
        """Give all workers' CPUs or GPUs to a training; the next roll starts them anew."""
        for pool in self._pools():
            pool.release()

    def shrink_pools(self) -> None:
        """Give back what workers took beyond `min_workers`."""
        for pool in self._pools():
            pool.shrink()

    def make_room(self) -> None:
        """Give back what is not needed now: a task of the run needs a CPU."""
        self.shrink_pools()
        if "ranks" in self.__dict__ and ray.available_resources().get("CPU", 0.0) < 1:
            self.ranks.release()

    def roller(
        self,
        weights: WeightVersion,
        chat: ChatFormat,
        teacher: TeacherConfig,
        ahead: Sequence[EpisodeSpec],
    ) -> Roll:
        """Rolls episodes with `weights`, in the words of `chat`, and adds a teacher's answers.

        Workers that none of them is left for go on with those of `ahead`.
        """

        def roll(specs: Sequence[EpisodeSpec], total: int, errors: int) -> Iterable[Trajectory]:
            pool = self._pool_with(weights)
            self._console.rolling()
            trajectories = pool.roll(specs, total, errors, ahead)
            if isinstance(teacher, NoTeacher):
                return trajectories
            return self._started_teacher(teacher, chat).improve(trajectories)

        return roll

    def counters(self) -> dict[str, int]:
        """What was lost and spent so far: a stage's share is the difference after it."""
        pools = self._pools()
        counters = {
            "lost_workers": sum(pool.lost_workers for pool in pools),
            "requeued_episodes": sum(pool.requeued for pool in pools),
        }
        if self._run.teacher_tokens:
            counters["teacher_tokens"] = self._run.teacher_tokens
        return counters

    def drift(self) -> dict[str, Any]:
        """How far the engines of the last weights were from the trainer; empty if none started."""
        reports = self._pool.parity if self._pool else {}
        return {"parity_drift": drift_record(reports.values())} if reports else {}

    def _pools(self) -> list[RolloutPool]:
        return [pool for pool in (self._pool, self._teacher_pool) if pool is not None]

    def start_workers(self, weights: WeightVersion) -> RolloutPool:
        """The pool. Where there was none, its workers begin to load `weights`."""
        config = self._config
        if self._pool is None:
            self._console.step("starting rollout workers")
            self._pool = RolloutPool(
                weights,
                config.model,
                config.rollout.workers,
                config.sync,
                self._verifiers,
                derive_seed(config.seed, "engine"),
            )
            self._pool.start()
        return self._pool

    def start_relabeler(self) -> SideProcess[RelabelResult]:
        """The one of all iterations; where there was none, it begins to import its libraries."""
        if self._relabeler is None:
            here = this_node()
            self._relabeler = SideProcess(write_relabeled, num_cpus=0, scheduling_strategy=here)
        return self._relabeler

    def _pool_with(self, weights: WeightVersion) -> RolloutPool:
        """The pool, with its workers up and synced to `weights`."""
        pool = self.start_workers(weights)
        if pool.version != weights:
            started = time.monotonic()
            pool.sync(weights)
            seconds = time.monotonic() - started
            self._console.step(f"synced weights, parity checked ({seconds:.1f} s)")
        pool.wait_ready()
        return pool

    def _started_teacher(self, teacher: TeacherConfig, chat: ChatFormat) -> Teacher:
        """The run's teacher; the student's tokens are the same in all iterations."""
        if self._teacher is None:
            if isinstance(teacher, ModelTeacher):
                self._teacher_pool = self._start_teacher_pool(teacher)
            student = Student(self._task, chat, self._verifiers)
            spending = Spending(self._run.teacher_tokens, self._run.record_teacher_tokens)
            self._teacher = make_teacher(
                student, teacher, self._teacher_pool, self._config.seed, spending
            )
        elif self._teacher_pool is not None:
            self._teacher_pool.wait_ready()  # as long as the rollouts have not taken all room
        return self._teacher

    def _start_teacher_pool(self, teacher: ModelTeacher) -> RolloutPool:
        model = ModelConfig(
            path=teacher.path,
            max_model_len=teacher.max_model_len,
            trust_remote_code=self._config.model.trust_remote_code,
        )
        self.make_room()  # an evaluation before may have left the workers at their most
        version = given_model(model, self._run.folder / "teacher")
        self._console.step("starting teacher workers")
        pool = RolloutPool(
            version,
            model,
            teacher.workers,
            self._config.sync,
            self._verifiers,
            derive_seed(self._config.seed, "teacher"),
            label="teacher",
        )
        deadline_s = self._config.ray.task_deadline_s
        reference = self._config.sync.reference
        add_reference(
            version, model, teacher.workers, reference, self._probe, deadline_s, pool.start
        )
        pool.wait_ready()
        return pool

    @cached_property
    def ranks(self) -> Ranks:
        """Those that stay between trainings."""
        with uncollected():
            from rise_ray.train.ray_train import Ranks

        return Ranks()

    @cached_property
    def _verifiers(self) -> list[VerifierHandle]:
        return start_verifiers(self._config.task, self._config.verify)


def given_model(model: ModelConfig, parity: Folder) -> WeightVersion:
    """A model that was not trained here, as version 0; its reference is kept in `parity`."""
    assert model.path is not None
    return WeightVersion(0, shared_model(model.path), parity.uri)


def add_reference(
    version: WeightVersion,
    model: ModelConfig,
    workers: WorkersConfig,
    reference: ReferenceConfig,
    probe: Probe,
    deadline_s: float,
    meanwhile: Callable[[], object],
) -> None:
    """Make a given model's probe reference for such workers, by plain Hugging Face, once.

    `meanwhile` begins, before that, what takes as long and does not need it. Where the reference
    takes GPUs it begins nothing: it would want the same.

    Raises:
        ClusterError: that took longer than `deadline_s`.
    """
    parity, checkpoint = Folder(version.parity), version.checkpoint
    if not parity.exists(PARITY_FILE):
        if not reference.num_gpus:
            meanwhile()
        chat = load_chat(locate_tokenizer(checkpoint), model, checkpoint)
        longest = model.max_model_len - 1  # a teacher's is its own
        sequences = [ids[:longest] for ids in probe(chat)]
        dtype = resolve_dtype(model.dtype, workers.num_gpus)
        trusted = model.trust_remote_code
        make_reference(checkpoint, sequences, dtype, trusted, deadline_s, reference).save(parity)
