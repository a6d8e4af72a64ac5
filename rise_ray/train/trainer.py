"""Ray Train's trainer, with signals left to the driver and an end to every wait."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.train.torch import TorchTrainer

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
