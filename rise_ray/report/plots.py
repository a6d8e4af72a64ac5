"""Pictures of the page as inline SVG: text and axes take the page's colour, light or dark."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rise_ray.errors import DataError
from rise_ray.evaluate.compare import CONTROLS_VOTE
from rise_ray.report.records import Record, protocol
from rise_ray.report.words import difference
from rise_ray.text import printable

# A colour that nothing else has: replaced by `currentColor` in the finished SVG.
_INK = "#010203"
_BASE = "#8b929e"
# Each differs from the others, and from the blue of the iterations, for colour-blind eyes too: four
# of Okabe and Ito's colours, two of Tol's.
_CONTROLS = ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#999933", "#aa4499")
# Earlier iterations are paler; each reads on white and on near-black.
_ITERATION = ("#3b82f6", "#6d9ff2", "#93b8f3")
_WAYS = (_ITERATION[0], *_CONTROLS[:3])  # to come to one answer
_STYLE = {
    "svg.fonttype": "none",  # the page's own font
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.edgecolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,
}

End = tuple[float, float, str, str]
"""Where a line ends (x, y), its name and colour."""


def accuracy_by_turn(evaluated: Mapping[str, Record]) -> str:
    """Unvoted accuracy at each turn, one line per model with its 95% band."""
    axes = _axes("turn", "right, percent of problems")
    colours = model_colours(list(evaluated))
    longest = max(protocol(record)[0] for record in evaluated.values())
    axes.set_xticks(range(1, longest + 1))
    ends = []
    for model, record in evaluated.items():
        turns = range(1, protocol(record)[0] + 1)
        accuracy = [record["metrics"][f"acc@t{turn}"] for turn in turns]
        if accuracy[0]["value"] is not None:
            ends.append(_banded_line(axes, model, turns, accuracy, colours[model]))
    return _svg(axes, ends, "accuracy-by-turn")


def accuracy_by_tokens(record: Record) -> str:
    """Accuracy over what it costs in tokens, by each way to come to one answer.

    By a vote over turns or over independent answers; where the model was asked how sure it is, also
    by stopping as soon as it is, and by the surest of independent answers.
    """
    turns, parallel = protocol(record)
    metrics = record["metrics"]
    by_turn, sizes = range(1, turns + 1), range(2, parallel + 1)  # a vote of one is no vote
    # Answers of a set are drawn alike: k of them cost k times one.
    set_tokens = metrics["tokens_parallel"]["value"]
    spent = [size * set_tokens / parallel for size in sizes if set_tokens is not None]
    ways = {
        "sequential": ([f"tokens@t{turn}" for turn in by_turn], "m1@t{}", by_turn),
        "parallel": (spent, "m{}@t1", sizes),
        "until sure": ([f"tokens_stopped@t{turn}" for turn in by_turn], "stop@t{}(sure)", by_turn),
        "the surest": (spent, "best{}@t1(sure)", sizes),
    }
    axes = _axes("generated tokens per problem, mean", "right, percent of problems")
    ends = []
    for (name, (costs, metric, counts)), colour in zip(ways.items(), _WAYS, strict=True):
        figures = [metrics.get(metric.format(count)) for count in counts]
        known = [figure for figure in figures if figure and figure["value"] is not None]
        if not known or len(known) < len(figures):
            continue
        x = [metrics[cost]["value"] if isinstance(cost, str) else cost for cost in costs]
        ends.append(_banded_line(axes, name, x, known, colour))
    return _svg(axes, ends, "accuracy-by-tokens")


def votes_of_tables(tables: Mapping[str, Record]) -> str:
    """The votes that `rise-ray compare` sets against each other, for several of its tables.

    Of each table, what `compare --json` wrote: the vote over a run's turns of the last model and of
    the base, and the better vote of its best control, with intervals. Below it are its name and
    what the last model has more than that control.

    Raises:
        DataError: a table has no control, or a figure of one was not measured.
    """
    axes = _axes("", "right by majority vote, percent")
    voted: dict[str, list[Record]] = {"trained": [], "control": [], "base": []}
    labels = []
    for name, table in tables.items():
        of_controls = [one for one in table["comparisons"] if one["note"] == CONTROLS_VOTE]
        if not of_controls or any(one["value"] is None for one in of_controls):
            raise DataError(f"{name}: there is no control's vote, so nothing to compare")
        closest = min(of_controls, key=lambda one: one["value"])
        trained, control = closest["left"], closest["right"]
        base = next(iter(table["models"]))
        for line, model, metric in (
            ("trained", trained["model"], trained["metric"]),
            ("control", control["model"], control["metric"]),
            ("base", base, trained["metric"]),
        ):
            voted[line].append(table["models"][model]["metrics"][metric])
        labels.append(f"{name}\n{difference(closest)}")
    axes.set_xticks(range(len(tables)), labels)
    axes.set_xlim(-0.5, len(tables) - 0.5)
    colours = (_ITERATION[0], _CONTROLS[0], _BASE)
    drawn = zip(voted.items(), colours, strict=True)
    return _svg(axes, [_points(axes, *line, colour) for line, colour in drawn], "votes")


def training_curves(stages: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Loss over optimizer steps, one line per stage."""
    axes = _axes("optimizer step", "loss")
    colours = model_colours(list(stages))
    ends = []
    for stage, points in stages.items():
        steps, loss = zip(*points, strict=True)
        axes.plot(steps, loss, color=colours[stage], linewidth=1.2)
        ends.append((steps[-1], loss[-1], stage, colours[stage]))
    return _svg(axes, ends, "training-curves")


def standalone(picture: str) -> str:
    """A picture of the page as a file of its own, in a grey that reads on white and on black."""
    return picture.replace("currentColor", _BASE) + "\n"


def model_colours(models: Sequence[str]) -> dict[str, str]:
    """A colour per name: base and warm start grey, iterations blue (the last strongest), each
    other one (a control's) its own, as long as there are some.
    """
    colours = {}
    controls = itertools.cycle(_CONTROLS)
    iterations = [model for model in models if model.startswith("iteration-")]
    for model in models:
        if model in iterations:
            age = len(iterations) - 1 - iterations.index(model)
            colours[model] = _ITERATION[min(age, len(_ITERATION) - 1)]
        else:
            colours[model] = _BASE if model in ("base", "warm-start") else next(controls)
    return colours


def _banded_line(
    axes: Axes, name: str, x: Sequence[float], metrics: Sequence[Mapping[str, float]], colour: str
) -> End:
    """Draw metrics in percent with their intervals as a band."""
    value, low, high = ([100 * m[key] for m in metrics] for key in ("value", "low", "high"))
    axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    axes.plot(x, value, color=colour, marker="o", markersize=4, linewidth=1.8)
    return x[-1], value[-1], name, colour


def _points(axes: Axes, name: str, metrics: Sequence[Mapping[str, float]], colour: str) -> End:
    """Draw metrics in percent, one beside the other, with their intervals as bars."""
    value, low, high = ([100 * m[key] for m in metrics] for key in ("value", "low", "high"))
    x = range(len(metrics))
    axes.vlines(x, low, high, color=colour, alpha=0.4, linewidth=2.5)
    axes.plot(x, value, color=colour, marker="o", markersize=5, linewidth=0)
    return x[-1] + 0.3, value[-1], name, colour


def _axes(x_label: str, y_label: str) -> Axes:
    with matplotlib.rc_context(_STYLE):
        axes = Figure(figsize=(7.2, 3.4), layout="tight").subplots()
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.grid(axis="y", color=_INK, alpha=0.12, linewidth=0.8)
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        axes.spines["bottom"].set_alpha(0.4)
    return axes


def _label_ends(axes: Axes, ends: Sequence[End]) -> None:
    """Write each line's name at its end, far enough apart to be read."""
    low, high = axes.get_ylim()
    gap = 0.065 * (high - low)
    height = float("-inf")
    right = max((x for x, _, _, _ in ends), default=1.0)
    for _, y, name, colour in sorted(ends, key=lambda end: end[1]):
        height = max(y, height + gap)
        axes.annotate(
            printable(name),
            (right, height),
            xytext=(10, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            weight="bold",
            parse_math=False,
        )


def _svg(axes: Axes, ends: Sequence[End], name: str) -> str:
    """The figure as an SVG element that scales with the page; equal data, equal bytes."""
    _label_ends(axes, ends)
    figure = axes.get_figure(root=True)
    assert figure is not None
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    # Several pictures share the page: their ids must not meet.
    for reference in ('id="', 'href="#', "url(#"):
        svg = svg.replace(reference, f"{reference}{name}-")
    return re.sub(r'^(<svg [^>]*?)width="[^"]*" height="[^"]*"', r'\1role="img"', svg, count=1)
