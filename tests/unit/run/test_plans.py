"""What each phase rolls, from the config alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rise_ray.config.loading import parse_config
from rise_ray.config.settings import RunConfig
from rise_ray.errors import ConfigError
from rise_ray.mdp import Place, Problem
from rise_ray.run.plans import (
    affordable_candidates,
    eval_plan,
    evaluated_models,
    evaluation_problems,
    iteration_problems,
    next_to_roll,
    of_kind,
    roll_plan,
    rolling,
    teacher_of,
)
from rise_ray.run.specs import BASE, Episodes, Report, Roll, Weights
from rise_ray.run.tracks import stages_of

PROBLEMS = [Problem(f"p{n}", "test", "q", "a") for n in range(10)]


def _config(*overrides: str) -> RunConfig:
    text = "{name: demo, task: {name: countdown}, model: {path: m}}"
    return parse_config(text, list(overrides), source="test")


def _ids(config: RunConfig, iteration: int, problems: list[Problem] = PROBLEMS) -> list[str]:
    return [problem.id for problem in iteration_problems(config, problems, iteration)]


def test_no_problem_comes_again_before_all_have_come() -> None:
    config = _config("problems=4")
    drawn = [problem for iteration in range(1, 6) for problem in _ids(config, iteration)]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == [p.id for p in PROBLEMS]
    assert all(len(set(_ids(config, iteration))) == 4 for iteration in range(1, 6))


def test_every_resume_draws_the_same_problems_and_another_seed_draws_others() -> None:
    assert _ids(_config("problems=4"), 2) == _ids(_config("problems=4"), 2)
    assert _ids(_config("problems=4"), 2) != _ids(_config("problems=4", "seed=1"), 2)


def test_without_a_number_every_iteration_has_all_problems() -> None:
    assert sorted(_ids(_config(), 3)) == [p.id for p in PROBLEMS]


def test_more_problems_than_there_are_is_an_error_of_the_config() -> None:
    with pytest.raises(ConfigError, match="`problems` = 11: split `train` has only 10"):
        _ids(_config("problems=11"), 1)


def test_every_run_is_measured_on_the_same_draw_of_the_problems() -> None:
    drawn = [p.id for p in evaluation_problems(_config("evaluation.problems=4"), PROBLEMS)]
    assert drawn != [p.id for p in PROBLEMS[:4]]
    other = _config("evaluation.problems=4", "seed=1", "name=other")
    assert [p.id for p in evaluation_problems(other, PROBLEMS)] == drawn
    assert evaluation_problems(_config(), PROBLEMS) == PROBLEMS


# As MATH is: sorted by subject.
SORTED = [Problem(f"{subject}-{n}", "t", "q", "a") for subject in "ABCDE" for n in range(100)]


def _measured(*overrides: str) -> list[str]:
    return [problem.id for problem in evaluation_problems(_config(*overrides), SORTED)]


def test_a_draw_of_a_sorted_split_has_every_subject() -> None:
    drawn = _measured("evaluation.problems=100")
    assert len(set(drawn)) == 100
    shares = [sum(name.startswith(subject) for name in drawn) for subject in "ABCDE"]
    assert all(10 <= share <= 30 for share in shares)


def test_a_larger_draw_holds_the_smaller_one_and_another_split_draws_others() -> None:
    drawn = _measured("evaluation.problems=50")
    assert _measured("evaluation.problems=200")[:50] == drawn
    assert set(_measured("evaluation.problems=50", "evaluation.split=dev")) != set(drawn)


@pytest.mark.parametrize("count", ["null", "500", "501"])
def test_all_problems_keep_their_order(count: str) -> None:
    assert _measured(f"evaluation.problems={count}") == [problem.id for problem in SORTED]


CONTROL = "controls=[{name: rejection_sampling}]"


def test_the_base_every_iteration_and_the_last_of_each_control_are_evaluated() -> None:
    models = {
        "base": Place("iteration", 0, "eval"),
        "iteration-1": Place("iteration", 1, "eval"),
        "iteration-2": Place("iteration", 2, "eval"),
    }
    assert evaluated_models(stages_of(_config("iterations=2"))) == models
    controlled = evaluated_models(stages_of(_config("iterations=2", CONTROL)))
    name = "rejection_sampling-2"
    assert controlled == {**models, name: Place("rejection_sampling", 2, "eval")}
    assert list(evaluated_models(stages_of(_config("iterations=0", CONTROL)))) == ["base"]


def _rolls(config: RunConfig) -> dict[str, Roll]:
    return {roll.key: roll for roll in of_kind(Roll, stages_of(config))}


def test_collecting_is_rises_protocol() -> None:
    rise = "recipe={name: rise, turns: 4, window: 2, candidates: 8, stop_on_success: false}"
    config = _config(rise, "iterations=3")
    plan = roll_plan(config, _rolls(config)["iteration-3/collect"], 0)
    assert (plan.place, plan.seed) == (Place("iteration", 3, "collect"), config.seed)
    assert (plan.turns, plan.window, plan.candidates) == (4, 2, 8)
    assert (plan.first_state_only, plan.stop_on_success, plan.last_feedback) == (False,) * 3
    taught = _config("recipe={name: rise, teacher: {kind: reference}}")
    assert roll_plan(taught, _rolls(taught)["iteration-1/collect"], 0).candidates == 0
    teacher = teacher_of(stages_of(taught))
    assert teacher is not None
    assert teacher.kind == "reference"
    assert teacher_of(stages_of(config)) is None


def test_two_teachers_in_one_run_are_refused() -> None:
    other = "controls=[{name: rise, track: other, teacher: {kind: openai, model: m}}]"
    config = _config("recipe={name: rise, teacher: {kind: reference}}", other)
    with pytest.raises(ConfigError, match="one teacher"):
        teacher_of(stages_of(config))


def test_a_control_samples_as_many_independent_first_answers_as_its_budget_allows() -> None:
    config = _config(CONTROL)
    roll = _rolls(config)["rejection_sampling-2/collect"]
    assert roll.like == "iteration"
    plan = roll_plan(config, roll, 11)
    assert (plan.turns, plan.candidates, plan.first_state_only) == (1, 11, True)
    assert plan.seed != config.seed  # draws of its own
    own = _config("controls=[{name: rejection_sampling, samples: 5, layout: chat}]")
    plan = roll_plan(own, _rolls(own)["rejection_sampling-1/collect"], 11)
    assert (plan.candidates, plan.last_feedback) == (4, True)


def test_an_evaluation_is_never_stopped_by_a_right_answer() -> None:
    overrides: list[Any] = ["evaluation.turns=3", "evaluation.parallel=7", "evaluation.window=2"]
    overrides += ["evaluation.sampling.temperature=0.7", "recipe={name: rise}"]
    plan = eval_plan(_config(*overrides), Place("iteration", 1, "eval"))
    assert not plan.stop_on_success
    assert (plan.turns, plan.candidates, plan.window) == (3, 7, 2)
    assert plan.first_state_only
    assert plan.sampling.temperature == 0.7


def test_every_stage_that_rolls_has_its_place_and_the_weights_that_sample_there() -> None:
    rolled = rolling(stages_of(_config("iterations=2", CONTROL)))
    places = {spec.key: spec.place for spec in rolled}
    assert places["base/eval"] == Place("iteration", 0, "eval")
    assert places["iteration-2/collect"] == Place("iteration", 2, "collect")
    assert places["rejection_sampling-2/eval"] == Place("rejection_sampling", 2, "eval")
    weights = {spec.place: spec.weights for spec in rolled}
    assert weights[Place("iteration", 1, "collect")] == Weights("iteration", 0)
    assert weights[Place("rejection_sampling", 1, "collect")] == Weights("iteration", 0)
    assert weights[Place("rejection_sampling", 2, "collect")] == Weights("rejection_sampling", 1)


def _rolled_ahead(*overrides: str) -> dict[str, str]:
    stages = stages_of(_config("iterations=2", *overrides))
    following = {spec.key: next_to_roll(stages, spec) for spec in rolling(stages)}
    return {key: after.key for key, after in following.items() if after is not None}


def test_a_stage_is_begun_early_where_the_one_before_samples_from_the_same_weights() -> None:
    pairs = {"base/eval": "iteration-1/collect", "iteration-1/eval": "iteration-2/collect"}
    assert _rolled_ahead() == pairs
    # A control starts from the base again, and its budget is known only when the other's is spent.
    assert _rolled_ahead(CONTROL) == pairs
    assert _rolled_ahead("recipe={name: rise, teacher: {kind: reference}}") == {}
    place = Place("own", 1, "ask")
    first, again, open_ended = (
        Roll(replace(place, phase=phase), BASE, Episodes(candidates=candidates), like=None)
        for phase, candidates in (("ask", 1), ("again", 1), ("open", None))
    )
    assert next_to_roll([first, again, Report()], first) == again
    assert next_to_roll([first, open_ended, Report()], first) is None


def test_a_budget_is_spent_on_first_answers_and_none_is_made_up() -> None:
    roll = _rolls(_config(CONTROL))["rejection_sampling-1/collect"]
    counts = {"tokens": 1000, "trajectories": 10, "first_tokens": 300, "first_responses": 30}
    assert affordable_candidates(roll, [counts]) == 9  # 100 tokens a problem, 10 an answer
    assert affordable_candidates(roll, [counts | {"tokens": 1001}]) == 10
    for nothing in ([], [counts | {"first_tokens": 0, "first_responses": 0}]):
        with pytest.raises(ConfigError, match="track `iteration`, whose budget it has, sampled no"):
            affordable_candidates(roll, nothing)
