"""The chaos job's watch: each sign of progress is told once, by what the run itself writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.chaos.watch import Watch

STAGES = ["base/eval", "iteration-1/collect", "run/report"]


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    return Watch(tmp_path / "run", STAGES)


def journal(tmp_path: Path, *stages: str) -> None:
    state = tmp_path / "run" / "state.json"
    state.parent.mkdir(exist_ok=True)
    state.write_text(json.dumps({"stages": {key: {} for key in stages}}))


def test_a_run_that_does_not_exist_yet_is_in_its_first_stage(watch: Watch) -> None:
    assert (watch.look(), watch.stage) == ([], "base/eval")


def test_a_part_is_a_sign_once(watch: Watch, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "trajectories" / "iteration=0" / "phase=eval"
    folder.mkdir(parents=True)
    (folder / ".half-written.tmp").touch()
    assert watch.look() == []
    (folder / "part-1.parquet").touch()
    assert watch.look() == ["part part-1.parquet"]
    assert watch.look() == []


def test_a_journaled_stage_is_a_sign_and_the_next_one_is_the_runs(
    watch: Watch, tmp_path: Path
) -> None:
    journal(tmp_path)
    assert watch.look() == []
    journal(tmp_path, "base/eval")
    assert (watch.look(), watch.stage) == (["stage base/eval"], "iteration-1/collect")
    journal(tmp_path, *STAGES)
    assert len(watch.look()) == 2
    assert watch.stage == "run/report"


def test_a_step_that_is_trained_again_is_a_new_sign_and_an_old_record_is_none(
    watch: Watch, tmp_path: Path
) -> None:
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.parent.mkdir()
    record = {"stage": "iteration-1", "phase": "train", "time": 1.0, "step": 5}
    result = {"stage": "base", "phase": "eval", "time": 0.5}
    metrics.write_text(json.dumps(result) + "\n" + json.dumps(record) + "\n")
    assert len(watch.look()) == 1
    metrics.write_text(json.dumps(result) + "\n")  # a resumed stage drops its records
    assert watch.look() == []
    metrics.write_text(json.dumps({**record, "time": 2.0}) + "\n")
    assert len(watch.look()) == 1
