"""metrics.jsonl is read by stage: order of models, later records win, sums do not double."""

from __future__ import annotations

from typing import Any

import pytest

from rise_ray.report.records import (
    Training,
    counts,
    eval_records,
    last_model,
    losses,
    protocol,
    seconds,
    trainings,
)


def evaluation(model: str, value: float = 0.5) -> dict[str, Any]:
    metric = {"value": value, "low": value, "high": value}
    return {"phase": "eval", "model": model, "metrics": {"acc@t5": metric, "pass@3": metric}}


def test_models_are_in_the_order_of_the_run() -> None:
    models = ["control", "iteration-10", "iteration-2", "base"]
    found = eval_records(evaluation(model) for model in models)
    assert list(found) == ["base", "iteration-2", "iteration-10", "control"]
    assert last_model(found) == "iteration-10"


def test_a_model_evaluated_again_counts_once_with_the_later_record() -> None:
    found = eval_records([evaluation("base", 0.1), evaluation("base", 0.2)])
    assert found["base"]["metrics"]["acc@t5"]["value"] == 0.2


def test_turns_and_answers_are_read_from_the_metrics() -> None:
    assert protocol(evaluation("base")) == (5, 3)
    with pytest.raises(ValueError, match="no metric"):
        protocol({"model": "base", "metrics": {}})


def test_a_control_alone_has_no_last_model() -> None:
    with pytest.raises(ValueError, match="neither"):
        last_model(eval_records([evaluation("control")]))


def test_losses_are_by_stage_and_step_with_gaps_where_there_was_no_number() -> None:
    records = [
        {"phase": "train", "stage": "warm-start", "step": 2, "loss": 2.0},
        {"phase": "train", "stage": "warm-start", "step": 1, "loss": 3.0},
        {"phase": "train", "stage": "warm-start", "step": 2, "loss": 1.5},
        {"phase": "train", "stage": "iteration-1", "step": 1, "loss": None},
        {"phase": "train", "stage": "iteration-1", "seconds": 3.0},
        {"phase": "train_boost", "stage": "iteration-1", "step": 1, "loss": 4.0},
    ]
    assert losses(records) == {
        "warm-start": [(1, 3.0), (2, 1.5)],
        "iteration-1/train_boost": [(1, 4.0)],
    }


def test_counts_and_time_are_summed_by_stage_and_evaluation_is_not_data() -> None:
    records = [
        {"phase": "collect", "stage": "iteration-1", "trajectories": 5, "seconds": 2.0},
        {"phase": "relabel", "stage": "iteration-1", "examples": 7, "seconds": 1.0},
        {"phase": "eval", "stage": "base", "trajectories": 9, "seconds": 4.0},
    ]
    assert counts(records) == (
        ["trajectories", "examples"],
        {"iteration-1": {"trajectories": 5, "examples": 7}},
    )
    assert seconds(records) == (
        ["collect", "relabel", "eval"],
        {"iteration-1": {"collect": 2.0, "relabel": 1.0}, "base": {"eval": 4.0}},
    )


def test_tracks_that_took_turns_are_told_one_after_the_other() -> None:
    stages = ["base", "warm-start", "iteration-2", "chats-1", "iteration-10", "chats-2", "b-1"]
    records = [{"phase": "collect", "stage": stage, "seconds": 1.0} for stage in stages]
    assert list(seconds(records)[1]) == [
        *("warm-start", "base", "iteration-2", "iteration-10"),
        *("b-1", "chats-1", "chats-2"),
    ]


def test_a_training_is_told_with_its_data_and_what_was_sampled_for_it() -> None:
    done = {"tokens": 900, "loss_tokens": 300, "last_loss": 0.5, "seconds": 9.0}
    records = [
        {"phase": "train", "stage": "warm-start", **done, "examples": 40},
        {"phase": "collect", "stage": "rejection_sampling-1", "tokens": 700},
        {"phase": "ask_again", "stage": "rejection_sampling-1", "tokens": 50},
        {"phase": "relabel", "stage": "rejection_sampling-1", "examples": 7, "data_tokens": 200},
        {"phase": "train", "stage": "rejection_sampling-1", "step": 3, "loss": 0.4, "tokens": 5},
        {"phase": "train", "stage": "rejection_sampling-1", **done},
        {"phase": "eval", "model": "rejection_sampling-1", "stage": "x", "tokens": 99},
        {"phase": "collect", "stage": "iteration-2", "tokens": 1},
        {"phase": "relabel_boost", "stage": "iteration-2", "examples": 3, "data_tokens": 90},
        {"phase": "relabel", "stage": "iteration-2", "examples": 9, "data_tokens": 800},
        {"phase": "train_boost", "stage": "iteration-2", **done},
        {"phase": "train", "stage": "iteration-2", "step": 1, "loss": 0.4},
    ]
    found = trainings(records)
    assert found == {
        "warm-start": Training(None, 40, None, 900, 300, 0.5),
        "iteration-2/train_boost": Training(None, 3, 90, 900, 300, 0.5),
        "rejection_sampling-1": Training(750, 7, 200, 900, 300, 0.5),
    }
    assert found["rejection_sampling-1"].epochs == 4.5
    assert found["warm-start"].epochs is None
