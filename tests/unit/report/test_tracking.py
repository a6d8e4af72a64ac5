"""Measurements: every record is kept once, in a file of valid JSON, and named for W&B."""

from __future__ import annotations

import functools
import json
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rise_ray.cluster.stop import Stopped
from rise_ray.config.loading import parse_config
from rise_ray.config.settings import RunConfig
from rise_ray.errors import StoreError
from rise_ray.report.tracking import METRICS, Tracker, _flat, start_tracker, wandb_mode
from rise_ray.run.stages import Stages
from rise_ray.store.files import Folder


def _config() -> RunConfig:
    return parse_config("{name: d, task: {name: t}, model: {path: m}}", [], source="test")


def _tracker(folder: Folder) -> Tracker:
    tracker = Tracker(_config(), folder)
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


def test_a_training_that_goes_on_keeps_the_records_up_to_its_state(tmp_path: Path) -> None:
    """Whatever died, a worker or the driver: each step is measured once."""
    folder = Folder(str(tmp_path))

    def steps(tracker: Tracker, *ends: int) -> None:
        for since, end in pairwise(ends):
            tracker.log("a", "train", {"since_step": since, "step": end})

    first = _tracker(folder)
    first.begin("a", "train")
    steps(first, 0, 8, 16, 24)
    first.log("b", "train", {"since_step": 0, "step": 40})
    steps(first, 8, 24, 32)  # the training was lost, its driver not
    first.flush()
    second = _tracker(folder)
    second.begin("a", "train")
    assert second.latest() is None  # nothing that this try has not done
    steps(second, 24, 40)
    second.flush()
    kept = [(r["stage"], r["step"]) for r in _lines(folder)]
    assert kept == [("a", 8), ("b", 40), ("a", 24), ("a", 40)]
    third = _tracker(folder)
    third.begin("a", "train")
    steps(third, 0, 32)  # no state was left: from the start
    third.flush()
    assert [(r["stage"], r["step"]) for r in _lines(folder)] == [("b", 40), ("a", 32)]


def test_a_storage_that_fails_at_the_end_does_not_leave_wandb_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = _tracker(Folder(str(tmp_path)))
    finished: list[bool] = []
    tracker._wandb = SimpleNamespace(finish=lambda: finished.append(True))
    monkeypatch.setattr(Folder, "write", _away)
    with pytest.raises(StoreError, match="away"):
        tracker.close()
    assert finished == [True]


class _Parts:
    """Of a run: actors that cannot be stopped and a tracker."""

    def __init__(self, stop: Callable[..., None]) -> None:
        self.closed = 0
        stages: Any = Stages.__new__(Stages)
        stages._actors = SimpleNamespace(stop=stop)
        stages._tracker = SimpleNamespace(close=self._close)
        self.stages: Stages = stages

    def _close(self) -> None:
        self.closed += 1


def test_a_tracker_is_closed_where_the_actors_cannot_be_stopped() -> None:
    parts = _Parts(stop=_away)
    with pytest.raises(StoreError, match="away"), parts.stages:
        pass
    assert parts.closed == 1


@pytest.mark.parametrize("ended_by", [Stopped(signal.SIGTERM), KeyboardInterrupt()])
def test_what_fails_after_a_stop_is_a_warning_and_hides_no_stop(
    caplog: pytest.LogCaptureFixture, ended_by: BaseException
) -> None:
    parts = _Parts(stop=_away)
    with pytest.raises(type(ended_by)) as raised, parts.stages:
        raise ended_by
    assert raised.value is ended_by
    assert parts.closed == 1
    assert "the run was not ended tidily: the store is away" in caplog.text


def test_a_stop_while_wandb_starts_closes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Actor:
        """Ray's handle of a tracker whose `open` is under way when the stop comes."""

        def __init__(self) -> None:
            self.called: list[str] = []
            self.open, self.close = (
                SimpleNamespace(remote=functools.partial(self._call, name))
                for name in ("open", "close")
            )

        def _call(self, name: str) -> str:
            self.called.append(name)
            return name

    actor = Actor()
    made = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *_: actor))
    monkeypatch.setattr("ray.remote", lambda _: made)
    monkeypatch.setattr("rise_ray.report.tracking.this_node", lambda: None)
    monkeypatch.setattr("ray.get", lambda call, timeout: _stop() if call == "open" else None)
    with pytest.raises(Stopped):
        start_tracker(_config(), Folder(str(tmp_path)))
    assert actor.called == ["open", "close"]


def test_what_could_not_be_read_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{")
    tracker = Tracker(_config(), Folder(str(tmp_path)))
    with pytest.raises(StoreError):
        tracker.open()
    tracker.close()
    assert (tmp_path / "metrics.jsonl").read_text() == "{"


def _stop() -> None:
    raise Stopped(signal.SIGTERM)


def _away(*_: object) -> None:
    raise StoreError("the store is away")


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
