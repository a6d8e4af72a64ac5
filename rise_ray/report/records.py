"""Reads metrics.jsonl for the table and the page.

What is read of each record, by its `phase`:
- `eval`: written by `rise_ray.evaluate.metrics.eval_record`;
- `train` and `train_...`: `stage` (for example `iteration-1`), `step` and `loss`, one record per
  logged step; when it is done `tokens`, `loss_tokens` and `last_loss`;
- `relabel`, of whose rows `train` is, and `relabel_...`: `data_tokens`;
- a phase that rolls: `tokens`;
- any phase: `seconds` (its wall time) and the counts in `COUNTS`, summed per stage.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rise_ray.mdp import MAIN_TRACK

Record = Mapping[str, Any]
_T = TypeVar("_T")

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
    latest = {record["model"]: record for record in records if record["phase"] == "eval"}
    return {model: latest[model] for model in sorted(latest, key=_order)}


def last_model(evaluated: Mapping[str, Record]) -> str:
    """The last iteration, or the base if there is none. Raises ValueError if neither is there."""
    trained = [model for model in evaluated if _order(model)[0] < 3]
    if not trained:
        raise ValueError("neither the base nor an iteration was evaluated")
    return trained[-1]


def protocol(record: Record) -> tuple[int, int]:
    """Turns and parallel answers of an evaluation, from its metrics' names.

    Raises:
        ValueError: the record holds no such metrics.
    """
    return _largest(r"acc@t(\d+)", record), _largest(r"pass@(\d+)", record)


def _largest(pattern: str, record: Record) -> int:
    found = [int(m[1]) for m in (re.fullmatch(pattern, k) for k in record["metrics"]) if m]
    if not found:
        raise ValueError(f"the evaluation of {record['model']} has no metric {pattern}")
    return max(found)


def losses(records: Iterable[Record]) -> dict[str, list[tuple[int, float]]]:
    """(step, loss) of each training, by step; a step logged again counts once, the later.

    A training is named as in `trainings`.

    A loss that was not a number is null in metrics.jsonl and leaves a gap.
    """
    stages: dict[str, dict[int, float]] = defaultdict(dict)
    for record in records:
        if _is_training(record) and "step" in record and record["loss"] is not None:
            name = _name(record["stage"], record["phase"])
            stages[name][record["step"]] = record["loss"]
    return {stage: sorted(steps.items()) for stage, steps in _in_order(stages)}


@dataclass(frozen=True, slots=True)
class Training:
    """What one training of a track was made of; None where nothing says it."""

    sampled_tokens: int | None
    """By the track in the same iteration, in all phases that roll for training; None for a
    further training of the iteration, which is of the same."""
    examples: int | None
    data_tokens: int | None
    """Of one pass over the examples."""
    tokens: int
    loss_tokens: int
    last_loss: float | None
    """Mean of the last tenth of the steps; None where it was not a number."""

    @property
    def epochs(self) -> float | None:
        return self.tokens / self.data_tokens if self.data_tokens else None


def trainings(records: Iterable[Record]) -> dict[str, Training]:
    """Every finished training, track by track; later records count.

    Its name is that of its stage; a further one of an iteration has its phase after it.
    """
    stages: dict[str, dict[str, Record]] = defaultdict(dict)
    for record in records:
        if record["phase"] != "eval" and "step" not in record:
            stages[record["stage"]][record["phase"]] = record
    return {
        _name(stage, phase): _training(phases, phase)
        for stage, phases in _in_order(stages)
        for phase, record in phases.items()
        if _is_training(record) and "loss_tokens" in record
    }


def _is_training(record: Record) -> bool:
    return bool(record["phase"].split("_")[0] == "train")


def _name(stage: str, phase: str) -> str:
    return stage if phase == "train" else f"{stage}/{phase}"


def _training(phases: Mapping[str, Record], phase: str) -> Training:
    trained, relabeled = phases[phase], phases.get(phase.replace("train", "relabel", 1), {})
    rolled = [] if phase != "train" else [r for r in phases.values() if not _is_training(r)]
    sampled = [record["tokens"] for record in rolled if "tokens" in record]
    return Training(
        sampled_tokens=sum(sampled) if sampled else None,
        examples=relabeled.get("examples", trained.get("examples")),
        data_tokens=relabeled.get("data_tokens"),
        tokens=trained["tokens"],
        loss_tokens=trained["loss_tokens"],
        last_loss=trained["last_loss"],
    )


def seconds(records: Iterable[Record]) -> tuple[list[str], dict[str, dict[str, float]]]:
    """Wall time: the phases in order of appearance, and seconds by stage and phase."""
    phases: dict[str, None] = {}
    stages: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for record in records:
        if "seconds" in record:
            phases[record["phase"]] = None
            stages[record["stage"]][record["phase"]] += record["seconds"]
    return list(phases), dict(_in_order(stages))


def counts(records: Sequence[Record]) -> tuple[list[str], dict[str, dict[str, int]]]:
    """Data counts outside evaluation: the fields that occur, and their sums by stage."""
    stages: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for record, field in itertools.product(records, COUNTS):
        if record["phase"] != "eval" and field in record:
            stages[record["stage"]][field] += record[field]
    fields = [field for field in COUNTS if any(field in sums for sums in stages.values())]
    return fields, dict(_in_order(stages))


def _in_order(stages: Mapping[str, _T]) -> list[tuple[str, _T]]:
    return sorted(stages.items(), key=lambda item: _order(item[0]))


def _order(stage: str) -> tuple[int, str, int]:
    """Of a stage, or the model that it makes: a run may do those of two tracks by turns.

    The warm start, the base, the iterations, then the controls by name.
    """
    track, _, number = stage.partition("/")[0].rpartition("-")
    first = {"warm-start": 0, "base": 1, track: 2 if track == MAIN_TRACK else 3}
    return first.get(stage, first[track]), track, int(number) if number.isdecimal() else 0
