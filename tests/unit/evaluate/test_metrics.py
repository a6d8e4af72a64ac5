"""RISE's metrics against tables worked by hand, and laws that hold for any run."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rise_ray.evaluate.intervals import Interval
from rise_ray.evaluate.metrics import EvalResult, eval_record, evaluate
from rise_ray.mdp import Place, StopReason, Trajectory
from tests.unit.evaluate.builders import trajectory


def run(trajectories: list[Trajectory], turns: int = 3, parallel: int = 3) -> EvalResult:
    return evaluate(trajectories, turns=turns, parallel=parallel, bootstrap=200, seed=0)


def value(result: EvalResult, name: str) -> float | None:
    return result.metrics[name].value


# Four problems, three turns, three parallel answers; 7 is right.
FOUR = [
    trajectory("5 7 7", "5 7 7", problem="a", tokens=10),  # fixed at turn 2, kept
    trajectory("7 7 5", "5 5 7", problem="b", tokens=20),  # right twice, then lost
    trajectory("5 5 6", "5 6 8", problem="c", tokens=10),  # never right
    trajectory("? ~7 7", "7 7 7", problem="d", tokens=20),  # unreadable, then right
]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("m1@t1", 1 / 4),  # b
        ("m2@t1", 1 / 4),  # d alone: ties at a (5), b (5 5), c (5)
        ("m3@t1", 2 / 4),  # a, d
        ("m1@t2", 2 / 4),  # b, d; a ties and 5 came first
        ("m1@t3", 3 / 4),  # a, b, d
        ("p1@t3", 3 / 4),
        ("pass@3", 3 / 4),
        ("acc@t1", 1 / 4),
        ("acc@t2", 3 / 4),
        ("acc@t3", 2 / 4),
        ("delta(t1,t3)", 1 / 4),
        ("i->c", 2 / 4),  # a, d
        ("c->i", 1 / 4),  # b
        ("fix_rate", 2 / 4),  # wrong before a turn: a1, c1, c2, d1; fixed: a1, d1
        ("keep_rate", 3 / 4),  # right before a turn: a2, b1, b2, d2; lost: b2
        ("fix_rate(t1,t3)", 2 / 3),
        ("keep_rate(t1,t3)", 0 / 1),
        ("changed", 3 / 7),  # a1-2, b2-3, c2-3 of 7 readable pairs
        ("repeats_wrong", 1 / 3),  # wrong and readable before a turn: a1, c1, c2; again: c1
        ("unique", 7 / 11),  # a 2/3, b 2/3, c 2/3, d 1/2
        ("unparseable", 1 / 12),
        ("truncated", 1 / 12),
        ("tokens@t1", 15),
        ("tokens@t3", 45),
        ("tokens_parallel", 45),
    ],
)
def test_metrics_equal_the_table_worked_by_hand(name: str, expected: float) -> None:
    assert value(run(FOUR), name) == pytest.approx(expected)


def test_the_table_above_names_every_kind_of_metric() -> None:
    assert set(run(FOUR).metrics) == {
        *("m1@t1", "m1@t2", "m1@t3", "m2@t1", "m3@t1", "p1@t3", "pass@3"),
        *("acc@t1", "acc@t2", "acc@t3", "delta(t1,t3)", "i->c", "c->i", "fix_rate", "keep_rate"),
        *("fix_rate(t1,t3)", "keep_rate(t1,t3)", "changed", "repeats_wrong", "unique"),
        *("false_claims", "unparseable", "truncated"),
        *("tokens@t1", "tokens@t2", "tokens@t3", "tokens_parallel"),
    }


def test_a_false_claim_is_a_wrong_answer_that_calls_itself_right() -> None:
    said = [
        trajectory("5+ 5- 7+", "7 7 7", problem="a"),
        trajectory("5+ ? 6", "7 7 7", problem="b"),  # unreadable, and one that says nothing
    ]
    assert value(run(said), "false_claims") == pytest.approx(2 / 3)
    assert value(run(FOUR), "false_claims") is None


def test_samples_of_a_problem_are_averaged_before_problems_are() -> None:
    runs = [
        trajectory("7 7 7", "7 7 7", problem="a", sample=0),
        trajectory("5 5 5", "5 5 5", problem="a", sample=1),
        trajectory("7 7 7", "7 7 7", problem="b", sample=0),
        trajectory("! 7 7", "7 7 7", problem="b", sample=1),
    ]
    result = run(runs)
    assert result.n == 2
    assert result.samples == 2
    assert value(result, "m1@t1") == pytest.approx((1 / 2 + 1) / 2)


def test_a_failed_check_leaves_its_run_out_and_is_counted_not_called_wrong() -> None:
    result = run(
        [
            trajectory("7 7 7", "7 7 7", problem="a"),
            trajectory("7 ! 7", "5 5 5", problem="b"),
            trajectory("7 7 7", "5 ! 5", problem="c"),
        ]
    )
    assert value(result, "acc@t3") == 1.0
    assert value(result, "m3@t1") == 0.5
    assert result.counts["excluded_sequential"] == 1
    assert result.counts["excluded_parallel"] == 1
    assert result.counts["errors"] == {"verdict: deadline of 5 s": 2}


def test_a_failed_episode_is_left_out_of_everything_and_counted_by_reason() -> None:
    failed = trajectory(
        "5", "5", problem="b", stop_reason=StopReason.ERROR, error="engine died\nTraceback ..."
    )
    result = run([trajectory("7 7 7", "7 7 7", problem="a"), failed])
    assert value(result, "m1@t1") == 1.0
    assert value(result, "pass@3") == 1.0
    assert result.n == 2
    assert result.counts["errors"] == {"episode: engine died": 1}


def test_turns_lost_to_context_overflow_are_wrong_and_counted() -> None:
    overflowed = trajectory("5 7", "7 7 7", stop_reason=StopReason.CONTEXT_OVERFLOW)
    result = run([overflowed])
    assert [value(result, f"acc@t{turn}") for turn in (1, 2, 3)] == [0, 1, 0]
    assert value(result, "keep_rate") == 0.0  # right at turn 2, no answer at turn 3
    assert value(result, "p1@t3") == 1.0
    assert value(result, "tokens@t3") == 20
    assert result.counts["context_overflow"] == 1


def test_a_prompt_that_overflows_is_wrong_everywhere() -> None:
    result = run([trajectory("", "", stop_reason=StopReason.CONTEXT_OVERFLOW)])
    assert value(result, "m1@t1") == 0.0
    assert value(result, "pass@3") == 0.0
    assert value(result, "unparseable") is None


def test_a_rate_without_a_single_case_is_missing_and_not_zero() -> None:
    result = run([trajectory("7 7 7", "7 7 7")])
    assert result.metrics["fix_rate"] == Interval(None, None, None)
    assert value(result, "keep_rate") == 1.0


def test_one_turn_and_one_parallel_answer_have_no_transitions_and_no_votes() -> None:
    result = run([trajectory("7", "5")], turns=1, parallel=1)
    assert set(result.metrics) == {
        *("m1@t1", "p1@t1", "pass@1", "acc@t1", "false_claims", "unparseable", "truncated"),
        *("tokens@t1", "tokens_parallel"),
    }


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "no trajectories"),
        ([trajectory("7 7", "7 7 7")], "has 2 turns, not 3"),
        ([trajectory("7 7 7 7", "7 7 7")], "has 4 turns, not 3"),
        ([trajectory("7 7 7", "7 7")], "has 2 candidates, not 3"),
        ([trajectory("7", "7 7 7", stop_reason=StopReason.SUCCESS)], "never stops"),
        ([trajectory("7 7 7", "7 7 7")] * 2, "second trajectory"),
        ([trajectory("7 _ 7", "7 7 7")], "a `partial` response"),
        ([trajectory("7 7 7", "7 _ 7")], "a `partial` response"),
        (
            [dataclasses.replace(FOUR[0], place=Place("iteration", 1, "collect"))],
            "not an evaluation's",
        ),
    ],
)
def test_what_is_not_an_evaluation_is_refused(bad: list[Trajectory], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(bad)


def test_the_controls_evaluation_is_measured_alike() -> None:
    control = [dataclasses.replace(t, place=Place("other", 1, "eval")) for t in FOUR]
    assert run(control).metrics == run(FOUR).metrics


def test_the_record_is_json_with_exactly_the_documented_keys() -> None:
    result = run(FOUR)
    record = eval_record(
        "iteration-1", "test", result, feedback="neutral", window=None, sampling={"temperature": 1}
    )
    assert list(record) == [
        *("phase", "model", "split", "n", "feedback", "window", "sampling", "samples"),
        *("metrics", "counts"),
    ]
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert set(record["metrics"]["m1@t1"]) == {"value", "low", "high"}
    assert record["counts"]["trajectories"] == 4


answers = st.lists(st.sampled_from(["5", "6", "7", "?", "~7", "~?"]), min_size=3, max_size=3)


@st.composite
def evaluations(draw: st.DrawFn) -> list[Trajectory]:
    return [
        trajectory(" ".join(draw(answers)), " ".join(draw(answers)), problem=f"p{i}", sample=sample)
        for i in range(draw(st.integers(1, 5)))
        for sample in range(2)
    ]


@given(evaluations())
@settings(max_examples=60, deadline=None)
def test_laws_that_hold_for_any_evaluation(runs: list[Trajectory]) -> None:
    result = run(runs)
    v = {name: interval.value for name, interval in result.metrics.items()}
    assert all(v["p1@t3"] >= v[f"acc@t{turn}"] - 1e-12 for turn in (1, 2, 3))
    assert v["p1@t3"] >= v["m1@t3"] - 1e-12
    assert v["pass@3"] >= v["m3@t1"] - 1e-12
    assert v["m1@t1"] == pytest.approx(v["acc@t1"])
    assert v["delta(t1,t3)"] == pytest.approx(v["acc@t3"] - v["acc@t1"])
    assert v["delta(t1,t3)"] == pytest.approx(v["i->c"] - v["c->i"])
    for interval in result.metrics.values():
        if interval.value is not None:
            assert interval.low <= interval.value <= interval.high


@given(evaluations(), st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_the_order_of_trajectories_changes_nothing(
    runs: list[Trajectory], rng: random.Random
) -> None:
    shuffled = rng.sample(runs, len(runs))
    assert run(shuffled).metrics == run(runs).metrics
