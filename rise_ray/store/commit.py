"""Group commit: an episode that has ended is on storage as soon as the storage can take it.

A thread writes whatever arrived during its last write as one part, while the caller rolls on. So
a killed driver loses, of the episodes that had ended, those of the write under way and those that
came during it, however long the others take; and slow storage makes larger parts, not slower
rollouts.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from typing import Self

import pyarrow as pa

from rise_ray.mdp import Place, Trajectory
from rise_ray.store.trajectories import PART_ROWS, TrajectoryStore, trajectories_to_table

logger = logging.getLogger(__name__)

_MOST_WAITING = 1024  # trajectories in memory, before `add` waits for the storage


class Committer:
    """Stores what is added at its place, in a `with` block; its end, however it comes, stores all.

    Raises:
        StoreError: from `add` or at the end: an earlier write failed.
    """

    def __init__(self, store: TrajectoryStore) -> None:
        self._store = store
        self._waiting: list[Trajectory] = []
        self._over = False
        self._error: Exception | None = None
        self._changed = threading.Condition()
        self._small: defaultdict[Place, dict[str, pa.Table]] = defaultdict(dict)
        self._thread = threading.Thread(target=self._work, name="commit", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()
        self._thread.join()
        if self._error is None:
            return
        if error is None:
            raise self._error
        if error is not self._error:
            logger.error("some of the episodes that had ended are not stored: %s", self._error)

    def add(self, trajectory: Trajectory) -> None:
        """Have a trajectory stored; returns at once unless too many wait."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) < _MOST_WAITING)
            if self._error is not None:
                raise self._error
            self._waiting.append(trajectory)
            self._changed.notify_all()

    def _work(self) -> None:
        while batch := self._next():
            try:
                if self._error is None:
                    self._commit(batch)
            except Exception as error:  # whatever it is, it belongs to the caller
                self._error = error

    def _next(self) -> list[Trajectory]:
        """What has arrived since the last call, at most a whole part; [] at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._over)
            batch, self._waiting = self._waiting[:PART_ROWS], self._waiting[PART_ROWS:]
            self._changed.notify_all()
        return batch

    def _commit(self, batch: list[Trajectory]) -> None:
        """Write a part of each place; make a whole one of small ones as soon as they fill it."""
        for place in {trajectory.place for trajectory in batch}:
            table = trajectories_to_table([t for t in batch if t.place == place])
            small = self._small[place]
            small[self._store.write_table(place, table)] = table
            if sum(table.num_rows for table in small.values()) >= PART_ROWS:
                self._store.merge(place, small)
                del self._small[place]
