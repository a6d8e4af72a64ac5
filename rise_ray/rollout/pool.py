"""The rollout pool: workers that come and go, episodes that are leased to them.

The driver sees `for trajectory in pool.roll(specs)`. Inside, workers are asked of Ray up to
`max_workers` (its autoscaler adds the nodes), join when their engine is up, and are replaced when
they die; a dead worker's leases return to the queue. There is no communicator to rebuild.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from rise_ray.cluster.connection import draining_nodes
from rise_ray.config.settings import ModelConfig, SyncConfig, WorkersConfig
from rise_ray.errors import (
    ClusterError,
    ConfigError,
    RolloutError,
    cause,
    raise_if_ours,
    user_error,
)
from rise_ray.mdp import StopReason, Trajectory, WeightVersion
from rise_ray.rollout.episode import EpisodeSpec, failed_trajectory
from rise_ray.rollout.failures import FailedStarts
from rise_ray.rollout.leases import LeaseBook
from rise_ray.rollout.members import Member, Status
from rise_ray.rollout.worker import Progress, RolloutWorker
from rise_ray.sync.parity import ParityReport
from rise_ray.sync.transfer import WeightTransfer

logger = logging.getLogger(__name__)

_MOST_START_FAILURES = 2  # in a row; one more for each worker, since a lost node takes several
_LOOK_EVERY_S = 2.0  # for nodes that are about to go


class RolloutPool:
    """Workers for one model: new ones load the weights `version`.

    `seed` is of the engines, `label` the prefix of the workers' names.
    """

    def __init__(
        self,
        version: WeightVersion,
        model: ModelConfig,
        workers: WorkersConfig,
        sync: SyncConfig,
        verifiers: Sequence[Any],
        seed: int,
        label: str = "rollout",
    ) -> None:
        self.version = version
        self._model = model
        self._config = workers
        self._sync = sync
        self._verifiers = list(verifiers)
        self._seed = seed
        self._label = label
        self._names = (f"{label}-{number}" for number in itertools.count())
        self._members: dict[str, Member] = {}
        self._failed_starts = FailedStarts(label, _MOST_START_FAILURES + workers.max_workers)
        self._next_look = 0.0
        vllm = workers.vllm
        ranks = vllm.get("tensor_parallel_size", 1) * vllm.get("pipeline_parallel_size", 1)
        self._transfer = WeightTransfer(sync, ranks)
        self._last_up = 0.0
        """When a worker was last up, in monotonic seconds."""
        self.parity: dict[str, ParityReport] = {}
        """By name, how far from the trainer the workers were that have held `version`."""
        self.lost_workers = 0
        self.requeued = 0
        """Leases that went back to the queue, all rolls together."""
        self._book = LeaseBook(workers.max_attempts)
        self._stopped = False

    def roll(
        self,
        specs: Sequence[EpisodeSpec],
        total: int | None = None,
        errors: int = 0,
        ahead: Sequence[EpisodeSpec] = (),
    ) -> Iterator[Trajectory]:
        """Run episodes; yield each one's trajectory once, as they end.

        Those of the next roll, with the same weights, may be run `ahead` where workers would wait
        for the last of `specs`: what of them has ended by then is yielded, too, and what is under
        way goes on in the next roll. One that ends as `error` is left to that.

        An episode that is lost with `max_attempts` workers is yielded with stop reason `error`.
        `max_error_share` is of `total` episodes (default: all of `specs`); the number `errors` of
        them ended like that before.

        Raises:
            RolloutError: too many episodes ended as `error`, or no worker can be started.
            ConfigError: the verifiers cannot start.
            ClusterError: `min_workers` workers did not come up in time, or, later, none was up for
                as long.
        """
        by_id = {spec.id: spec for spec in (*specs, *ahead)}
        own = {spec.id for spec in specs}
        total = len(own) if total is None else total
        self._book.ask(by_id, self._members)
        if own:
            self._grow(self._book.open)
            self.wait_ready()
        self._last_up = time.monotonic()
        while own:
            self._leave_draining_nodes()
            self._grow(self._book.open)
            self._limit_starts()
            self._lease(by_id)
            for trajectory in self._collect(by_id):
                if trajectory.stop_reason is StopReason.ERROR:
                    if trajectory.id not in own:
                        continue
                    errors += 1
                    self._limit_errors(errors, total, trajectory)
                own.discard(trajectory.id)
                yield trajectory

    def start(self) -> None:
        """Ask Ray for `min_workers` workers: they load while the caller does something else.

        The reference of the pool's version has to be there when it is waited for them.
        """
        self._grow(1)

    def wait_ready(self) -> None:
        """Block until `min_workers` workers are up.

        Raises:
            ClusterError: they did not come up within `start_deadline_s`.
            RolloutError: they cannot start, with the cause.
        """
        started = time.monotonic()
        while self._ready_count() < self._config.min_workers:
            self._grow(1)
            calls = {m.call: m for m in self._members.values() if m.status is Status.STARTING}
            for call in self._first_done(calls):
                self._started(calls[call])
            if time.monotonic() - started > self._config.start_deadline_s:
                raise ClusterError(self._explain_missing())

    def sync(self, version: WeightVersion) -> None:
        """Bring the running workers to `version`; later ones load its checkpoint.

        A worker that dies or misses `sync.deadline_s` is ended, and replaced by the next roll.

        Raises:
            SyncError: a worker does not hold the version afterwards.
        """
        self.version = version
        self.parity.clear()
        members = list(self._members.values())
        for member in members:
            if member.status is not Status.READY:
                self._remove(member)  # it is loading the version before, or its node goes
        ready = [member for member in members if member.status is Status.READY]
        for member, report in self._answers(self._take_over(ready)):
            self.parity[member.name] = report

    def _take_over(self, members: list[Member]) -> dict[Any, Member]:
        """The calls by which members get `version`, each with its member."""
        if self._sync.backend == "object_store":
            handles = [member.handle for member in members]
            calls = self._transfer.pull(self.version, handles) if members else []
            return dict(zip(calls, members, strict=True))
        # In a collective one worker keeps all others waiting, and nobody can tell which: so each
        # has to answer before it begins.
        placed = self._answers({m.handle.place.remote(): m for m in members})
        workers = {member.name: member.handle for member, _ in placed}
        places = {member.name: place for member, place in placed}
        calls = self._transfer.push(self.version, workers, places) if placed else []
        return {call: member for call, (member, _) in zip(calls, placed, strict=True)}

    def _answers(self, calls: dict[Any, Member]) -> list[tuple[Member, Any]]:
        """Members with what their calls return in `sync.deadline_s`; the others are dropped."""
        if not calls:
            return []
        done, late = ray.wait(list(calls), num_returns=len(calls), timeout=self._sync.deadline_s)
        for call in late:
            member = calls[call]
            self._drop(member, self._transfer.late(self.version, member.name))
        answers = []
        for call in done:
            member = calls[call]
            try:
                answers.append((member, ray.get(call)))
            except RayError as error:
                raise_if_ours(error)
                self._drop(member, f"{member.name} died during a sync: {cause(error)}")
        return answers

    def release(self) -> None:
        """Stop every worker (their CPUs and GPUs go back to Ray); the next roll starts new ones."""
        for member in list(self._members.values()):
            self._remove(member)

    def stop(self) -> None:
        """From another thread: a roll that is under way there ends by an error in a second."""
        self._stopped = True

    def shrink(self) -> None:
        """Stop the workers beyond `min_workers`, starting ones first; a roll starts them anew."""
        members = sorted(self._members.values(), key=lambda m: m.status is Status.READY)
        for member in members[: max(0, len(members) - self._config.min_workers)]:
            self._remove(member)

    def _grow(self, episodes: int) -> None:
        """Ask Ray for the workers that `episodes` open episodes can keep busy."""
        wanted = math.ceil(episodes / self._config.episodes_in_flight)
        wanted = min(max(wanted, self._config.min_workers), self._config.max_workers)
        if self._ready_count() and self._failed_starts.pausing:
            return
        staying = sum(member.status is not Status.LEAVING for member in self._members.values())
        for _ in range(wanted - staying):
            self._start()

    def _start(self) -> None:
        name = next(self._names)
        config = self._config
        actor = ray.remote(RolloutWorker).options(
            num_cpus=config.num_cpus,
            num_gpus=config.num_gpus,
            resources=config.resources,
            max_restarts=0,  # a replacement is the pool's business: it has other weights by then
        )
        handle = actor.remote(
            name, self.version, self._model, config, self._sync, self._verifiers, self._seed
        )
        self._members[name] = Member(
            name, handle, Status.STARTING, handle.start.remote(), time.monotonic()
        )

    def _lease(self, by_id: dict[str, EpisodeSpec]) -> None:
        # Nobody takes more than a share, or others would have nothing to do.
        share = math.ceil(self._book.open / max(1, self._ready_count()))
        capacity = min(share, self._config.episodes_in_flight)
        for member in list(self._members.values()):
            if member.status is Status.STARTING or member.call is not None:
                continue
            stays = member.status is Status.READY
            taken = self._book.take(member.name, capacity) if stays else []
            if self._book.held(member.name):
                member.exchange([by_id[episode] for episode in taken])
            elif not stays:
                self._remove(member)

    def _collect(self, by_id: dict[str, EpisodeSpec]) -> Iterator[Trajectory]:
        """Wait for workers' answers; handle joins, results, deaths and stalls."""
        calls = {m.call: m for m in self._members.values() if m.call is not None}
        for call in self._first_done(calls):
            member = calls[call]
            if member.status is Status.STARTING:
                self._started(member)
                continue
            member.call = None
            try:
                progress: Progress = ray.get(call)
            except RayError as error:
                if isinstance(ours := user_error(error), ConfigError):
                    raise ours from error  # every other worker would meet it, too
                if getattr(error, "preempted", False):
                    member.status = Status.LEAVING
                yield from self._lost(member, cause(error), by_id)
                continue
            member.note(progress)
            for trajectory in progress.finished:
                if self._book.complete(member.name, trajectory.id):
                    yield trajectory
        deadline_s = self._config.progress_deadline_s
        for member in list(self._members.values()):
            if self._book.held(member.name) and (lacking := member.stalled(deadline_s)):
                reason = f"no {lacking} for {deadline_s:g} s"
                yield from self._lost(member, reason, by_id)

    def _first_done(self, calls: dict[Any, Member]) -> list[Any]:
        """All that have returned; waits a second for the first."""
        if self._stopped:
            raise RolloutError(f"the {self._label} pool was stopped")
        if not calls:
            time.sleep(1.0)
            return []
        ray.wait(list(calls), timeout=1.0)
        return list(ray.wait(list(calls), num_returns=len(calls), timeout=0)[0])

    def _started(self, member: Member) -> None:
        try:
            report: ParityReport | None = ray.get(member.call)
        except RayError as error:
            self._remove(member)
            self._failed_starts.note(member.name, error, others_work=self._ready_count() > 0)
            return
        if report is None:  # it has loaded
            member.call, member.since = member.handle.adopt.remote(self.version), time.monotonic()
            return
        self.parity[member.name] = report
        self._failed_starts.forget()
        member.status, member.call = Status.READY, None

    def _leave_draining_nodes(self) -> None:
        """Lease nothing more to workers on nodes that are about to be taken away."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_EVERY_S
        draining = draining_nodes()
        for member in self._members.values():
            if member.status is Status.READY and member.node in draining:
                logger.warning("worker %s leaves: its node is about to go", member.name)
                member.status = Status.LEAVING

    def _lost(
        self, member: Member, reason: str, by_id: dict[str, EpisodeSpec]
    ) -> Iterator[Trajectory]:
        held = self._book.held(member.name)
        self._drop(member, f"{member.name} is lost with {held} episodes: {reason}")
        aside = self._book.lost(member.name, counts=member.status is not Status.LEAVING)
        self.requeued += held - len(aside)
        for episode in aside:
            yield failed_trajectory(
                by_id[episode],
                f"lost with {self._config.max_attempts} workers; the last, {member.name}: {reason}",
            )

    def _drop(self, member: Member, reason: str) -> None:
        logger.warning("worker %s", reason)
        self.lost_workers += 1
        self._remove(member)

    def _remove(self, member: Member) -> None:
        del self._members[member.name]
        with contextlib.suppress(RayActorError):
            ray.kill(member.handle)

    def _ready_count(self) -> int:
        return sum(member.status is Status.READY for member in self._members.values())

    def _limit_errors(self, errors: int, total: int, last: Trajectory) -> None:
        if errors > self._config.max_error_share * total:
            raise RolloutError(
                f"{errors} of {total} episodes ended as error, more than "
                f"`max_error_share` = {self._config.max_error_share:g} allows; "
                f"the last, {last.id}: {last.error}"
            )

    def _limit_starts(self) -> None:
        """A worker may take `start_deadline_s` to start: then it is tried anew.

        Raises:
            ClusterError: for as long no worker was up at all.
        """
        now, deadline_s = time.monotonic(), self._config.start_deadline_s
        # One that is up and not yet noticed, because the caller of the roll paused, starts no more.
        starting = [
            member
            for member in self._members.values()
            if member.status is Status.STARTING and not member.answered
        ]
        if len(starting) < len(self._members):
            self._last_up = now
        if now - self._last_up > deadline_s:
            raise ClusterError(self._explain_missing())
        for member in starting:
            if now - member.since > deadline_s:
                self._drop(member, f"{member.name} did not start in {deadline_s:g} s")

    def _explain_missing(self) -> str:
        config, last = self._config, self._failed_starts.last
        return (
            f"{self._ready_count()} of `min_workers` = {config.min_workers} {self._label} workers "
            f"came up within {config.start_deadline_s:g} s; each needs {config.num_cpus:g} CPU, "
            f"{config.num_gpus:g} GPU {config.resources or ''}; the cluster has free: "
            f"{ray.available_resources()}" + (f"; the last start failed: {last}" if last else "")
        )
