"""Group commit: what was added is stored, however the block ends and however slow storage is."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from rise_ray.errors import StoreError
from rise_ray.mdp import Place, Trajectory
from rise_ray.store import commit
from rise_ray.store.commit import Committer
from rise_ray.store.files import Folder
from rise_ray.store.trajectories import PART_ROWS, TrajectoryStore
from tests.unit.evaluate.builders import trajectory


def _one(number: int) -> Trajectory:
    return trajectory("3 7", "4 ?", problem=f"p{number}")


PLACE = _one(0).place


class SlowStore(TrajectoryStore):
    """A store whose writes wait until they are let through; `sizes` are those of its parts."""

    def __init__(self, folder: Folder) -> None:
        super().__init__(folder)
        self.sizes: list[int] = []
        self.writing = threading.Semaphore(0)
        self.let_through = threading.Semaphore(0)

    def write_table(self, place: Place, table: pa.Table) -> str:
        self.sizes.append(table.num_rows)
        self.writing.release()
        assert self.let_through.acquire(timeout=60)
        return super().write_table(place, table)


@pytest.fixture
def slow(tmp_path: Path) -> SlowStore:
    return SlowStore(Folder(str(tmp_path)))


def test_what_arrives_during_a_write_is_the_next_part(slow: SlowStore) -> None:
    with Committer(slow) as committer:
        committer.add(_one(0))
        assert slow.writing.acquire(timeout=60)
        for number in range(1, 6):
            committer.add(_one(number))  # does not wait for the storage
        for _ in range(2):
            slow.let_through.release()
    assert slow.sizes == [1, 5]
    assert len(slow.ids(PLACE)) == 6


def test_small_parts_become_whole_ones_as_they_come(tmp_path: Path) -> None:
    store = TrajectoryStore(Folder(str(tmp_path)))
    with Committer(store) as committer:
        for number in range(2 * PART_ROWS):
            committer.add(_one(number))
    assert len(store.ids(PLACE)) == 2 * PART_ROWS
    assert len(store.parts(PLACE)) <= PART_ROWS  # not one for each commit


def test_each_place_has_its_own_parts(tmp_path: Path) -> None:
    store = TrajectoryStore(Folder(str(tmp_path)))
    other = Place("iteration", 2, "collect")
    with Committer(store) as committer:
        for number in range(2 * PART_ROWS):
            one = _one(number)
            committer.add(replace(one, place=other) if number % 2 else one)
    for place in (PLACE, other):
        assert {t.place for t in store.read(place)} == {place}
        assert len(store.ids(place)) == PART_ROWS
        assert len(store.parts(place)) <= PART_ROWS // 2


def _commit(store: TrajectoryStore, count: int, then: BaseException | None = None) -> None:
    with Committer(store) as committer:
        for number in range(count):
            committer.add(_one(number))
        if then is not None:
            raise then


@pytest.mark.parametrize("end", [KeyboardInterrupt, RuntimeError])
def test_an_end_by_an_error_stores_what_was_added(tmp_path: Path, end: type[BaseException]) -> None:
    store = TrajectoryStore(Folder(str(tmp_path)))
    with pytest.raises(end):
        _commit(store, 5, then=end())
    assert len(store.ids(PLACE)) == 5


@pytest.mark.parametrize("count", [1, 1000])  # the block ends before the write has failed, or not
def test_a_write_that_fails_is_raised_and_nothing_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(commit, "_MOST_WAITING", 4)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be written"):
        _commit(TrajectoryStore(Folder(str(tmp_path / "file"))), count)


def test_an_interruption_stays_one_when_the_last_write_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(KeyboardInterrupt):
        _commit(TrajectoryStore(Folder(str(tmp_path / "file"))), 1, then=KeyboardInterrupt())
