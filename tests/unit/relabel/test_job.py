"""Relabeling as a job: of many parts as of one, in whatever order, and equal rows once."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from rise_ray.errors import TrainError
from rise_ray.mdp import Example, Place, Trajectory
from rise_ray.relabel.job import RelabelResult, write_relabeled
from rise_ray.relabel.rules.improved import Improved
from rise_ray.store.examples import EXAMPLES_PER_PART, examples_from_table, read_manifest, read_part
from rise_ray.store.files import Folder
from rise_ray.store.trajectories import PART_ROWS, TrajectoryStore
from tests.unit.relabel.builders import COLLECT, rolled

SECOND = Place("iteration", 2, "collect")


def _many(count: int, place: Place = COLLECT) -> list[Trajectory]:
    """Three different rows each."""
    return [
        rolled("3 | 7", f"{n} | 7", f"{n} 4 | 7", problem=f"p{n}", place=place)
        for n in range(count)
    ]


def _job(folder: Path, *parts: list[Trajectory], rule: Improved | None = None) -> RelabelResult:
    store = TrajectoryStore(Folder(str(folder / "trajectories")))
    for part in parts:
        store.write(part[0].place, part)
    places = dict.fromkeys(part[0].place for part in parts)
    sealed = {place: store.seal(place) for place in places}
    return write_relabeled(store, sealed, rule or Improved(), 64, 0, _output(folder))


def _output(folder: Path) -> Folder:
    return Folder(str(folder / "examples"))


def _examples(folder: Path) -> list[Example]:
    output = _output(folder)
    parts = [read_part(output, part) for part in read_manifest(output).parts]
    return [example for table in parts for example in examples_from_table(table)]


def test_the_result_does_not_depend_on_how_the_trajectories_lie_in_parts(tmp_path: Path) -> None:
    count = PART_ROWS + 40
    many = _many(count)
    one = _job(tmp_path / "one", many, rule=Improved(drop_duplicates=False))
    parts = [many[start : start + 37] for start in range(0, count, 37)]
    several = _job(tmp_path / "several", *reversed(parts), rule=Improved(drop_duplicates=False))
    assert one == several
    assert one.manifest.examples == 3 * count
    assert one.data_tokens == sum(len(e.input_ids) for e in _examples(tmp_path / "one"))


def test_the_examples_of_a_trajectory_stay_together_in_a_random_order_of_trajectories(
    tmp_path: Path,
) -> None:
    manifest = _job(
        tmp_path, _many(EXAMPLES_PER_PART), rule=Improved(drop_duplicates=False)
    ).manifest
    tables = [read_part(_output(tmp_path), part) for part in manifest.parts]
    origins = [e.provenance for table in tables for e in examples_from_table(table)]
    of_each = [origins[n : n + 3] for n in range(0, len(origins), 3)]
    assert all(len({o.trajectory_id for o in three}) == 1 for three in of_each)
    assert all([o.turn for o in three] == [0, 1, 2] for three in of_each)
    order = [int(three[0].problem_id[1:]) for three in of_each]
    assert sorted(order) == list(range(EXAMPLES_PER_PART))
    assert order != sorted(order)


def test_rows_that_come_again_in_pooled_data_are_one(tmp_path: Path) -> None:
    first, again = _many(4), _many(6, SECOND)
    result = _job(tmp_path / "once", first, again)
    # The first two states are the same for all problems; the third shows the problem's number, and
    # of these the first four come twice.
    assert result.manifest.examples == 2 + 6
    assert result.dropped == {"duplicate": 30 - 8}
    kept = _job(tmp_path / "all", first, again, rule=Improved(drop_duplicates=False))
    assert (kept.manifest.examples, kept.dropped) == (30, {})


def test_a_problems_mean_is_over_all_parts_and_iterations(tmp_path: Path) -> None:
    # Of p0 three responses of eight are right, over two places in three parts; of p1 all.
    parts = [
        [rolled("5 | 7 4", problem="p0")],
        [rolled("7 | 7", problem="p1")],
        [rolled("3 | 7 2 7 9", problem="p0", place=SECOND)],
    ]
    rule = Improved(tau=0.5, centering="problem", filter="success", drop_duplicates=False)
    _job(tmp_path, *parts, rule=rule)
    weights = {
        (e.provenance.problem_id, e.provenance.place.iteration): e.spans[-1].weight
        for e in _examples(tmp_path)
    }
    centred = math.exp((1 - 3 / 8) / 0.5)
    assert weights == pytest.approx({("p0", 1): centred, ("p0", 2): centred, ("p1", 1): 1.0})


def test_nothing_to_train_on_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"no example to train on.*'filtered': 1"):
        _job(tmp_path, [rolled("3 | 4")], rule=Improved(filter="success"))
