"""`rise-ray compare --seeds`: the table of runs that differ in their seed alone, as Markdown.

Only the run folders are read, and what is read is verified.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rise_ray.config.loading import differences, dump_config, may_change
from rise_ray.config.settings import RunConfig
from rise_ray.errors import ConfigError, DataError, StoreError
from rise_ray.evaluate.metrics import EvalResult, evaluate
from rise_ray.evaluate.seeds import Results, seed_comparisons, seed_metrics
from rise_ray.mdp import MAIN_TRACK
from rise_ray.report import words
from rise_ray.report.table import main_metrics, sureness_metrics
from rise_ray.run.journal import LAST_STAGE
from rise_ray.run.lineage import RunRecord, open_run
from rise_ray.run.plans import evaluated_models, of_kind
from rise_ray.run.specs import Evaluate
from rise_ray.run.tracks import stages_of
from rise_ray.store.files import Folder
from rise_ray.store.trajectories import TrajectoryStore

_OF_A_RUN = ("name", "storage", "seed")
"""What runs that are compared over seeds may differ in, beside what never decides the data."""


def compare_seeds(folders: Sequence[str]) -> dict[str, Any]:
    """The figures of one run folder (path or URI) or more over their seeds, as plain data.

    Raises:
        ConfigError: the runs differ in more than their seed, or two have the same.
        StoreError: a run is unfinished, or a folder holds none or is damaged.
        DataError: the runs were measured on different problems.
    """
    records = [open_run(Folder(folder)) for folder in folders]
    first = records[0]
    for other in records[1:]:
        for key, here, there in differences(dump_config(first.config), other.config):
            if key not in _OF_A_RUN and not may_change(key):
                raise ConfigError(
                    f"`{key}` is {here!r} in {first.folder.uri} and {there!r} in "
                    f"{other.folder.uri}: runs that are compared over seeds differ in `seed` alone"
                )
    seeds = [record.config.seed for record in records]
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"`seed`: two of the runs have the same (seeds {seeds})")
    runs = [_results(record) for record in records]
    _refuse_other_problems(records, runs)
    return summary(runs, seeds, first.config)


def summary(runs: Sequence[Results], seeds: Sequence[int], config: RunConfig) -> dict[str, Any]:
    """`compare_seeds` of results; `config` is of any of the runs."""
    places = evaluated_models(stages_of(config))
    own = [model for model, place in places.items() if place.track == MAIN_TRACK]
    protocol = config.evaluation
    metrics = seed_metrics(runs, bootstrap=protocol.bootstrap, seed=0)
    any_result = runs[0][own[0]]
    return {
        "seeds": list(seeds),
        "split": protocol.split,
        "problems": any_result.n,
        "samples": any_result.samples,
        "turns": protocol.turns,
        "parallel": protocol.parallel,
        "models": {
            model: {
                "track": places[model].track,
                "iteration": places[model].iteration,
                "metrics": {name: asdict(found) for name, found in of_all.items()},
                "seeds": [
                    {name: asdict(found) for name, found in run[model].metrics.items()}
                    for run in runs
                ],
            }
            for model, of_all in metrics.items()
        },
        "comparisons": seed_comparisons(runs, own, bootstrap=protocol.bootstrap, seed=0),
    }


def markdown(found: Mapping[str, Any]) -> str:
    """The two tables of a `summary`, and what they show and do not show."""
    seeds, turns = found["seeds"], found["turns"]
    names = main_metrics(turns, found["parallel"])
    rates = {"keep_rate": "keeps right", "fix_rate": "fixes wrong"} if turns > 1 else {}
    by_turn = f"right at turns 1-{turns}"
    header = ["model", *map(words.metric_label, names), by_turn, *rates.values()]
    rows = []
    for model, of in found["models"].items():
        metrics = of["metrics"]
        cells = {name: _figure(metric) for name, metric in metrics.items()}
        right = (words.percent(metrics[f"acc@t{turn}"]["value"]) for turn in range(1, turns + 1))
        figures = (cells[name] for name in names)
        rows.append([model, *figures, " ".join(right), *(cells[name] for name in rates)])
    compared = [
        [
            f"{words.figures(one)} ({one['note']})",
            *(words.difference(of, unit="") or "not measured" for of in [one, *one["seeds"]]),
        ]
        for one in found["comparisons"]
    ]
    titles = ["compared", "all seeds", *(f"seed {seed}" for seed in seeds)]
    caption = (
        f"Percent [95% interval], mean of {words.plural(len(seeds), 'seed')}; split "
        f"{found['split']}, {words.plural(found['problems'], 'problem')} x "
        f"{words.plural(found['samples'], 'sample')}. Differences in points, paired by problem."
    )
    tables = [_table(header, rows), *_sureness(found), caption, _table(titles, compared)]
    return "\n\n".join([*tables, _limits(len(seeds))])


def _sureness(found: Mapping[str, Any]) -> list[str]:
    """The table of P(right), if models were asked for it."""
    models = {model: of["metrics"] for model, of in found["models"].items()}
    names = sureness_metrics(models.values(), found["turns"], found["parallel"])
    rows = [
        [model, *(_figure(metrics[name]) if name in metrics else "" for name in names)]
        for model, metrics in models.items()
    ]
    return [_table(["model", *names], rows)] if names else []


def _figure(metric: Mapping[str, float | None]) -> str:
    return f"{words.percent(metric['value'])} {words.percent_interval(metric)}".strip()


def write_files(found: Mapping[str, Any], json_file: str | None, picture: str | None) -> None:
    """A `summary` as a file of numbers and as an SVG picture, where they are wanted.

    The picture has the accuracy at each turn of the base and of every track's last model.

    Raises:
        StoreError: a file cannot be written.
    """
    files = {}
    if json_file is not None:
        files[json_file] = json.dumps(found, indent=1) + "\n"
    if picture is not None:
        from rise_ray.report.plots import accuracy_by_turn, standalone

        models = found["models"].items()  # a track's iterations in their order
        last = {(of["track"], of["iteration"] == 0): {"model": m, **of} for m, of in models}
        shown = {of["model"]: of for of in last.values()}
        files[picture] = standalone(accuracy_by_turn(shown))
    for path, content in files.items():
        try:
            Path(path).write_text(content)
        except OSError as error:
            raise StoreError(f"{path}: cannot be written: {error.strerror}") from error


def _refuse_other_problems(records: Sequence[RunRecord], runs: Sequence[Results]) -> None:
    first, *others = (
        [next(iter(result.values.values())).problem_ids for result in results.values()]
        for results in runs
    )
    for record, measured in zip(records[1:], others, strict=True):
        if measured != first:
            raise DataError(
                f"{record.folder.uri}: was measured on other problems than "
                f"{records[0].folder.uri}: the task's data is not what it was"
            )


def _results(record: RunRecord) -> dict[str, EvalResult]:
    evaluations = of_kind(Evaluate, stages_of(record.config))
    # After a loss an evaluation is done again, while the journal still has the report.
    if not {LAST_STAGE, *(spec.key for spec in evaluations)} <= record.stages.keys():
        raise StoreError(f"{record.folder.uri}: an unfinished run; go on with --resume first")
    store, protocol = TrajectoryStore(record.folder / "trajectories"), record.config.evaluation
    return {
        spec.model: evaluate(
            store.read(spec.place, record.stages[spec.key]["parts_sha256"]),
            turns=protocol.turns,
            parallel=protocol.parallel,
            bootstrap=protocol.bootstrap,
            seed=record.config.seed,
        )
        for spec in evaluations
    }


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _limits(seeds: int) -> str:
    if seeds == 1:
        return "The intervals resample problems alone: one seed says nothing about the next."
    return (
        "The intervals of all seeds resample seeds and problems, each seed's its problems alone. "
        f"{seeds} seeds show whether an effect comes again when everything random is drawn anew; "
        "they do not show how widely it varies, and the intervals are too narrow for that. "
        f"Without any effect {seeds} seeds agree in sign one time in {2 ** (seeds - 1)}."
    )
