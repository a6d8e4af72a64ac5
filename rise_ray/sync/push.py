"""vLLM's own GPU backends, `nccl` and `ipc`: the trainer's side pushes, the engines receive.

`push` loads the checkpoint onto its GPU and lets vLLM's trainer-side engine drive rollout workers
through `rise_ray.sync.receiver.WeightReceiver`'s methods. With `nccl` one task serves all workers
and joins a communicator with them for the time of one sync, so that the pool may change between
syncs. With `ipc` every worker has a task of its own, which must see the same GPU
(`WeightReceiver.place`). Neither checks a manifest: the parity probe after it does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import ray
import torch
from vllm.distributed.weight_transfer import (
    ParamMeta,
    RayVLLMWeightSyncClient,
    WeightSource,
    WeightTransferTrainerFactory,
)
from vllm.distributed.weight_transfer.base import TrainerInitInfo, WeightTransferInitRequest
from vllm.utils.network_utils import get_ip, get_open_port

from rise_ray.models.locate import model_folder
from rise_ray.sync.source import Checkpoint


class CheckpointSource(WeightSource):
    """A checkpoint's tensors as vLLM's trainer-side engines take them, one by one on a device."""

    def __init__(self, checkpoint: Checkpoint, device: str) -> None:
        self._checkpoint = checkpoint
        self._device = device

    def metadata(self) -> list[ParamMeta]:
        """Name, dtype and shape of every tensor."""
        return [
            ParamMeta(tensor.name, getattr(torch, tensor.dtype), tensor.shape)
            for tensor in self._checkpoint.tensors
        ]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for meta in self.metadata():
            data = torch.from_numpy(self._checkpoint.read(meta.name).copy())
            yield meta.name, data.view(meta.dtype).view(meta.shape).to(self._device)


class EngineClient(RayVLLMWeightSyncClient):
    """vLLM's client for several engines, each with ranks of its own in a communicator.

    vLLM's gives all of them the same `rank_offset`, as if they were one engine: so all of them
    would join as the same ranks, and wait for the others forever.

    Args:
        workers: handles of actors that are `WeightReceiver`s.
        engine_processes: GPU processes of each engine.
    """

    def __init__(self, workers: Sequence[Any], engine_processes: int) -> None:
        super().__init__(list(workers))
        self._engine_processes = engine_processes

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Have every worker join, at its own ranks where the backend has ranks."""
        calls = []
        for number, worker in enumerate(self.handles):
            info = dict(init_info)
            if "rank_offset" in info:
                info["rank_offset"] += number * self._engine_processes
            calls.append(
                worker.init_weight_transfer_engine.remote(WeightTransferInitRequest(init_info=info))
            )
        ray.get(calls)


def push(
    checkpoint_uri: str,
    version: int,
    bucket_bytes: int,
    workers: Sequence[Any],
    backend: Literal["nccl", "ipc"],
    engine_processes: int,
) -> None:
    """Bring rollout workers to a checkpoint, from a process with a GPU.

    Args:
        checkpoint_uri: a folder, URI or hub name.
        version: of the weights in it.
        bucket_bytes: size of a staging buffer, unless the largest tensor needs more.
        workers: handles of actors that are `WeightReceiver`s; with `ipc` exactly one.
        backend: the one the workers' engines were made with.
        engine_processes: GPU processes of each engine (tensor times pipeline parallelism).
    """
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    checkpoint = Checkpoint(model_folder(checkpoint_uri))
    # vLLM's staging buffers take whole tensors only.
    buffer_bytes = max(bucket_bytes, *(tensor.nbytes for tensor in checkpoint.tensors))
    settings: dict[str, Any] = {"packed": True, "packed_buffer_size_bytes": buffer_bytes, "rank": 0}
    if backend == "ipc":
        info: TrainerInitInfo = IPCTrainerInitInfo(**settings)
    else:
        settings |= {"master_address": get_ip(), "master_port": get_open_port()}
        info = NCCLTrainerInitInfo(world_size=1 + len(workers) * engine_processes, **settings)
    client = EngineClient(workers, engine_processes)
    engine = WeightTransferTrainerFactory.trainer_init(
        info, client=client, source=CheckpointSource(checkpoint, "cuda")
    )
    engine.send_weights()
    engine.shutdown()
    client.shutdown_weight_transfer_engine()
    ray.get([worker.commit_weight_version.remote(version) for worker in workers])
