"""The rollout worker: a Ray actor around one engine and the episodes it is running.

It is driven by `exchange`: take new episodes, run the engine for a moment, give back what
finished. The pool calls it again at once, so the engine hardly waits, and every return is a sign
of life. Between turns there is no barrier: an attempt starts its episode's next turn before the
engine's next step, whatever the other episodes are doing.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

from rise_ray.config.settings import ModelConfig, SyncConfig, WorkersConfig
from rise_ray.errors import SyncError
from rise_ray.mdp import Trajectory, WeightVersion
from rise_ray.models.locate import locate_model, resolve_dtype
from rise_ray.rollout.chat import load_chat
from rise_ray.rollout.engine import Engine
from rise_ray.rollout.episode import Episode, EpisodeSpec
from rise_ray.rollout.requests import Check, Request
from rise_ray.store.files import Folder
from rise_ray.sync.parity import (
    DEFAULT_TOLERANCE_NATS,
    ParityReference,
    ParityReport,
    Probed,
    check_moved,
    check_parity,
    engine_logprobs,
)
from rise_ray.sync.receiver import WeightReceiver, commit_version, sync_engine
from rise_ray.verify.actor import VerifierHandle
from rise_ray.verify.client import Verification

_EXCHANGE_S = 0.5  # how long one exchange runs the engine
_VERIFIER_WAIT_S = 0.002  # how long an idle engine waits for a verdict at a time


@dataclass(frozen=True, slots=True)
class Progress:
    """What an exchange gives back."""

    finished: list[Trajectory]
    engine_busy: bool
    """Whether the engine has requests; without one, every episode waits for the verifier."""
    tokens: int
    """Generated since the worker's start."""
    seconds: float
    """That this exchange ran."""
    node: str
    """The worker's node id in Ray."""


class RolloutWorker(WeightReceiver):
    """One engine with the weights `version`, its tokenizer, its episodes.

    `name` is what the pool calls it; `seed` is the engine's.
    """

    def __init__(
        self,
        name: str,
        version: WeightVersion,
        model: ModelConfig,
        workers: WorkersConfig,
        sync: SyncConfig,
        verifiers: Sequence[VerifierHandle],
        seed: int,
    ) -> None:
        self.name = name
        self.version = version
        self._model = model
        self._workers = workers
        self._sync = sync
        self._seed = seed
        self._requests: dict[str, tuple[Episode, Request]] = {}
        self._episodes = 0
        self._finished: list[Trajectory] = []
        self._verification = Verification(verifiers)
        self._keys = itertools.count()
        self._probed: Probed | None = None

    def start(self) -> None:
        """Load the engine with the worker's version, which it is then to `adopt`.

        Not in the constructor: an error of a method reaches the pool as what it is.

        Raises:
            ModelError, ConfigError: the model or a vLLM setting cannot be used.
        """
        model, checkpoint = self._model, self.version.checkpoint
        path = locate_model(checkpoint)
        self._chat = load_chat(path, model, checkpoint)
        self._engine = Engine(path, model, self._workers, self._sync.backend, self._seed)
        self.engine = self._engine.llm
        commit_version(self.engine, self.version.iteration)

    def sync(self, version: WeightVersion, server: Any) -> ParityReport:
        """Pull new weights from a weight server, then adopt them.

        Raises:
            SyncError: the weights did not arrive whole, or the probe disagrees.
        """
        try:
            sync_engine(self.engine, server, self._sync.deadline_s)
        except SyncError as error:
            raise SyncError(f"{self.name}: {error}") from error
        return self.adopt(version)

    def adopt(self, version: WeightVersion) -> ParityReport:
        """Probe weights that have arrived; episodes from now on carry their version.

        Raises:
            SyncError: the engine's log-probabilities are not those of the version, or still those
                of the version before.
        """
        self.version = version
        return self._probe()

    def _probe(self) -> ParityReport:
        reference = ParityReference.load(Folder(self.version.parity))
        got = engine_logprobs(self.engine, reference.sequences)
        dtype = resolve_dtype(self._model.dtype, self._workers.num_gpus)
        tolerance = self._sync.parity_tolerance or DEFAULT_TOLERANCE_NATS[dtype]
        report = check_parity(reference, got, tolerance, self.name, self.version.iteration)
        probe = Probed(self.version.iteration, reference, got)
        if self._probed is not None:
            check_moved(self._probed, probe, self.name)
        self._probed = probe
        return report

    def exchange(self, specs: Sequence[EpisodeSpec]) -> Progress:
        """Start `specs`, run for a moment, return the trajectories that have ended."""
        started = time.monotonic()
        for spec in specs:
            episode = Episode(spec, self._chat, self.version.iteration)
            self._episodes += 1
            self._proceed(episode, episode.start())
        until = time.monotonic() + _EXCHANGE_S
        while self._episodes and time.monotonic() < until:
            if self._engine.busy:
                for key, reply in self._engine.step():
                    episode, request = self._requests.pop(key)
                    self._proceed(episode, episode.reply(request, reply))
            wait_s = 0.0 if self._engine.busy else _VERIFIER_WAIT_S
            for (episode, request), verdicts in self._verification.poll(wait_s):
                self._proceed(episode, episode.reply(request, verdicts))
        finished, self._finished = self._finished, []
        seconds = time.monotonic() - started
        node = ray.get_runtime_context().get_node_id()
        return Progress(finished, self._engine.busy, self._engine.tokens, seconds, node)

    def _proceed(self, episode: Episode, requests: Sequence[Request]) -> None:
        for request in requests:
            if isinstance(request, Check):
                items = [(episode.spec.problem, text) for text in request.texts]
                self._verification.add((episode, request), items)
            else:
                key = str(next(self._keys))
                self._requests[key] = (episode, request)
                self._engine.submit(key, request, self._chat.end_of_turn)
        if episode.done:
            self._episodes -= 1
            self._finished.append(episode.trajectory())
