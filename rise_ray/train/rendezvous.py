"""Where the ranks of a training meet: in a file if one machine holds them all, else at a port.

torch's store at rank 0's port listens on every network interface and lets anyone write, so a
training on one machine does without it.
"""

from __future__ import annotations

import os
import uuid
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import (
    _set_torch_distributed_env_vars,
    _setup_torch_process_group,
    _TorchBackend,
)

from rise_ray.cluster.cleanup import temporary_folder
from rise_ray.cluster.machine import this_machine


class Rendezvous(TorchConfig):
    """Ray Train's torch settings, with `Meeting` as what starts the process group."""

    @property
    def backend_cls(self) -> type[Meeting]:
        """What Ray Train calls when the workers are up."""
        return Meeting


class Meeting(_TorchBackend):
    """Starts the process group, without a listening store where that is possible."""

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
