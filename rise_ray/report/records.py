"""Reads metrics.jsonl for the table and the page.

What is read of each record, by its `phase`:
- `eval`: written by `rise_ray.evaluate.metrics.eval_record`;
- `train`: `stage` (for example `iteration-1`), `step` and `loss`, one record per logged step;
- any phase: `seconds` (its wall time) and the counts in `COUNTS`, summed per stage.
A record's stage is its `stage`, else its `model`, else `iteration-<iteration>`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

COUNTS = {
    "trajectories": "trajectories",
    "episode_errors": "failed episodes",
    "verdicts": "answers checked",
    "verdict_errors": "failed checks",
    "context_overflow": "context overflows",
    "examples": "training examples",
}
"""Count fields of a record and what they are called for people."""


def eval_records(records: Iterable[Record]) -> dict[str, Record]:
    """The evaluation of each model: base, iterations in order, then the controls by name.

    Where a model was evaluated again (a resumed run), the later record counts.
    """
    latest = {record["model"]: record for record in records if record.get("phase") == "eval"}
    return {model: latest[model] for model in sorted(latest, key=_model_order)}


def last_model(evaluated: Mapping[str, Record]) -> str:
    """The last iteration, or the base if there is none. Raises ValueError if neither is there."""
    trained = [model for model in evaluated if _model_order(model)[0] < 2]
    if not trained:
        raise ValueError("neither the base nor an iteration was evaluated")
    return trained[-1]


def protocol(record: Record) -> tuple[int, int]:
    """Turns and parallel answers of an evaluation, from its metrics' names.

    Raises:
        ValueError: the record holds no such metrics.
    """
    sizes = []
    for pattern in (r"acc@t(\d+)", r"pass@(\d+)"):
        found = [int(m[1]) for m in (re.fullmatch(pattern, k) for k in record["metrics"]) if m]
        if not found:
            raise ValueError(f"the evaluation of {record['model']} has no metric {pattern}")
        sizes.append(max(found))
    return sizes[0], sizes[1]


def losses(records: Iterable[Record]) -> dict[str, list[tuple[int, float]]]:
    """(step, loss) of each training stage, by step; a step logged again counts once, the later.

    A loss that was not a number is null in metrics.jsonl and leaves a gap.
    """
    stages: dict[str, dict[int, float]] = defaultdict(dict)
    for record in records:
        if record.get("phase") == "train" and "step" in record and record["loss"] is not None:
            stages[stage_of(record)][record["step"]] = record["loss"]
    return {stage: sorted(steps.items()) for stage, steps in stages.items()}


def seconds(records: Iterable[Record]) -> tuple[list[str], dict[str, dict[str, float]]]:
    """Wall time: the phases in order of appearance, and seconds by stage and phase."""
    phases: dict[str, None] = {}
    stages: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for record in records:
        if "seconds" in record:
            phases[record["phase"]] = None
            stages[stage_of(record)][record["phase"]] += record["seconds"]
    return list(phases), {stage: dict(spent) for stage, spent in stages.items()}


def counts(records: Sequence[Record]) -> tuple[list[str], dict[str, dict[str, int]]]:
    """Data counts outside evaluation: the fields that occur, and their sums by stage."""
    stages: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for record in records:
        if record.get("phase") == "eval":
            continue
        for field in COUNTS:
            if field in record:
                stages[stage_of(record)][field] += record[field]
    occurring = {field for sums in stages.values() for field in sums}
    fields = [field for field in COUNTS if field in occurring]
    return fields, {stage: dict(sums) for stage, sums in stages.items()}


def stage_of(record: Record) -> str:
    """What part of the run a record belongs to."""
    if "stage" in record:
        return str(record["stage"])
    if "model" in record:
        return str(record["model"])
    return f"iteration-{record['iteration']}" if "iteration" in record else "run"


def _model_order(model: str) -> tuple[int, int, str]:
    iteration = re.fullmatch(r"iteration-(\d+)", model)
    if model == "base":
        return 0, 0, model
    if iteration:
        return 1, int(iteration[1]), model
    return 2, 0, model
