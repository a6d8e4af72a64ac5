"""From a pool's side: how its workers get a weight version, by `sync.backend`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from rise_ray.config.settings import SyncConfig
from rise_ray.errors import SyncError, cause, raise_if_ours
from rise_ray.mdp import WeightVersion
from rise_ray.sync.receiver import push_weights
from rise_ray.sync.source import start_weight_server

Handle = Any
"""Of a worker's actor (`rise_ray.sync.receiver.WeightReceiver`)."""


class WeightTransfer:
    """Has workers take over weights; what the calls that it returns give is each one's parity.

    `ranks` is how many processes a worker's engine has, each with a GPU of its own, for a push.
    """

    def __init__(self, config: SyncConfig, ranks: int) -> None:
        self._config = config
        self._ranks = ranks
        self._server: Any = None

    def pull(self, version: WeightVersion, workers: Sequence[Handle]) -> list[ray.ObjectRef]:
        """Workers take the checkpoint's buckets from one server, each at its own pace.

        Raises:
            SyncError: the server cannot read the checkpoint, or not in time.
        """
        self._server = self._server or start_weight_server()
        call = self._server.serve.remote(
            version.checkpoint, version.iteration, self._config.bucket_bytes
        )
        try:
            ray.get(call, timeout=self._config.deadline_s)
        except RayError as error:
            raise_if_ours(error)
            what = f"weight version {version.iteration}: the weight server failed"
            raise SyncError(f"{what}: {cause(error)}") from error
        return [worker.sync.remote(version, self._server) for worker in workers]

    def push(
        self,
        version: WeightVersion,
        workers: Mapping[str, Handle],
        places: Mapping[str, dict[str, Any]],
    ) -> list[ray.ObjectRef]:
        """GPU tasks send the checkpoint to workers, each at its place, by vLLM's own backend.

        Raises:
            SyncError: a push failed, or one of them was not through in time.
        """
        if self._config.backend == "ipc":
            sent = [self._send(version, [workers[name]], places[name]) for name in workers]
        else:
            sent = [self._send(version, list(workers.values()), {"num_gpus": 1})]
        try:
            ray.get(sent, timeout=self._config.deadline_s)
        except GetTimeoutError as error:
            for task in ray.wait(sent, num_returns=len(sent), timeout=0)[1]:
                ray.cancel(task, force=True)
            raise SyncError(self.late(version, f"one of {', '.join(workers)}")) from error
        except RayError as error:
            raise_if_ours(error)
            raise SyncError(
                f"weight version {version.iteration}: {self._config.backend} push: {cause(error)}"
            ) from error
        return [worker.adopt.remote(version) for worker in workers.values()]

    def late(self, version: WeightVersion, who: str) -> str:
        """What is said of workers that missed the deadline."""
        return (
            f"{who} did not take over weight version {version.iteration} within "
            f"{self._config.deadline_s:g} s (`sync.deadline_s`)"
        )

    def _send(
        self, version: WeightVersion, workers: list[Handle], options: dict[str, Any]
    ) -> ray.ObjectRef:
        """A task that pushes to some workers; `options` are Ray's, and give it its GPU."""
        return ray.remote(num_cpus=0, max_calls=1, **options)(push_weights).remote(
            version.checkpoint,
            version.iteration,
            self._config.bucket_bytes,
            workers,
            self._config.backend,
            self._ranks,
        )
