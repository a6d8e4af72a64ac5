"""What follows from workers that do not start."""

from __future__ import annotations

import logging
import time

from ray.exceptions import RayError

from rise_ray.errors import RolloutError, StoreError, cause, raise_if_ours, user_error

logger = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 60.0


class FailedStarts:
    """The starts that failed in a row. While other workers work, the next one comes ever later.

    Where none does, `most` of them are too many.
    """

    def __init__(self, label: str, most: int) -> None:
        self._label = label
        self._most = most
        self._next_start = 0.0
        self.count = 0
        self.last = ""
        """The last one's cause; empty if there was none."""

    @property
    def pausing(self) -> bool:
        return time.monotonic() < self._next_start

    def note(self, name: str, error: RayError, others_work: bool) -> None:
        """The worker `name` did not start.

        Raises:
            RiseError: what every other start would meet too; unlike a store, which may be back.
            RolloutError: too many.
        """
        if not isinstance(user_error(error), StoreError):
            raise_if_ours(error)
        self.count += 1
        self.last = cause(error)
        self._next_start = time.monotonic() + min(2.0**self.count, _LONGEST_PAUSE_S)
        logger.warning("worker %s did not start: %s", name, self.last)
        if self.count >= self._most and not others_work:
            raise_if_ours(error)
            raise RolloutError(
                f"{self._label} workers cannot start ({self.count} in a row failed); "
                f"the last cause: {self.last}"
            ) from error

    def forget(self) -> None:
        """A worker started."""
        self.count = 0
