"""The results in the terminal: one row per model, then the comparisons as plain sentences."""

from __future__ import annotations

import textwrap
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rise_ray.report import words
from rise_ray.report.records import Record, Training, eval_records, last_model, protocol
from rise_ray.text import printable

_NAME_WIDTH = 12  # of a model's name; with it the table fits 80 columns
_PLAIN: dict[str, Any] = {"box": box.SIMPLE, "pad_edge": False, "show_edge": False}
_STYLES = {"gain": "green", "loss": "red"}


def main_metrics(turns: int, parallel: int) -> list[str]:
    """The metrics of the main table, in order."""
    names = ["m1@t1", f"m{parallel}@t1", f"m1@t{turns}", f"p1@t{turns}", f"pass@{parallel}"]
    return list(dict.fromkeys(names))


def sureness_metrics(metrics: Iterable[Container[str]], turns: int, parallel: int) -> list[str]:
    """The main ones of P(right), in order, that any of several evaluations has."""
    names = ["ap(sure)", "ap(likelihood)", "ap(claim)", "ece"]
    names += [f"best{parallel}@t1(sure)", f"stop@t{turns}(sure)"]
    known = list(metrics)
    return [name for name in names if any(name in of_model for of_model in known)]


def results_table(
    records: Iterable[Record], comparisons: Sequence[Mapping[str, Any]]
) -> RenderableType:
    """A rich renderable of all evaluations (percent, 95% intervals) and comparisons.

    From all records of metrics.jsonl and `rise_ray.evaluate.compare.standard_comparisons`.
    """
    evaluated = eval_records(records)
    if not evaluated:
        return Text("Nothing was evaluated yet.")
    shown = evaluated[last_model(evaluated)]
    turns, parallel = protocol(shown)
    names = main_metrics(turns, parallel)
    table = Table(**_PLAIN)
    table.add_column("model", no_wrap=True)
    for name in names:
        table.add_column(words.metric_label(name).replace(" (oracle)", "\noracle"), justify="right")
    table.add_column(f"right at\nturns 1-{turns}")
    table.add_column("keeps right /\nfixes wrong", justify="right")
    for model, record in evaluated.items():
        table.add_row(Text(_in_lines(printable(model))), *_cells(record["metrics"], names, turns))
    said = [(words.sentence(one), _STYLES.get(words.finding(one), "")) for one in comparisons]
    lines = [Text.assemble("- ", line) for line in said]
    sampling = ", ".join(f"{key} {value}" for key, value in shown["sampling"].items())
    caption = printable(
        f"percent [95% interval]; split {shown['split']}, "
        f"{words.plural(shown['n'], 'problem')} x {words.plural(shown['samples'], 'sample')}; "
        f"{sampling}; window {words.window(shown['window'])}; feedback {shown['feedback']}"
    )
    caption_below = Padding(Text(caption, style="dim"), (0, 0, 1, 0))
    return Group(table, *_sureness_table(evaluated, turns, parallel), caption_below, *lines)


def _sureness_table(
    evaluated: Mapping[str, Record], turns: int, parallel: int
) -> Iterator[RenderableType]:
    """A row for each model that was asked how sure it is; no table if none was."""
    metrics = {model: record["metrics"] for model, record in evaluated.items()}
    names = sureness_metrics(metrics.values(), turns, parallel)
    if not names:
        return
    table = Table(**_PLAIN)
    table.add_column("model", no_wrap=True)
    for name in names:
        table.add_column(name.replace("(", "\n("), justify="right")
    for model, of in metrics.items():
        cells = (words.percent(of[name]["value"]) if name in of else "" for name in names)
        table.add_row(Text(_in_lines(printable(model))), *cells)
    yield table


def training_table(trained: Mapping[str, Training]) -> RenderableType:
    """What each track was trained on, a row for each of at least one training."""
    title = "What each track was trained on"
    table = Table(**_PLAIN, title=title, title_justify="left", title_style="")
    table.add_column("training", no_wrap=True)
    rows = {stage: training_cells(training) for stage, training in trained.items()}
    for name in next(iter(rows.values())):
        table.add_column(name.replace(" ", "\n", 1), justify="right")
    for stage, cells in rows.items():
        table.add_row(Text(printable(stage)), *cells.values())
    return table


def training_cells(training: Training) -> dict[str, str]:
    """What a track was trained on in words, by column."""
    return {
        "sampled tokens": words.amount(training.sampled_tokens),
        "examples": words.amount(training.examples),
        "epochs": words.amount(training.epochs, ".1f"),
        "trained tokens": words.amount(training.tokens),
        "loss tokens": words.amount(training.loss_tokens),
        "loss at the end": words.loss(training.last_loss),
    }


def _in_lines(name: str) -> str:
    """A model's name in lines, which end after its underscores where they can."""
    parts = name.replace("_", "_ ")
    lines = textwrap.wrap(parts, _NAME_WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join(line.replace("_ ", "_") for line in lines)


def _cells(metrics: Mapping[str, Any], names: Sequence[str], turns: int) -> list[Text]:
    cells = [
        Text.assemble(
            words.percent(metrics[name]["value"]),
            "\n",
            (words.percent_interval(metrics[name]), "dim"),
        )
        if name in metrics
        else Text("")
        for name in names
    ]
    by_turn = [metrics[f"acc@t{turn}"]["value"] for turn in range(1, turns + 1)]
    cells.append(Text(" ".join(words.percent(value).split(".")[0] for value in by_turn)))
    rates = [metrics.get(name, {"value": None})["value"] for name in ("keep_rate", "fix_rate")]
    cells.append(Text(" / ".join(words.percent(rate) for rate in rates)))
    return cells
