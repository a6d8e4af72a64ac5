"""The terminal table shows every model with intervals, in 80 columns, and no control codes."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from rise_ray.report.records import trainings
from rise_ray.report.table import results_table, training_table
from tests.unit.report import run


def rendered(records: list[dict], comparisons: list[dict], width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(results_table(records, comparisons))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def results() -> dict:
    return run.results()


def test_the_table_has_every_model_every_metric_and_every_comparison(results: dict) -> None:
    comparisons = run.comparisons(results)
    text = rendered(run.records(results), comparisons)
    for word in (*run.MODELS, "m1@t1", "m5@t1", "m1@t5", "p1@t5", "oracle", "pass@5"):
        assert word in text
    value = results["iteration-2"].metrics["m1@t5"]
    assert f"{100 * value.value:.1f}" in text
    assert f"[{100 * value.low:.1f}, {100 * value.high:.1f}]" in text
    assert text.count("\n- ") == len(comparisons)


def test_the_table_fits_80_columns(results: dict) -> None:
    text = rendered(run.records(results), run.comparisons(results), width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "\u2026" not in text  # nothing was cut


def test_how_sure_it_is_has_a_table_of_80_columns_where_that_was_asked(results: dict) -> None:
    asked = run.results(asked=True)
    text = rendered(run.records(asked), run.comparisons(asked), width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "\u2026" not in text
    assert all(word in text for word in ("(sure)", "(likelihood)", "ece", "stop@t5"))
    assert "100.0" in text  # iteration-2 ranks its answers without a fault
    assert "ece" not in rendered(run.records(results), [])


def test_what_each_track_was_trained_on_fits_too_and_shows_a_loss_near_zero(results: dict) -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(training_table(trainings(run.records(results))))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "\u2026" not in text
    row = next(line for line in text.splitlines() if line.startswith("iteration-2"))
    assert row.split()[1:] == ["98,765", "4,321", "4.0", "200,000", "40,000", "0.00008"]


def test_names_neither_steer_the_terminal_nor_become_markup(results: dict) -> None:
    records = run.records(results)
    records[-1]["model"] = "\x1b]0;title\x07[red]x[/red]"
    text = rendered(records, [])
    assert "\x1b" not in text
    assert "\\x1b]0;title\\x07[red]x[/red]" in text


def test_without_an_evaluation_the_table_says_so() -> None:
    assert "Nothing was evaluated" in rendered([], [])
