"""What P(right) is worth: rankings, calibration, choosing and stopping by it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rise_ray.evaluate.compare import standard_comparisons
from rise_ray.evaluate.confidence import calibration_error_of
from rise_ray.evaluate.metrics import EvalResult, evaluate
from rise_ray.evaluate.ranking import Item
from rise_ray.evaluate.seeds import seed_comparisons, seed_metrics
from rise_ray.mdp import StopReason, Trajectory
from tests.unit.evaluate.builders import sure, trajectory


def asked(
    answers: str,
    sureness: list[float],
    parallel: str = "5 5",
    parallel_sureness: tuple[float, ...] = (0.5, 0.5),
    *,
    problem: str = "p0",
    logprob: float = -1.0,
    stop_reason: StopReason = StopReason.MAX_TURNS,
) -> Trajectory:
    run = trajectory(answers, parallel, problem=problem, stop_reason=stop_reason)
    turns = [
        replace(
            turn,
            attempt=sure(turn.attempt, p, logprob),
            candidates=tuple(
                sure(*one) for one in zip(turn.candidates, parallel_sureness, strict=False)
            ),
        )
        for turn, p in zip(run.turns, sureness, strict=True)
    ]
    return replace(run, turns=tuple(turns))


def result(*runs: Trajectory, turns: int = 2) -> EvalResult:
    return evaluate(runs, turns=turns, parallel=2, bootstrap=100, seed=0)


def value(found: EvalResult, name: str) -> float | None:
    return found.metrics[name].value


def ranked(*scored: tuple[str, float, float]) -> EvalResult:
    """First answers with their P(right) and log-probability, a problem each."""
    return result(
        *(
            asked(f"{answer} 5", [p, 0.5], problem=f"p{n}", logprob=logprob)
            for n, (answer, p, logprob) in enumerate(scored)
        )
    )


def test_first_answers_are_ranked_by_what_is_said_of_them_and_by_their_likelihood() -> None:
    found = ranked(("7+", 0.9, -9.0), ("5+", 0.6, -1.0), ("5-", 0.2, -2.0), ("7-", 0.8, -8.0))
    assert value(found, "ap(sure)") == 1.0
    assert value(found, "ap(likelihood)") == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert value(found, "ap(claim)") == pytest.approx(1 / 2)
    # 0.9 + e^-0.9, 0.6 + e^-0.1, 0.2 + e^-0.2, 0.8 + e^-0.8: the second, the first, the last.
    assert value(found, "ap(both)") == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_an_answer_that_says_nothing_of_itself_is_between_those_that_say_something() -> None:
    found = ranked(("7", 0.9, -1.0), ("5+", 0.6, -1.0), ("5-", 0.6, -1.0), ("7-", 0.6, -1.0))
    assert value(found, "ap(claim)") == 1 / 2
    assert "ap(claim)" not in ranked(("7", 0.9, -1.0), ("5", 0.6, -1.0)).metrics


def test_without_a_question_there_are_no_such_metrics() -> None:
    found = result(trajectory("7 5", "5 5"))
    assert not {"ap(sure)", "ece", "answered", "best2@t1(sure)"} & found.metrics.keys()


def test_it_answers_only_when_it_is_sure() -> None:
    found = ranked(("7", 0.9, -1), ("5", 0.6, -1), ("7", 0.5, -1), ("5", 0.1, -1))
    assert value(found, "answered") == 0.5
    assert value(found, "acc(answered)") == 0.5


@pytest.mark.parametrize(
    ("answers", "sureness", "right", "tokens"),
    [
        ("5 7 5", [0.4, 0.6, 0.9], 1.0, 20),  # stops at the second turn
        ("5 7 7", [0.7, 0.9, 0.9], 0.0, 10),  # sure too early
        ("5 5 7", [0.1, 0.2, 0.3], 1.0, 30),  # never sure: the last
    ],
)
def test_it_stops_as_soon_as_it_is_sure(
    answers: str, sureness: list[float], right: float, tokens: float
) -> None:
    found = result(asked(answers, sureness), turns=3)
    assert value(found, "stop@t3(sure)") == right
    assert value(found, "tokens_stopped@t3") == tokens
    assert value(found, "stop@t1(sure)") == value(found, "m1@t1")


def test_the_surest_of_the_parallel_answers_is_chosen_the_first_of_equals() -> None:
    for parallel, p, right in (
        ("5 7", (0.2, 0.3), 1.0),
        ("7 5", (0.4, 0.4), 1.0),
        ("7 5", (0.1, 0.4), 0.0),
    ):
        found = result(asked("5 5", [0.5, 0.5], parallel, p))
        assert value(found, "best2@t1(sure)") == right


def test_a_run_that_overflowed_gave_no_answer_and_is_not_ranked() -> None:
    overflowed = asked("", [], problem="p1", stop_reason=StopReason.CONTEXT_OVERFLOW)
    found = result(asked("7 7", [0.9, 0.9]), overflowed)
    assert value(found, "ap(sure)") == 1.0
    assert value(found, "answered") == 0.5
    assert value(found, "stop@t2(sure)") == 0.5
    assert value(found, "best2@t1(sure)") == 0.0


def test_a_failed_check_is_ranked_nowhere() -> None:
    found = result(asked("7 7", [0.9, 0.9]), asked("! 7", [0.99, 0.9], problem="p1"))
    assert value(found, "ap(sure)") == 1.0


def test_calibration_error_worked_by_hand() -> None:
    items = [Item("a", 0.95, True), Item("b", 0.91, False), Item("c", 0.15, False)]
    statistic = calibration_error_of([*items, Item("c", 1.0, True)], ("a", "b", "c"))
    # Bins: 0.9-1 with gaps 0.05, -0.91 and 0; 0.1-0.2 with -0.15.
    assert statistic.value == pytest.approx((0.86 + 0.15) / 4)
    weights = np.array([2.0, 0.0, 1.0])
    assert statistic.of(weights) == pytest.approx((0.10 + 0.15) / 4)
    assert statistic.of(np.zeros(3)) is None


def test_it_is_compared_with_other_rankings_and_with_a_controls_best() -> None:
    good = ranked(("7+", 0.9, -9.0), ("5+", 0.6, -1.0), ("7-", 0.8, -8.0))
    poor = ranked(("7+", 0.1, -1.0), ("5+", 0.6, -9.0), ("7-", 0.2, -2.0))
    results = {"base": good, "iteration-1": good, "vanilla-1": poor}
    own = ["base", "iteration-1"]
    found = standard_comparisons(results, own, bootstrap=100, seed=0)
    figures = [
        (one["left"]["metric"], one["right"]["model"], one["right"]["metric"]) for one in found
    ]
    assert figures[:4] == [
        ("ap(sure)", "iteration-1", "ap(likelihood)"),
        ("ap(sure)", "iteration-1", "ap(claim)"),
        ("ap(sure)", "vanilla-1", "ap(likelihood)"),
        ("best2@t1(sure)", "iteration-1", "m2@t1"),
    ]
    assert found[0]["n"] == 3
    assert found[0]["value"] == pytest.approx(1 - (1 / 2 + 2 / 3) / 2)
    runs = [results, results]
    over_seeds = seed_comparisons(runs, own, bootstrap=100, seed=0)
    assert [one["value"] for one in over_seeds] == pytest.approx([one["value"] for one in found])
    assert seed_metrics(runs, bootstrap=100, seed=0)["vanilla-1"]["ap(sure)"].value == value(
        poor, "ap(sure)"
    )
