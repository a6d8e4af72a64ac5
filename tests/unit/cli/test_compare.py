"""`rise-ray compare --seeds`: one table of several runs, refused where they differ in more."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from rise_ray.cli import main as cli
from rise_ray.cli.compare import compare_seeds, markdown, summary, write_files
from rise_ray.config.loading import dump_config, parse_config
from rise_ray.config.settings import RunConfig
from rise_ray.errors import DataError
from rise_ray.evaluate.compare import CONTROLS_VOTE
from rise_ray.mdp import Place, Trajectory, trajectory_id
from rise_ray.report.plots import votes_of_tables
from rise_ray.run.journal import Run
from rise_ray.run.plans import evaluated_models
from rise_ray.run.tracks import stages_of
from tests.unit.evaluate.builders import trajectory
from tests.unit.report import run as report_run

PROBLEMS = 12
SCALING = Path(__file__).parents[3] / "jobs" / "evidence" / "scaling.py"


def config_of(storage: Path, *overrides: str) -> RunConfig:
    text = (
        f"{{name: demo, storage: '{storage}', iterations: 1, task: {{name: countdown}}, "
        "model: {path: some/model}, controls: [{name: rejection_sampling}], "
        "evaluation: {turns: 2, parallel: 2, bootstrap: 200}}"
    )
    return parse_config(text, list(overrides), source="test")


def make_run(storage: Path, *overrides: str, finished: bool = True) -> str:
    """A run folder with evaluations alone: the base is right nowhere, the others on a share."""
    run = Run(config_of(storage, *overrides), resume=False)
    for model, place in evaluated_models(stages_of(run.config)).items():
        right = 0 if model == "base" else 4 + run.config.seed
        run.trajectories.write(place, [_episode(run, place, n, n < right) for n in range(PROBLEMS)])
        sealed = run.trajectories.seal(place)
        run.stage(f"{model}/eval", lambda sealed=sealed: {"parts_sha256": sealed})
    if finished:
        run.stage("run/report", dict)
    return run.folder.uri


def _episode(run: Run, place: Place, number: int, right: bool) -> Trajectory:
    made = trajectory("7 7" if right else "5 5", "5 5", problem=f"p{number:02d}")
    name = trajectory_id(run.config.name, place, made.problem.id, 0)
    return replace(made, id=name, place=place)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    storage = tmp_path_factory.mktemp("runs")
    return [make_run(storage, f"seed={seed}", f"name=run-{seed}") for seed in range(3)]


def refused(capsys: pytest.CaptureFixture[str], *folders: str) -> str:
    assert cli.main(["compare", "--seeds", *folders]) != 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    return printed.err


def test_the_table_and_the_numbers_of_three_seeds(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = tmp_path / "numbers.json"
    assert cli.main(["compare", "--seeds", *folders, "--json", str(numbers)]) == 0
    printed = capsys.readouterr().out
    header = next(line for line in printed.splitlines() if line.startswith("| model"))
    columns = "m1@t1 | m2@t1 | m1@t2 | p1@t2 (oracle) | pass@2 | right at turns 1-2 | keeps right"
    assert columns in header
    assert "mean of 3 seeds; split test, 12 problems x 1 sample" in printed
    assert "compared | all seeds | seed 0 | seed 1 | seed 2" in printed
    assert "one time in 4" in printed

    found = json.loads(numbers.read_text())
    assert found["seeds"] == [0, 1, 2]
    assert list(found["models"]) == ["base", "iteration-1", "rejection_sampling-1"]
    of_all = found["models"]["iteration-1"]["metrics"]["m1@t2"]
    assert of_all["value"] == pytest.approx(5 / 12)
    trained = found["comparisons"][0]
    assert trained["note"] == "the trained model against the untrained one"
    assert [seed["value"] for seed in trained["seeds"]] == pytest.approx([4 / 12, 5 / 12, 6 / 12])
    row = next(
        line for line in printed.splitlines() if line.startswith("| iteration-1 m1@t2 (41.7")
    )
    assert row.count("|") == 6
    assert "| +41.7 [" in row


def test_the_picture_has_the_base_and_each_tracks_last_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", "--seeds", make_run(tmp_path, "iterations=2"), "--picture"]
    pictures = [tmp_path / "one.svg", tmp_path / "two.svg"]
    for picture in pictures:
        assert cli.main([*command, str(picture)]) == 0
    one, two = (picture.read_bytes() for picture in pictures)
    assert one == two
    drawn = "".join(ElementTree.fromstring(one).itertext())
    assert all(name in drawn for name in ("base", "iteration-2", "rejection_sampling-2"))
    assert "-1" not in drawn
    assert b"currentColor" not in one  # which is black where a picture stands alone

    nowhere = str(tmp_path / "no-folder" / "one.svg")
    assert cli.main([*command, nowhere]) != 0
    assert nowhere in capsys.readouterr().err


def test_one_run_is_a_table_too_and_says_what_one_seed_is_worth(
    folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", "--seeds", folders[0]]) == 0
    assert "one seed says nothing about the next" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["compare", "--seeds"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("task.name=gsm8k", "`task.name` is 'countdown' in"),
        ("evaluation.split=dev", "`evaluation.split` is 'test' in"),
        ("evaluation.turns=3", "`evaluation.turns` is 2 in"),
        ("iterations=0", "`iterations` is 1 in"),
        ("controls=[]", "`controls` is [{"),
        ("train.lr=0.5", "`train.lr` is 1e-05 in"),
    ],
)
def test_runs_that_differ_in_more_than_their_seed_are_refused_with_the_key(
    override: str,
    said: str,
    folders: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = Run(config_of(tmp_path, "seed=7", override), resume=False)
    run.stage("run/report", dict)
    message = refused(capsys, folders[0], run.folder.uri)
    assert said in message
    assert run.folder.uri in message


def test_what_never_decides_the_data_may_differ(folders: list[str], tmp_path: Path) -> None:
    other = make_run(tmp_path, "seed=7", "rollout.workers.max_workers=5")
    assert cli.main(["compare", "--seeds", folders[0], other]) == 0


def test_an_unfinished_run_the_same_seed_and_no_run_are_refused_by_name(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished = make_run(tmp_path, "seed=7", finished=False)
    message = refused(capsys, folders[0], unfinished)
    assert f"{unfinished}: an unfinished run" in message
    assert "two of the runs have the same (seeds [0, 0])" in refused(capsys, folders[0], folders[0])
    nothing = str(tmp_path / "nothing")
    assert nothing in refused(capsys, folders[0], nothing)


def test_a_run_whose_evaluation_is_done_again_after_a_loss_is_unfinished(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = make_run(tmp_path, "seed=7")
    Run(config_of(tmp_path, "seed=7"), resume=True).forget("iteration-1/eval")
    assert f"{lost}: an unfinished run" in refused(capsys, folders[0], lost)


def test_a_lost_part_is_refused_and_never_a_figure(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folders[1], copy)
    part = next((copy / "trajectories").rglob("*.parquet"))
    part.unlink()
    assert "some were lost, added or replaced" in refused(capsys, folders[0], str(copy))


def test_the_figures_of_plain_results_need_no_folder(tmp_path: Path) -> None:
    config = parse_config(
        dump_config(config_of(tmp_path)),
        ["iterations=2", "evaluation={turns: 5, parallel: 5, bootstrap: 200}", "controls=[]"],
        source="test",
    )
    results = {m: r for m, r in report_run.results().items() if m != "rejection_sampling-2"}
    text = markdown(summary([results, results], [3, 4], config))
    assert "| iteration-2 |" in text
    assert "seed 3 | seed 4" in text
    assert "ap(sure)" not in text
    asked = report_run.results(asked=True)
    asked.pop("rejection_sampling-2")
    text = markdown(summary([asked, asked], [3, 4], config))
    (header,) = (line for line in text.splitlines() if line.startswith("| model | ap(sure) |"))
    row = next(line for line in text.splitlines() if line.startswith("| iteration-2 | 100.0 "))
    assert header.count("|") == row.count("|")
    assert "iteration-2 ap(sure) (100.0) against iteration-2 ap(likelihood)" in text


def test_the_votes_of_several_tables_are_one_picture_each_with_its_margin(
    folders: list[str], tmp_path: Path
) -> None:
    few, many = compare_seeds(folders[:1]), compare_seeds(folders)
    files = [tmp_path / "few.json", tmp_path / "many.json"]
    for found, file in zip([few, many], files, strict=True):
        write_files(found, str(file), None)
    picture = tmp_path / "scaling.svg"
    command = [sys.executable, str(SCALING), str(picture), f"one seed={files[0]}", f"3={files[1]}"]
    subprocess.run(command, check=True)
    drawn = "".join(ElementTree.fromstring(picture.read_bytes()).itertext())
    assert all(name in drawn for name in ("trained", "control", "base", "one seed"))
    # The trained model and the control are alike in this fixture.
    assert drawn.count("+0.0 points [") == 2
    assert votes_of_tables({"one seed": few}) != votes_of_tables({"one seed": many})

    # Of several controls it is the one that comes closest, whatever their order.
    vote = next(one for one in few["comparisons"] if one["note"] == CONTROLS_VOTE)
    base = {**vote["right"], "model": "base"}
    weaker = {**vote, "right": base, "value": 0.5, "low": 0.4, "high": 0.6}
    several = {**few, "comparisons": [weaker, vote, weaker]}
    assert votes_of_tables({"one seed": several}) == votes_of_tables({"one seed": few})

    alone = {**few, "comparisons": few["comparisons"][:1]}
    with pytest.raises(DataError, match="one seed: there is no control's vote"):
        votes_of_tables({"one seed": alone})
