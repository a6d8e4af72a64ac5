"""Measurements: every record is kept once, in a file of valid JSON, and named for W&B."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rise_ray.config_file import parse_config
from rise_ray.store.files import Folder
from rise_ray.track import METRICS, Tracker, _flat, wandb_mode


def _tracker(folder: Folder) -> Tracker:
    config = parse_config("{name: d, task: {name: t}, model: {path: m}}", [], source="test")
    tracker = Tracker(config, folder)
    tracker.open()
    return tracker


def _lines(folder: Folder) -> list[dict[str, object]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = folder.read(METRICS).decode()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_records_are_on_storage_with_their_stage_phase_and_time(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    tracker = _tracker(folder)
    tracker.log("iteration-1", "train", {"step": 1, "loss": 0.5})
    tracker.close()
    (record,) = _lines(folder)
    assert record.pop("time")
    assert record.pop("schema_version") == "1"
    assert record == {"stage": "iteration-1", "phase": "train", "step": 1, "loss": 0.5}
    assert tracker.latest() == tracker.records()[-1]


def test_a_phase_that_starts_again_replaces_its_own_records_only(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    first = _tracker(folder)
    for stage, phase, step in (("a", "train", 1), ("a", "train", 2), ("a", "eval", 1)):
        first.log(stage, phase, {"step": step})
    first.flush()
    second = _tracker(folder)  # the run was stopped and resumed
    second.begin("a", "train")
    second.log("a", "train", {"step": 1})
    second.flush()
    assert [(r["phase"], r["step"]) for r in _lines(folder)] == [("eval", 1), ("train", 1)]


def test_what_is_no_number_is_null_and_never_invalid_json(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    tracker = _tracker(folder)
    nan, infinity = float("nan"), float("inf")
    tracker.log("a", "train", {"loss": nan, "by": {"x": [infinity, 1.0]}, "count": 3})
    tracker.flush()
    (record,) = _lines(folder)
    assert (record["loss"], record["by"], record["count"]) == (None, {"x": [None, 1.0]}, 3)


def test_an_empty_tracker_has_no_newest_record(tmp_path: Path) -> None:
    assert _tracker(Folder(str(tmp_path))).latest() is None


def test_wandb_gets_numbers_by_phase_and_stage_and_intervals_by_their_value() -> None:
    record = {
        **{"stage": "evaluation", "phase": "eval", "model": "iteration-1", "time": 1.0},
        **{"problems": 80, "split": "test"},
        "metrics": {"m1@t1": {"value": 0.4, "low": 0.3, "high": 0.5}, "plain": 2},
    }
    assert _flat(record) == {
        "eval/iteration-1/problems": 80,
        "eval/iteration-1/m1@t1": 0.4,
        "eval/iteration-1/plain": 2,
    }
    assert _flat({"stage": "warm-start", "phase": "train", "loss": 0.5}) == {
        "train/warm-start/loss": 0.5
    }


@pytest.mark.parametrize(
    ("mode", "key", "login", "resolved"),
    [
        ("auto", None, None, "offline"),
        ("auto", "secret", None, "online"),
        ("auto", None, "machine api.wandb.ai login user password secret", "online"),
        ("auto", None, "machine elsewhere.org login user password secret", "offline"),
        ("auto", None, "no netrc at all", "offline"),
        ("offline", "secret", None, "offline"),
        ("disabled", "secret", None, "disabled"),
    ],
)
def test_wandb_is_online_where_it_can_be(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    key: str | None,
    login: str | None,
    resolved: str,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    if login:
        (tmp_path / ".netrc").write_text(login)
        (tmp_path / ".netrc").chmod(0o600)
    text = f"{{name: d, task: {{name: t}}, model: {{path: m}}, wandb: {{mode: {mode}}}}}"
    assert wandb_mode(parse_config(text, [], source="test")) == resolved
