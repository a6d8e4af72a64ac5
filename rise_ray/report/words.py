"""Numbers as words: the one place where the table and the page get them from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rise_ray.evaluate.compare import CONTROLS_VOTE, TRAINED
from rise_ray.text import printable

MISSING = "-"
"""Shown for a metric without a single case."""


def percent(value: float | None) -> str:
    """A share as percent without the sign: 0.3241 is `32.4`."""
    return MISSING if value is None else f"{100 * value:.1f}"


def percent_interval(metric: Mapping[str, float | None]) -> str:
    """The interval of a metric (`value`, `low`, `high`) in percent: `[30.9, 33.8]`."""
    if metric["value"] is None:
        return ""
    return f"[{percent(metric['low'])}, {percent(metric['high'])}]"


def points(value: float) -> str:
    """A difference of shares in percentage points, signed: 0.0861 is `+8.6`."""
    # Adding 0 turns a rounded -0.0 into 0.0.
    return f"{round(100 * value, 1) + 0.0:+.1f}"


def amount(value: float | None, form: str = ",") -> str:
    """A count, 12,345; passes over the data are of the `form` `.1f`: 43.7."""
    return MISSING if value is None else format(value, form)


def temperatures(sampling: Mapping[str, Any]) -> str:
    """`temperature 0.7`, or `temperature 0.7 at the first turn, 1 later`."""
    first, later = sampling["temperature"], sampling["later_temperature"]
    said = f"temperature {first:g}"
    return said if later is None else f"{said} at the first turn, {later:g} later"


def loss(value: float | None) -> str:
    """Three decimals, five where they would be 0: a training to memorisation is to be seen."""
    if value is None:
        return MISSING
    return f"{value:.5f}" if abs(value) < 0.01 else f"{value:.3f}"


def metric_label(name: str) -> str:
    """A metric's name for people; figures that need an oracle say so."""
    return f"{name} (oracle)" if name.startswith("p1@") else name


def finding(comparison: Mapping[str, Any]) -> str:
    """`gain`, `loss`, `not distinguishable from 0` (the interval includes 0) or `not measured`."""
    if comparison["value"] is None:
        return "not measured"
    if comparison["low"] > 0:
        return "gain"
    return "loss" if comparison["high"] < 0 else "not distinguishable from 0"


def figures(comparison: Mapping[str, Any]) -> str:
    """What is compared: `iteration-2 m1@t5 (65.4) against base m1@t5 (42.4)`."""
    left, right = (
        f"{printable(side['model'])} {metric_label(side['metric'])} ({percent(side['value'])})"
        for side in (comparison["left"], comparison["right"])
    )
    return f"{left} against {right}"


def difference(comparison: Mapping[str, Any], unit: str = " points") -> str:
    """The difference with its interval: `+23.0 points [+20.7, +25.3]`; empty if not measured."""
    if comparison["value"] is None:
        return ""
    value, low, high = (points(comparison[key]) for key in ("value", "low", "high"))
    return f"{value}{unit} [{low}, {high}]"


def sentence(comparison: Mapping[str, Any]) -> str:
    """A comparison said plainly, with its interval and what it is for."""
    found, note = finding(comparison), printable(comparison["note"])
    if found == "not measured":
        return f"{figures(comparison)}: not measured, no common problem ({note})."
    return (
        f"{figures(comparison)}: {_with_article(found)}, {difference(comparison)}, "
        f"on {comparison['n']} problems ({note})."
    )


def _with_article(found: str) -> str:
    return found if found.startswith("not") else f"a {found}"


def plainly(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the last model gained, and what each of its controls gave, a sentence each."""
    said = []
    for one in comparisons:
        if one["value"] is None or one["note"] not in (TRAINED, CONTROLS_VOTE):
            continue
        left, right = one["left"], one["right"]
        model, other = printable(left["model"]), printable(right["model"])
        if one["note"] == TRAINED:
            said.append(
                f"{model} is right on {percent(left['value'])}% of the problems by "
                f"{_vote(left['metric'])}; {other} on {percent(right['value'])}%."
            )
        else:
            said.append(
                f"The control {other} comes to {percent(right['value'])}% by "
                f"{_vote(right['metric'])}, the better of its votes. The difference is "
                f"{_with_article(finding(one))}, {difference(one)}."
            )
    return said


def _vote(metric: str) -> str:
    """In words: `m1@t5`, `m5@t1`."""
    answers, turns = metric.removeprefix("m").split("@t")
    if turns != "1":
        return f"a majority over {turns} turns"
    return "its first answer" if answers == "1" else f"a majority over {answers} first answers"


def plural(count: int, noun: str) -> str:
    """`1 sample`, `2 samples`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def window(turns: int | None) -> str:
    """The turns that a state shows: `all turns`, `2 turns`."""
    return "all turns" if turns is None else plural(turns, "turn")
