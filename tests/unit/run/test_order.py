"""Trainings go on beside what is rolled; no stage is done before what it is made of."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from rise_ray.config.loading import parse_config
from rise_ray.errors import RolloutError, TrainError
from rise_ray.run.order import do_with_trainings_beside, needs
from rise_ray.run.specs import Spec, Train
from rise_ray.run.tracks import Do, stages_of

WAIT_S = 20.0


def declared(*overrides: str) -> list[Spec]:
    text = "{name: demo, task: {name: countdown}, model: {path: m}, iterations: 2}"
    control = "controls=[{name: rejection_sampling, epochs: equal_tokens}]"
    return stages_of(parse_config(text, [control, *overrides], source="test"))


def of(key: str, *overrides: str) -> set[str]:
    stages = declared(*overrides)
    return needs(next(spec for spec in stages if spec.key == key), stages)


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        ("base/eval", set()),
        ("iteration-1/collect", set()),
        ("iteration-2/collect", {"iteration-1/train"}),
        ("iteration-2/relabel", {"iteration-1/collect", "iteration-2/collect"}),
        ("iteration-2/train", {"iteration-2/relabel"}),
        ("iteration-2/eval", {"iteration-2/train"}),
        ("rejection_sampling-1/collect", {"iteration-1/collect"}),
        (
            "rejection_sampling-2/collect",
            {"iteration-2/collect", "rejection_sampling-1/train"},
        ),
        ("rejection_sampling-2/train", {"rejection_sampling-2/relabel", "iteration-2/train"}),
    ],
)
def test_a_stage_needs_what_it_is_made_of_and_the_budget_that_it_has(
    key: str, wanted: set[str]
) -> None:
    assert of(key) == wanted


def test_what_starts_from_the_last_weights_or_from_a_warm_start_needs_them() -> None:
    assert of("iteration-2/train", "start_from=last") == {
        "iteration-2/relabel",
        "iteration-1/train",
    }
    warm = "warm_start={examples: 10}"
    assert of("base/eval", warm) == of("iteration-1/collect", warm) == {"warm-start/train"}
    assert of("iteration-1/train", warm) == {"iteration-1/relabel", "warm-start/train"}


def test_of_two_trainings_the_second_needs_the_first_and_a_budget_is_that_of_both() -> None:
    boost = "recipe.boost={}"
    assert of("iteration-2/relabel_boost", boost) == {"iteration-1/collect", "iteration-2/collect"}
    assert of("iteration-2/train_boost", boost) == {"iteration-2/relabel_boost"}
    assert of("iteration-2/train", boost) == {"iteration-2/relabel", "iteration-2/train_boost"}
    assert of("iteration-2/eval", boost) == {"iteration-2/train"}
    assert of("rejection_sampling-2/train", boost) == {
        *("rejection_sampling-2/relabel", "iteration-2/train_boost", "iteration-2/train")
    }


def test_the_report_needs_all() -> None:
    stages = declared()
    assert of("run/report") == {spec.key for spec in stages[:-1]}


class Doing:
    """Takes note of stages, each of which finds what it needs done."""

    def __init__(self, stages: list[Spec], while_training: Callable[[str], None]) -> None:
        self.stages = stages
        self.done: list[str] = []
        self.threads: set[str] = set()
        self._while_training = while_training

    def do(self, spec: Spec) -> None:
        assert needs(spec, self.stages) <= set(self.done)
        if isinstance(spec, Train):
            self.threads.add(threading.current_thread().name)
            self._while_training(spec.key)
        else:
            assert threading.current_thread() is threading.main_thread()
        self.done.append(spec.key)


def nothing() -> None:
    """Where nobody has to be told."""


def run(stages: list[Spec], do: Do) -> None:
    """To the end; nobody is told to stop."""

    def stop() -> None:
        raise AssertionError("told to stop")

    do_with_trainings_beside(stages, do, nothing, stop, stop)


def test_a_control_rolls_while_the_recipe_trains_and_the_other_way_round() -> None:
    stages = declared()
    beside = {
        "iteration-1/train": "rejection_sampling-1/relabel",
        "iteration-2/train": "rejection_sampling-2/collect",
    }

    def until_the_other_has(key: str) -> None:
        other = beside.get(key)
        waited = threading.Event()
        while other is not None and other not in doing.done:
            assert not waited.wait(0.01)
            assert threading.main_thread().is_alive()

    doing = Doing(stages, until_the_other_has)
    run(stages, doing.do)
    assert sorted(doing.done) == sorted(spec.key for spec in stages)
    assert len(doing.threads) == 1
    first = doing.done.index
    assert first("rejection_sampling-1/relabel") < first("iteration-1/train")


def test_the_recipe_s_own_stages_come_first_where_it_does_not_wait() -> None:
    stages = declared("controls=[]")
    doing = Doing(stages, lambda key: None)
    run(stages, doing.do)
    assert doing.done == [spec.key for spec in stages]


def test_workers_leave_room_before_a_training_is_waited_for() -> None:
    """It may wait for what they have taken."""
    room = threading.Event()

    def do(spec: Spec) -> None:
        if isinstance(spec, Train):
            assert room.wait(WAIT_S)
        room.clear()

    do_with_trainings_beside(declared("controls=[]"), do, room.set, nothing, nothing)


def test_a_training_that_fails_stops_what_is_rolled_and_is_what_is_told() -> None:
    stopped = threading.Event()
    told: list[str] = []

    def do(spec: Spec) -> None:
        if isinstance(spec, Train):
            raise TrainError("the loss is nan")
        if spec.key == "rejection_sampling-1/collect":
            assert stopped.wait(WAIT_S)
            raise RolloutError("the pool was stopped")

    def stop_rolling() -> None:
        told.append("rolling")
        stopped.set()

    with pytest.raises(TrainError, match="the loss is nan"):
        do_with_trainings_beside(
            declared(), do, nothing, lambda: told.append("training"), stop_rolling
        )
    assert told == ["rolling", "training"]


@pytest.mark.parametrize("error", [RolloutError("no worker"), KeyboardInterrupt("a signal")])
def test_what_ends_the_rolling_stops_the_training_and_those_behind_it(
    error: BaseException,
) -> None:
    stopped = threading.Event()
    trained: list[str] = []

    def do(spec: Spec) -> None:
        if isinstance(spec, Train):
            trained.append(spec.key)
            assert stopped.wait(WAIT_S)
            raise TrainError("the training was stopped")
        if spec.key == "rejection_sampling-1/relabel":
            raise error

    with pytest.raises(type(error), match=str(error)):
        do_with_trainings_beside(declared(), do, nothing, stopped.set, nothing)
    assert trained == ["iteration-1/train"]
