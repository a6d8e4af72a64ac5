"""Lineage: from a training row to the response it trains on, and from a problem to its rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rise_ray.cli import main as cli
from rise_ray.config.loading import dump_decisive
from rise_ray.errors import DataError, StoreError
from rise_ray.mdp import Example, Place, Provenance, Span
from rise_ray.relabel.examples import relabel
from rise_ray.relabel.rule import RuleContext
from rise_ray.run.journal import Run
from rise_ray.run.lineage import (
    RunRecord,
    TrainingRow,
    example_lineage,
    open_run,
    problem_lineage,
    trace,
    training_rows,
)
from rise_ray.run.plans import of_kind
from rise_ray.run.specs import Rows
from rise_ray.run.tracks import stages_of
from rise_ray.store.examples import write_example_parts
from rise_ray.store.parquet import sha256
from rise_ray.store.trajectories import TrajectoryStore
from tests.unit.store import hand_made

EXAMPLE = "demo/iteration=1/collect/p3/0/turn=1/candidate=0"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return hand_made.make_run(str(tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="module")
def record(run: Run) -> RunRecord:
    return open_run(run.folder)


def test_a_training_row_leads_to_everything_that_made_it(record: RunRecord) -> None:
    first, pooled = example_lineage(record, EXAMPLE)
    assert (first["stage"], pooled["stage"]) == ("iteration-1", "iteration-2")
    assert {k: v for k, v in first.items() if k not in ("stage", "part", "weight", "verdict")} == {
        "example": EXAMPLE,
        "reward": 1.0,
        "source": "candidate",
        "rule": "best_of_n",
        "problem": "p3",
        "trajectory": "demo/iteration=1/collect/p3/0",
        "place": "iteration-1/collect",
        "turn": 1,
        "candidate": 0,
        "seed": 101,
        "weight_version": 0,
        "checkpoint": "some/model",
        "verifier_version": "v1",
        "config_sha256": record.config_sha256,
        "decisive_sha256": sha256(dump_decisive(record.config).encode()),
        "text": "it is 7",
    }
    assert first["verdict"]["outcome"] == "correct"
    assert first["weight"] == pytest.approx(2.718281828 ** (1 / 0.4))
    assert first["part"] == "part-00000.parquet"


def test_a_version_leads_to_the_checkpoint_that_sampled(record: RunRecord) -> None:
    written = {
        row.example.id: trace(record, row, _of(record, row)) for row in training_rows(record)
    }
    folder = record.folder.uri
    by_collection = {tuple(i.split("/")[1:3]): line["checkpoint"] for i, line in written.items()}
    assert by_collection == {
        ("iteration=1", "collect"): "some/model",
        ("iteration=2", "collect"): f"{folder}/checkpoints/iteration=1",
        ("rejection_sampling=1", "collect"): "some/model",
        ("rejection_sampling=2", "collect"): f"{folder}/checkpoints/rejection_sampling=1",
    }


def test_back_from_the_problems_gives_every_row_once(record: RunRecord) -> None:
    rows = [(r.stage, r.part, r.example.id) for r in training_rows(record)]
    back = [
        (line["stage"], line["part"], line["example"])
        for number in range(hand_made.PROBLEMS)
        for line in problem_lineage(record, f"p{number}")
    ]
    assert sorted(back) == sorted(rows)
    assert len(set(rows)) == len(rows) > 0


def test_an_unknown_id_is_an_error_that_names_it(record: RunRecord) -> None:
    with pytest.raises(
        DataError, match=r"example nothing: is in no training set of .*--problem ID"
    ):
        example_lineage(record, "nothing")
    with pytest.raises(DataError, match="problem nothing: no training row of"):
        problem_lineage(record, "nothing")


def test_a_row_that_is_not_its_stored_response_is_an_error(record: RunRecord) -> None:
    row = next(r for r in training_rows(record) if r.example.id == EXAMPLE)
    trajectory = _of(record, row)
    assert trace(record, row, trajectory)["example"] == EXAMPLE
    tokens = replace(row.example, input_ids=(*row.example.input_ids[:-1], 9))
    seed = replace(row.example, provenance=replace(row.example.provenance, seed=5))
    for other in (tokens, seed):
        with pytest.raises(StoreError, match=r"not the response that .* holds now"):
            trace(record, TrainingRow(row.stage, row.part, other), trajectory)


def test_a_demonstration_has_no_trajectory_and_no_weights(tmp_path: Path) -> None:
    run = Run(hand_made.config_of(str(tmp_path)), resume=False)
    name = "demonstration/0"
    place = Place("iteration", 0, "demonstrations")
    origin = Provenance(*("demonstration",) * 2, name, "p7", place, 0, -1, None, 0, -1, "")
    shown = Example(name, (1, 2, 3), (Span(1, 3, 1.0),), origin)
    write_example_parts(run.folder / "examples" / "warm-start", [shown], 0)
    run.stage("warm-start/train", dict)
    (line,) = example_lineage(open_run(run.folder), name)
    assert (line["problem"], line["source"], line["stage"]) == ("p7", "demonstration", "warm-start")
    nothing = ("trajectory", "checkpoint", "verdict", "text", "reward")
    assert [line[key] for key in nothing] == [None] * 5


def test_a_further_training_set_of_an_iteration_is_found_and_leads_back_likewise(
    tmp_path: Path,
) -> None:
    config = hand_made.config_of(str(tmp_path), "recipe.boost={}")
    run = Run(config, resume=False)
    place = Place("iteration", 1, "collect")
    hand_made.roll(run, str(place), place)
    rolled = list(run.trajectories.read(place))
    for rows in of_kind(Rows, stages_of(config))[:2]:
        examples = relabel(rolled, rows.rule, 100, RuleContext(0)).examples
        write_example_parts(run.folder / "examples" / rows.name, examples, 0)
        run.stage(rows.key, lambda: {"seconds": 1.0})
    record = open_run(run.folder)
    lines = problem_lineage(record, "p3")
    assert {line["stage"] for line in lines} == {"iteration-1", "iteration-1-relabel_boost"}
    both = example_lineage(record, "demo/iteration=1/collect/p3/0/turn=0/candidate=0")
    assert {line["rule"] for line in both} == {"best_of_n", "rejection_sampling"}
    assert {line["text"] for line in both} == {"it is 7"}


def test_what_is_lost_is_an_error_and_not_a_shorter_answer(tmp_path: Path) -> None:
    run = hand_made.make_run(str(tmp_path))
    record = open_run(run.folder)
    (part,) = run.trajectories.parts(Place("iteration", 1, "collect"))
    run.trajectories.folder_of(Place("iteration", 1, "collect")).remove(part)
    with pytest.raises(StoreError, match="phase=collect: its 0 parts are not those"):
        example_lineage(record, EXAMPLE)
    run.forget("iteration-1/collect")
    with pytest.raises(StoreError, match="is being done again after a loss"):
        example_lineage(open_run(run.folder), EXAMPLE)
    (run.folder / "examples/iteration-2").remove("part-00000.parquet")
    with pytest.raises(StoreError, match=r"part-00000\.parquet"):
        problem_lineage(record, "p0")


def test_a_folder_whose_config_is_not_the_runs_is_refused(tmp_path: Path) -> None:
    run = Run(hand_made.config_of(str(tmp_path)), resume=False)
    run.folder.write("config.yaml", run.folder.read("config.yaml") + b"# a note\n")
    with pytest.raises(StoreError, match=r"config\.yaml: changed since the run began"):
        open_run(run.folder)


def test_the_command_prints_json_lines(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["lineage", run.folder.uri, "--problem", "p3"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert EXAMPLE in {line["example"] for line in lines}
    assert cli.main(["lineage", run.folder.uri, "--example", EXAMPLE]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["trajectory"] for line in lines] == ["demo/iteration=1/collect/p3/0"] * 2


def test_the_command_says_what_is_wrong(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["lineage", run.folder.uri, "--example", "x"]) == 1
    assert "rise-ray: error: example x: is in no training set" in capsys.readouterr().err
    assert cli.main(["lineage", str(tmp_path), "--example", "x"]) == 1
    assert "state.json: cannot be read" in capsys.readouterr().err
    for arguments in ([], ["--example", "x", "--problem", "y"], ["--problem", "y", "seed=1"]):
        with pytest.raises(SystemExit):
            cli.main(["lineage", str(tmp_path), *arguments])


def _of(record: RunRecord, row: TrainingRow) -> object:
    origin = row.example.provenance
    store = TrajectoryStore(record.folder / "trajectories")
    return next(t for t in store.read(origin.place) if t.id == origin.trajectory_id)
