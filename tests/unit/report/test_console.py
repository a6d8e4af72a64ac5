"""The terminal: plain lines, progress no more often than readable, nothing read as markup."""

from __future__ import annotations

import re
import threading

import pytest

from rise_ray.report.console import Console
from rise_ray.rollout.collect import Tally
from tests.unit.report import run


class Clock:
    """A monotonic clock that moves when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("rise_ray.report.console.time.monotonic", clock)
    return clock


def test_of_two_stages_at_a_time_the_one_that_began_first_is_told_by_its_name(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console()
    console.stage("iteration-1: train")
    console.step("step 10 of 40")

    def roll() -> None:
        console.stage("chats-1: collect")
        console.step("4 of 20 episodes")

    other = threading.Thread(target=roll)
    other.start()
    other.join()
    console.step("step 20 of 40")
    said = [line[8:] for line in capsys.readouterr().out.splitlines()]
    assert said == [
        "iteration-1: train",
        "  step 10 of 40",
        "chats-1: collect",
        "  4 of 20 episodes",
        "  iteration-1: train: step 20 of 40",
    ]


def test_lines_carry_the_time_since_the_start(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console()
    clock.now += 125
    console.line("iteration-1: collect")
    console.step("done in 33 s")
    assert capsys.readouterr().out == "  2:05  iteration-1: collect\n  2:05    done in 33 s\n"


def test_text_is_shown_as_it_is(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    text = "lost [bold]worker[/bold] 7 " + "x" * 200
    console.line(text)
    assert capsys.readouterr().out == f"  0:00  {text}\n"


def test_progress_comes_every_few_seconds_and_at_the_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console()
    console.rolling()
    tally = Tally()
    for done, seconds, tokens in ((1, 1, 10), (2, 1, 20), (50, 5, 7000), (100, 1, 8000)):
        clock.now += seconds
        tally.tokens = tokens
        console.rolled(done, 100, tally)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[-1] for line in lines] == [
        "1 of 100 episodes, 10 tokens/s",
        "50 of 100 episodes, 1,000 tokens/s",
        "100 of 100 episodes, 1,000 tokens/s",
    ]


def test_scores_are_in_percent_and_results_name_the_report(
    capsys: pytest.CaptureFixture[str],
) -> None:
    evaluated = run.results()
    everything = run.records(evaluated)
    records = [r for r in everything if r["phase"] == "eval"]
    console = Console()
    console.scores(records[0])
    scores = capsys.readouterr().out
    value = 100 * records[0]["metrics"]["m1@t5"]["value"]
    assert f"m1@t5 {value:.1f}" in scores
    assert not re.search(r"nan|None", scores)
    console.results(records, run.comparisons(evaluated), "runs/demo/report.html")
    shown = capsys.readouterr().out
    assert shown.endswith("Report: runs/demo/report.html\n")
    assert all(model in shown for model in run.MODELS)
    assert "each track" not in shown  # there is no record of a training
    console.results(everything, run.comparisons(evaluated), "runs/demo/report.html")
    assert "What each track was trained on" in capsys.readouterr().out
