"""Trajectories on storage: nothing is changed, doubled, or read from a damaged part."""

from __future__ import annotations

import random
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
    Phase,
    Problem,
    StopReason,
    Trajectory,
    Turn,
    Verdict,
)
from rise_ray.store.files import Folder
from rise_ray.store.trajectories import (
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
)
DATA = st.dictionaries(
    TEXT, st.recursive(st.none() | st.booleans() | st.integers() | TEXT, st.lists), max_size=3
)
TRAJECTORY = st.builds(
    Trajectory,
    id=TEXT,
    run=TEXT,
    iteration=st.integers(0, 9),
    phase=st.sampled_from(Phase),
    problem=st.builds(Problem, TEXT, TEXT, TEXT, TEXT, st.none() | TEXT, DATA),
    sample=st.integers(0, 9),
    prompt_ids=IDS,
    turns=st.lists(
        st.builds(Turn, ATTEMPT, st.lists(ATTEMPT, max_size=2).map(tuple), IDS), max_size=2
    ).map(tuple),
    stop_reason=st.sampled_from(StopReason),
    window=st.none() | st.integers(1, 5),
    error=st.none() | TEXT,
)
PHASE = (1, Phase.COLLECT)


@pytest.fixture
def store(tmp_path: Path) -> TrajectoryStore:
    return TrajectoryStore(Folder(str(tmp_path / "trajectories")))


def _read(store: TrajectoryStore) -> list[Trajectory]:
    return sorted(store.read(*PHASE), key=lambda t: t.id)


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
    store.write(*PHASE, [written])
    (found,) = _read(store)
    assert found.turns[0].attempt.text == "half \\ud83d of a pair \x00"
    assert found.turns[0].attempt.token_ids == attempt.token_ids  # what training uses
    assert found.error == "\\udc80"


def test_nothing_is_stored_before_the_first_write(store: TrajectoryStore) -> None:
    assert (store.ids(*PHASE), _read(store), store.parts(*PHASE)) == (set(), [], [])
    store.write(*PHASE, [])
    assert store.parts(*PHASE) == []


def test_writing_again_overwrites_the_same_part(store: TrajectoryStore) -> None:
    batch = [_one(n) for n in range(3)]
    store.write(*PHASE, batch)
    parts = store.parts(*PHASE)
    store.write(*PHASE, batch[::-1])
    assert store.parts(*PHASE) == parts
    assert _read(store) == batch


def test_an_id_in_two_parts_is_read_once(store: TrajectoryStore) -> None:
    batch = [_one(n) for n in range(4)]
    store.write(*PHASE, batch[:3])
    store.write(*PHASE, batch[2:])
    assert len(store.parts(*PHASE)) == 2
    assert _read(store) == batch
    assert store.ids(*PHASE) == {t.id for t in batch}


def test_phases_and_iterations_are_apart(store: TrajectoryStore) -> None:
    store.write(1, Phase.COLLECT, [_one(0)])
    store.write(1, Phase.EVAL, [_one(1)])
    store.write(2, Phase.COLLECT, [_one(2)])
    assert [t.problem.id for t in store.read(1, Phase.COLLECT)] == ["p0"]
    assert store.ids(1, Phase.CONTROL) == set()


@pytest.mark.parametrize("damage", ["truncated", "empty", "no parquet"])
def test_a_damaged_part_is_an_error_that_names_it(store: TrajectoryStore, damage: str) -> None:
    store.write(*PHASE, [_one(n) for n in range(50)])
    (name,) = store.parts(*PHASE)
    folder = store.phase(*PHASE)
    content = folder.read(name)
    damaged = {"truncated": content[:-100], "empty": b"", "no parquet": b"x" * 200}
    folder.write(name, damaged[damage])
    with pytest.raises(StoreError, match=f"{name}: damaged part .*delete it and resume"):
        _read(store)


def test_a_changed_byte_is_an_error_and_not_another_token(store: TrajectoryStore) -> None:
    rng = random.Random(0)
    prompt = tuple(rng.randrange(10**6) for _ in range(200))
    store.write(*PHASE, [replace(_one(), prompt_ids=prompt)])
    (name,) = store.parts(*PHASE)
    folder = store.phase(*PHASE)
    content = folder.read(name)
    row_group = pq.ParquetFile(pa.BufferReader(content)).metadata.row_group(0)
    (ids,) = (
        column
        for column in map(row_group.column, range(row_group.num_columns))
        if column.path_in_schema.startswith("prompt_ids")
    )
    # The end of the page that holds the ids: zstd itself notices hardly any change there.
    for place in range(ids.data_page_offset - 20, ids.data_page_offset):
        changed = bytearray(content)
        changed[place] ^= 1
        folder.write(name, bytes(changed))
        with pytest.raises(StoreError, match="damaged part"):
            _read(store)


def _rewrite(store: TrajectoryStore, schema: pa.Schema) -> Folder:
    folder, name = store.phase(*PHASE), store.parts(*PHASE)[0]
    table = pq.read_table(pa.BufferReader(folder.read(name)))
    sink = pa.BufferOutputStream()
    pq.write_table(table.rename_columns(schema.names).cast(schema), sink)
    folder.write(name, sink.getvalue().to_pybytes())
    return folder


def test_another_schema_version_is_refused(store: TrajectoryStore) -> None:
    store.write(*PHASE, [_one()])
    folder = _rewrite(store, TRAJECTORY_SCHEMA.with_metadata({"schema_version": "0"}))
    with pytest.raises(StoreError, match="trajectories of schema version 0; this rise-ray reads"):
        store.ids(*PHASE)
    _rewrite(store, TRAJECTORY_SCHEMA.remove_metadata())
    with pytest.raises(StoreError, match="schema version none"):
        read_part(folder, folder.names()[0])


def test_other_columns_are_refused(store: TrajectoryStore) -> None:
    store.write(*PHASE, [_one()])
    index = TRAJECTORY_SCHEMA.get_field_index("window")
    _rewrite(store, TRAJECTORY_SCHEMA.set(index, pa.field("windou", pa.int32())))
    with pytest.raises(StoreError, match="columns are not those"):
        _read(store)
