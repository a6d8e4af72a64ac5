"""The command: one clear message, an exit status, and nothing written for what is wrong."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

import pytest
from ray.exceptions import RayTaskError

from rise_ray import __version__
from rise_ray.cli import main as cli
from rise_ray.errors import ModelError, user_error
from rise_ray.report.tracking import new_record, write_metrics
from rise_ray.run.journal import Run
from tests.unit.report import run as report_run

QUICKSTART = str(Path(__file__).parents[3] / "jobs" / "quickstart.yaml")


@pytest.fixture(autouse=True)
def hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command replaces them for good, and the next tests need theirs."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)


def _stderr(capsys: pytest.CaptureFixture[str]) -> str:
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    return printed


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["run", "nothing.yaml"], 2, "nothing.yaml: cannot read the config: No such file"),
        (["run", QUICKSTART, "recipe.turn=3"], 2, "did you mean `turns`?"),
        (["run", QUICKSTART, "seed"], 2, "override 'seed': write it as key.sub=value"),
        (["run", QUICKSTART, "seed=-1"], 2, "`seed`: Input should be greater than or equal to 0"),
        (["run", QUICKSTART, "task.name=chess"], 2, "`task.name`: unknown task `chess`"),
        (["run", QUICKSTART, "model.path=./none"], 1, "model ./none: there is no such folder"),
        (["run", QUICKSTART, "split=best"], 1, "countdown: no split `best` (allowed: test, dev"),
        (["run", QUICKSTART, "problems=9999"], 2, "split `train` has only"),
        (["eval", QUICKSTART, "--model", "./a b: #c"], 1, "model ./a b: #c: there is no such"),
        (["check", "nothing.yaml"], 2, "nothing.yaml: cannot read the config"),
    ],
)
def test_bad_input_is_one_message_and_leaves_no_folder(
    arguments: list[str],
    status: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == status
    printed = _stderr(capsys)
    assert printed.startswith("rise-ray: error: ")
    assert said in printed
    assert printed.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_where_an_error_came_from() -> None:
    with pytest.raises(Exception, match="cannot read the config"):
        cli.main(["run", "nothing.yaml", "--debug"])


def test_settings_may_stand_after_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", QUICKSTART, "--resume", "seed=0", "recipe.turn=3"]) == 2
    assert "`recipe.turn`: unknown setting" in _stderr(capsys)


def test_an_unknown_option_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", QUICKSTART, "--resumee"])
    assert ended.value.code == 2
    assert "unknown option --resumee" in capsys.readouterr().err


def test_an_error_of_a_remote_process_is_its_own_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inner = RayTaskError("start", "a long remote trace", ModelError("model x: is damaged"))
    outer = RayTaskError("outer", "another trace", inner.as_instanceof_cause())

    def fail(*_: object) -> None:
        raise outer.as_instanceof_cause()

    monkeypatch.setattr(cli, "load_config", fail)
    assert cli.main(["run", QUICKSTART]) == 1
    assert _stderr(capsys) == "rise-ray: error: model x: is damaged\n"


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RayTaskError("f", "a trace", ZeroDivisionError("x")).as_instanceof_cause()

    monkeypatch.setattr(cli, "load_config", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["run", QUICKSTART])
    assert user_error(ValueError("x")) is None


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_to_stop_is_one_line_and_its_status(
    name: str,
    status: int,
    plain: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(*_: object) -> None:
        try:
            signal.raise_signal(signal.Signals[name])
        except KeyboardInterrupt:
            if plain:  # as Ray does when it comes while it waits
                raise KeyboardInterrupt from None
            raise

    monkeypatch.setattr(cli, "load_config", stop)
    assert cli.main(["run", QUICKSTART]) == status
    expected = f"rise-ray: stopped by {name}; the same command with --resume goes on\n"
    assert _stderr(capsys) == expected


def test_a_finished_run_shows_its_results_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [f"storage={tmp_path}"]
    run = Run(cli.load_config(QUICKSTART, overrides), resume=False)
    evaluated = report_run.results()
    compared = report_run.comparisons(evaluated)
    run.stage("run/report", lambda: {"comparisons": compared})
    measured = [*report_run.records(evaluated), {"stage": "run", "phase": "report", "seconds": 1.0}]
    write_metrics(
        run.folder, [new_record(r.get("stage", r.get("model")), r["phase"], r) for r in measured]
    )
    before = {name: run.folder.read(name) for name in run.folder.names()}
    for arguments in (["run", QUICKSTART, *overrides], ["run", QUICKSTART, *overrides, "--resume"]):
        assert cli.main(arguments) == 0
        printed = capsys.readouterr().out
        assert "iteration-2" in printed
        assert f"Report: {tmp_path}/quickstart/report.html" in printed
    assert {name: run.folder.read(name) for name in run.folder.names()} == before


def test_damaged_metrics_of_a_finished_run_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [f"storage={tmp_path}"]
    run = Run(cli.load_config(QUICKSTART, overrides), resume=False)
    run.stage("run/report", lambda: {"comparisons": []})
    run.folder.write("metrics.jsonl", b'{"stage": ')
    assert cli.main(["run", QUICKSTART, *overrides]) == 1
    assert "metrics.jsonl: damaged" in _stderr(capsys)


@pytest.mark.parametrize("command", ["run", "eval", "check"])
def test_help_tells_what_a_newcomer_needs(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "key.sub=value" in printed
    assert "settings.py" in printed
    assert "130 stopped by Ctrl-C" in printed


def test_the_help_of_run_lists_its_stages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["run", "--help"])
    words = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()]
    stages = ["warm-start", "base", "iteration-N", "relabel:", "train:", "TRACK-N", "report"]
    assert [word for word in words if word in stages] == stages


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"rise-ray {__version__}\n"
