"""Trajectories on storage: nothing is changed, doubled, or read from a damaged part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rise_ray.errors import StoreError
from rise_ray.mdp import (
    Attempt,
    FinishReason,
    Outcome,
    Place,
    Problem,
    Source,
    StopReason,
    Trajectory,
    Turn,
    Verdict,
)
from rise_ray.store.files import Folder
from rise_ray.store.parquet import sha256, to_bytes
from rise_ray.store.trajectories import (
    PART_ROWS,
    TRAJECTORY_SCHEMA,
    TrajectoryStore,
    read_part,
    trajectory_from_row,
    trajectory_to_row,
)
from tests.unit.evaluate.builders import trajectory

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)  # NUL and empty included
IDS = st.lists(st.integers(0, 2**31 - 1), max_size=3).map(tuple)
VERDICT = st.builds(
    Verdict, st.sampled_from(Outcome), st.none() | TEXT, TEXT, st.none() | st.booleans(), TEXT
)
ATTEMPT = st.builds(
    Attempt,
    *(TEXT, IDS, st.sampled_from(FinishReason), VERDICT),
    *(st.integers(-1, 9), st.integers(0, 2**63 - 1)),
    scores=st.dictionaries(TEXT, st.floats(allow_nan=False), max_size=3),
    role=TEXT,
    given=st.integers(0, 9),
)
DATA = st.dictionaries(
    TEXT, st.recursive(st.none() | st.booleans() | st.integers() | TEXT, st.lists), max_size=3
)
TRAJECTORY = st.builds(
    Trajectory,
    id=TEXT,
    run=TEXT,
    place=st.builds(Place, TEXT, st.integers(0, 9), TEXT),
    problem=st.builds(Problem, TEXT, TEXT, TEXT, TEXT, st.none() | TEXT, DATA),
    sample=st.integers(0, 9),
    prompt_ids=IDS,
    turns=st.lists(
        st.builds(Turn, ATTEMPT, st.lists(ATTEMPT, max_size=2).map(tuple), IDS), max_size=2
    ).map(tuple),
    stop_reason=st.sampled_from(StopReason),
    window=st.none() | st.integers(1, 5),
    error=st.none() | TEXT,
    source=st.none() | st.builds(Source, TEXT, st.integers(0, 9), st.integers(0, 9)),
    feedback=TEXT,
)
PLACE = Place("iteration", 1, "collect")


@pytest.fixture
def store(tmp_path: Path) -> TrajectoryStore:
    return TrajectoryStore(Folder(str(tmp_path / "trajectories")))


def _read(store: TrajectoryStore) -> list[Trajectory]:
    return sorted(store.read(PLACE), key=lambda t: t.id)


def _one(number: int = 0) -> Trajectory:
    return trajectory("3 7", "4 ?", problem=f"p{number}")


@settings(max_examples=60, deadline=None)
@given(TRAJECTORY)
def test_a_table_gives_the_same_trajectory_back(written: Trajectory) -> None:
    table = pa.Table.from_pylist([trajectory_to_row(written)], schema=TRAJECTORY_SCHEMA)
    (row,) = table.to_pylist()
    assert trajectory_from_row(row) == written


def test_text_that_is_no_unicode_is_stored_escaped(store: TrajectoryStore) -> None:
    attempt = replace(_one().turns[0].attempt, text="half \ud83d of a pair \x00")
    written = replace(_one(), turns=(Turn(attempt),), error="\udc80")
    store.write(PLACE, [written])
    (found,) = _read(store)
    assert found.turns[0].attempt.text == "half \\ud83d of a pair \x00"
    assert found.turns[0].attempt.token_ids == attempt.token_ids  # what training uses
    assert found.error == "\\udc80"


def test_nothing_is_stored_before_the_first_write(store: TrajectoryStore) -> None:
    assert (store.ids(PLACE), _read(store), store.parts(PLACE)) == (set(), [], [])


def test_writing_again_overwrites_the_same_part(store: TrajectoryStore) -> None:
    batch = [_one(n) for n in range(3)]
    store.write(PLACE, batch)
    parts = store.parts(PLACE)
    store.write(PLACE, batch[::-1])
    assert store.parts(PLACE) == parts
    assert _read(store) == batch


def test_an_id_in_two_parts_is_read_once(store: TrajectoryStore) -> None:
    batch = [_one(n) for n in range(4)]
    store.write(PLACE, batch[:3])
    store.write(PLACE, batch[2:])
    assert len(store.parts(PLACE)) == 2
    assert _read(store) == batch
    assert store.ids(PLACE) == {t.id for t in batch}


def test_a_part_with_an_id_twice_is_refused(store: TrajectoryStore) -> None:
    batch = [_one(n) for n in range(3)]
    with pytest.raises(StoreError, match=rf"phase=collect: .*{batch[1].id} twice .*--resume"):
        store.write(PLACE, [*batch, batch[1]])
    assert store.parts(PLACE) == []


def test_phases_and_iterations_are_apart(store: TrajectoryStore) -> None:
    store.write(Place("iteration", 1, "collect"), [_one(0)])
    store.write(Place("iteration", 1, "eval"), [_one(1)])
    store.write(Place("iteration", 2, "collect"), [_one(2)])
    assert [t.problem.id for t in store.read(Place("iteration", 1, "collect"))] == ["p0"]
    assert store.ids(Place("rejection_sampling", 1, "collect")) == set()


@pytest.mark.parametrize("damage", ["truncated", "empty", "no parquet", "another part"])
def test_a_damaged_part_is_an_error_that_names_it(store: TrajectoryStore, damage: str) -> None:
    other = store.write(Place("iteration", 2, "collect"), [_one(99)])
    name = store.write(PLACE, [_one(n) for n in range(50)])
    folder = store.folder_of(PLACE)
    content = folder.read(name)
    damaged = {
        "truncated": content[:-100],
        "empty": b"",
        "no parquet": b"x" * 200,
        "another part": store.folder_of(Place("iteration", 2, "collect")).read(other),
    }
    folder.write(name, damaged[damage])
    with pytest.raises(StoreError, match=f"{name}: damaged part .*delete it and resume"):
        _read(store)
    with pytest.raises(StoreError, match="damaged part"):
        store.ids(PLACE)


def test_any_changed_byte_of_a_part_is_found(store: TrajectoryStore) -> None:
    # Data pages, page headers and the footer alike: Parquet's own checksums cover the first only.
    name = store.write(PLACE, [_one()])
    folder = store.folder_of(PLACE)
    content = folder.read(name)
    for place in range(0, len(content), 37):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        folder.write(name, bytes(changed))
        with pytest.raises(StoreError, match="damaged part"):
            _read(store)
    folder.write(name, content)
    assert _read(store) == [_one()]


def test_sealing_makes_whole_parts_without_doubles(store: TrajectoryStore) -> None:
    batch = [_one(n) for n in range(2 * PART_ROWS + 10)]
    store.write(PLACE, batch[:PART_ROWS])
    for start in range(PART_ROWS - 5, len(batch), 20):  # what many small commits leave
        store.write(PLACE, batch[start : start + 20])
    sealed = store.seal(PLACE)
    folder = store.folder_of(PLACE)
    rows = [read_part(folder, name, columns=["id"])["id"].to_pylist() for name in folder.names()]
    assert len(rows) <= 3
    assert sorted(i for ids in rows for i in ids) == sorted(t.id for t in batch)
    assert {t.id: t for t in store.read(PLACE, sealed)} == {t.id: t for t in batch}
    assert store.seal(PLACE) == sealed  # nothing is left to do


def test_a_crash_while_parts_are_merged_loses_and_doubles_nothing(
    store: TrajectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = [_one(n) for n in range(9)]
    for start in range(0, 9, 3):
        store.write(PLACE, batch[start : start + 3])

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            store.seal(PLACE)
    assert len(store.parts(PLACE)) == 4  # the merged part beside the small ones
    assert _read(store) == batch
    sealed = store.seal(PLACE)
    assert len(store.parts(PLACE, sealed)) == 1
    assert _read(store) == batch


@pytest.mark.parametrize("change", ["lost", "added", "replaced"])
def test_a_sealed_phase_is_never_read_short_or_changed(store: TrajectoryStore, change: str) -> None:
    for start in (0, PART_ROWS):
        store.write(PLACE, [_one(n) for n in range(start, start + PART_ROWS)])
    sealed, folder = store.seal(PLACE), store.folder_of(PLACE)
    if change != "added":
        folder.remove(store.parts(PLACE)[0])
    if change != "lost":
        store.write(PLACE, [_one(-1)])
    assert not store.is_whole(PLACE, sealed)
    with pytest.raises(StoreError, match=r"phase=collect: its \d parts are not .*--resume"):
        list(store.read(PLACE, sealed))


def test_one_trajectory_is_found_by_its_id(store: TrajectoryStore) -> None:
    batch = [_one(n) for n in range(5)]
    store.write(PLACE, batch)
    sealed = store.seal(PLACE)
    assert store.find(PLACE, sealed, batch[3].id) == batch[3]
    assert store.find(PLACE, sealed, "another") is None


def _rewrite(store: TrajectoryStore, schema: pa.Schema) -> Folder:
    """The only part, as another version would have written it."""
    folder, name = store.folder_of(PLACE), store.parts(PLACE)[0]
    table = pq.read_table(pa.BufferReader(folder.read(name)))
    content = to_bytes(table.rename_columns(schema.names), schema)
    folder.remove(name)
    folder.write(f"part-{sha256(content)}.parquet", content)
    return folder


def test_another_schema_version_is_refused(store: TrajectoryStore) -> None:
    store.write(PLACE, [_one()])
    folder = _rewrite(store, TRAJECTORY_SCHEMA.with_metadata({"schema_version": "0"}))
    with pytest.raises(StoreError, match=r"schema version 0; this rise-ray reads 2: .* `name`"):
        store.ids(PLACE)
    _rewrite(store, TRAJECTORY_SCHEMA.remove_metadata())
    with pytest.raises(StoreError, match="schema version none"):
        read_part(folder, folder.names()[0])


def test_other_columns_are_refused(store: TrajectoryStore) -> None:
    store.write(PLACE, [_one()])
    index = TRAJECTORY_SCHEMA.get_field_index("window")
    _rewrite(store, TRAJECTORY_SCHEMA.set(index, pa.field("windou", pa.int32())))
    with pytest.raises(StoreError, match="columns are not those"):
        _read(store)
