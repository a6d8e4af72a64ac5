"""The rollout worker's side of vLLM's `nccl` and `ipc` backends, and the task that pushes to it.

Apart from `rise_ray.sync.push` because the driver imports this and must not import vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from rise_ray.sync.update import SyncReport, commit_version

if TYPE_CHECKING:
    from vllm.distributed.weight_transfer.base import (
        WeightTransferInitRequest,
        WeightTransferUpdateRequest,
    )
    from vllm.v1.engine.llm_engine import LLMEngine


class WeightReceiver:
    """The calls that vLLM's Ray client makes on a rollout worker: to be mixed into its actor.

    The actor sets `engine`, made with `WeightTransferConfig(backend="nccl")` or `"ipc"`, and has
    no request under way during a sync.
    """

    engine: LLMEngine

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


def push_weights(
    checkpoint_uri: str,
    version: int,
    bucket_bytes: int,
    workers: Sequence[Any],
    backend: Literal["nccl", "ipc"],
    engine_processes: int,
) -> SyncReport:
    """Bring workers to a checkpoint; to be run as a Ray task on a GPU (see `WeightSender.send`)."""
    from rise_ray.sync.push import WeightSender

    return WeightSender(checkpoint_uri, version, bucket_bytes).send(
        workers, backend, engine_processes
    )
