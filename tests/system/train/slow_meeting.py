"""A training's start that lasts long enough to be seen, and struck, at its process group."""

from __future__ import annotations

import time
from typing import Any

from ray.train.torch import config as ray_config

from rise_ray.train import ray_train

JOIN_S = 2.0


class SlowMeeting(ray_train.Meeting):
    """`Meeting` whose ranks wait before they join."""

    def on_start(self, worker_group: Any, backend_config: ray_train.Rendezvous) -> None:
        """See `Meeting.on_start`."""
        ray_train._setup_torch_process_group = _setup_torch_process_group
        super().on_start(worker_group, backend_config)


class SlowRendezvous(ray_train.Rendezvous):
    """`Rendezvous` with a `SlowMeeting`."""

    @property
    def backend_cls(self) -> type[SlowMeeting]:
        """See `Rendezvous.backend_cls`."""
        return SlowMeeting


def _setup_torch_process_group(**arguments: Any) -> None:
    """Ray's, later; the name is what a process is called meanwhile."""
    time.sleep(JOIN_S)
    ray_config._setup_torch_process_group(**arguments)
