"""What Ray Train does otherwise than a run needs: whom signals reach, and where ranks meet."""

from __future__ import annotations

import os
import uuid
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import (
    _set_torch_distributed_env_vars,
    _setup_torch_process_group,
    _TorchBackend,
)

from rise_ray.cluster.cleanup import temporary_folder
from rise_ray.cluster.machine import this_machine

_ABORT_S = 5.0  # a controller that waits for resources hears nothing before it has them


class StoppableTrainer(TorchTrainer):
    """A trainer whose `fit` may be left by an exception, of a signal handler for instance.

    Ray Train takes SIGINT over, for good: it stops its workers and ends the process with 0.
    """

    _controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        self._controller = controller

    def kill(self) -> None:
        """End a `fit` from another thread: it raises RayActorError."""
        if self._controller is not None:
            ray.kill(self._controller)  # its workers end with it

    def abort(self) -> None:
        """Stop the workers of a `fit` that was left."""
        if self._controller is None:
            return
        try:
            ray.get(self._controller.abort.remote(), timeout=_ABORT_S)
        except GetTimeoutError:
            self.kill()
        except RayActorError:
            pass  # it ends itself at the end of an abort


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
