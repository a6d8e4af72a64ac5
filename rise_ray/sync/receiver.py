"""The rollout worker's side of a sync: its engine pulls buckets, or is pushed to by vLLM's own.

Everything but `push_weights` runs in the worker.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rise_ray.errors import SyncError
from rise_ray.sync.buckets import Bucket, Manifest, SyncReport
from rise_ray.sync.source import pull

if TYPE_CHECKING:
    from vllm.distributed.weight_transfer.base import (
        WeightTransferInitRequest,
        WeightTransferUpdateRequest,
    )
    from vllm.v1.engine.llm_engine import LLMEngine

_VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"


def sync_engine(engine: LLMEngine, server: Any, deadline_s: float) -> SyncReport:
    """Bring an engine to the version that a `WeightServerActor` serves.

    Raises:
        SyncError: see `update_engine` and `pull`.
    """
    manifest, buckets = pull(server, deadline_s)
    return update_engine(engine, manifest, buckets)


def update_engine(engine: LLMEngine, manifest: Manifest, buckets: Iterable[Bucket]) -> SyncReport:
    """Load a weight version into a running engine that has no request under way.

    The engine was made with `WeightTransferConfig(backend="object_store")`. Afterwards its
    outputs carry `str(manifest.version)` and its prefix cache is empty.

    Raises:
        SyncError: requests are under way (the engine is unchanged); or something did not
            arrive, arrived twice or damaged, or vLLM refused it: the engine then answers
            nothing any more and its process has to be replaced.
    """
    if engine.has_unfinished_requests():
        raise SyncError(
            f"weight version {manifest.version}: the engine still has requests under way"
        )
    count = nbytes = 0
    _call(engine, manifest.version, "init_weight_transfer_engine", init_info={"manifest": manifest})
    _call(engine, manifest.version, "start_weight_update")
    for bucket in buckets:
        _call(engine, manifest.version, "update_weights", update_info={"bucket": bucket})
        count += 1
        nbytes += bucket.payload.nbytes
    _call(engine, manifest.version, "finish_weight_update")
    commit_version(engine, manifest.version)
    return SyncReport(len(manifest.tensors), count, nbytes)


def commit_version(engine: LLMEngine, version: int) -> None:
    """Note which weights an engine holds, and forget keys and values of earlier ones.

    Raises:
        SyncError: the prefix cache is in use.
    """
    engine.set_weight_version(str(version))
    if not engine.reset_prefix_cache():
        raise SyncError(
            f"weight version {version}: the engine's prefix cache is in use and still holds "
            "keys and values of the weights before"
        )


def _call(engine: LLMEngine, version: int, method: str, **kwargs: Any) -> None:
    try:
        engine.collective_rpc(method, kwargs=kwargs)
    except SyncError:
        raise
    except Exception as error:  # a worker process hands on its error as a RuntimeError
        raise SyncError(f"weight version {version}: {method} failed: {error}") from error


class WeightReceiver:
    """The calls that vLLM's Ray client makes on a rollout worker: to be mixed into its actor.

    The actor sets `engine`, made with `WeightTransferConfig(backend="nccl")` or `"ipc"`, and has
    no request under way during a sync.
    """

    engine: LLMEngine

    def place(self) -> dict[str, Any]:
        """Ray's options for a task on this worker's GPU, as CUDA's shared memory handles need it.

        Ray gives no second process a GPU that the worker has whole: so the task asks for none, and
        is shown the worker's. It holds two buffers of `sync.bucket_bytes` there for a moment.
        """
        node = ray.get_runtime_context().get_node_id()
        seen = os.environ.get(_VISIBLE_DEVICES)
        # With the second variable, Ray hides no GPU from a task that asked for none.
        shown = {} if seen is None else {_VISIBLE_DEVICES: seen}
        return {
            "num_gpus": 0,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
            "runtime_env": {"env_vars": {**shown, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}},
        }

    def init_weight_transfer_engine(self, request: WeightTransferInitRequest) -> None:
        """Join the sender."""
        kwargs = {"init_info": request.init_info}
        self.engine.collective_rpc("init_weight_transfer_engine", kwargs=kwargs)

    def start_weight_update(self) -> None:
        """Prepare the model to take its parameters anew."""
        self.engine.collective_rpc("start_weight_update")

    def update_weights(self, request: WeightTransferUpdateRequest) -> None:
        """Receive and load parameters."""
        self.engine.collective_rpc("update_weights", kwargs={"update_info": request.update_info})

    def finish_weight_update(self) -> None:
        """Make the model usable again."""
        self.engine.collective_rpc("finish_weight_update")

    def shutdown_weight_transfer_engine(self) -> None:
        """Leave the sender."""
        self.engine.collective_rpc("shutdown_weight_transfer_engine")

    def commit_weight_version(self, version: int) -> None:
        """Note the version and empty the prefix cache."""
        commit_version(self.engine, version)


def push_weights(*arguments: Any) -> None:
    """`rise_ray.sync.push.push` as a Ray task: the driver calls this, and must not import vLLM."""
    from rise_ray.sync.push import push

    push(*arguments)
