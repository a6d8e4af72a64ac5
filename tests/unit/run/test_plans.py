"""What each phase rolls, from the config alone."""

from __future__ import annotations

from typing import Any

import pytest

from rise_ray.config.loading import parse_config
from rise_ray.config.settings import RunConfig
from rise_ray.errors import ConfigError
from rise_ray.mdp import Place, Problem
from rise_ray.run.plans import (
    collect_plan,
    control_plan,
    eval_plan,
    evaluated_models,
    iteration_problems,
    phase_of,
    rollout_phases,
    stage_name,
)

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


def test_the_base_every_iteration_and_the_control_are_evaluated() -> None:
    assert evaluated_models(_config("iterations=2")) == {
        "base": Place("iteration", 0, "eval"),
        "iteration-1": Place("iteration", 1, "eval"),
        "iteration-2": Place("iteration", 2, "eval"),
    }
    controlled = evaluated_models(_config("iterations=2", "control.enabled=true"))
    assert controlled["control"] == Place("rejection_sampling", 2, "eval")
    assert list(evaluated_models(_config("iterations=0", "control.enabled=true"))) == ["base"]


def test_stages_of_the_control_have_their_own_names() -> None:
    assert (stage_name(Phase.COLLECT, 2), stage_name(Phase.CONTROL, 2)) == (
        "iteration-2",
        "control-2",
    )


def test_collecting_is_rises_protocol() -> None:
    overrides = ["rollout.turns=4", "rollout.window=2", "rollout.candidates=8"]
    plan = collect_plan(_config(*overrides, "rollout.stop_on_success=false"), 3)
    assert (plan.iteration, plan.phase, plan.turns, plan.window) == (
        Place("iteration", 3, "collect"),
        4,
        2,
    )
    assert (plan.candidates, plan.first_state_only, plan.stop_on_success) == (8, False, False)
    distill = ["relabel.strategy=distill", "teacher={kind: reference}"]
    assert collect_plan(_config(*distill), 1).candidates == 0


def test_the_control_samples_as_many_independent_first_answers_as_it_is_given() -> None:
    plan = control_plan(_config(), 2, responses=12)
    assert 1 + plan.candidates == 12
    assert (plan.turns, plan.phase, plan.first_state_only) == (
        Place("rejection_sampling", 1, "collect"),
        True,
    )


def test_an_evaluation_is_never_stopped_by_a_right_answer() -> None:
    overrides: list[Any] = ["evaluation.turns=3", "evaluation.parallel=7", "evaluation.window=2"]
    sampling = "evaluation.sampling.temperature=0.7"
    plan = eval_plan(
        _config(*overrides, sampling, "rollout.stop_on_success=true"), Place("iteration", 1, "eval")
    )
    assert not plan.stop_on_success
    assert (plan.turns, plan.candidates, plan.window) == (3, 7, 2)
    assert plan.first_state_only
    assert plan.sampling.temperature == 0.7


def test_every_stage_that_rolls_has_the_phase_its_episodes_are_kept_in() -> None:
    assert rollout_phases(_config("iterations=1")) == {
        "iteration-1/collect": Place("iteration", 1, "collect"),
        "base/eval": Place("iteration", 0, "eval"),
        "iteration-1/eval": Place("iteration", 1, "eval"),
    }
    controlled = rollout_phases(_config("iterations=1", "control.enabled=true"))
    assert controlled["control-1/collect"] == Place("rejection_sampling", 1, "collect")
    assert controlled["control/eval"] == Place("rejection_sampling", 1, "eval")


def test_a_stages_name_leads_back_to_its_phase() -> None:
    for phase in (Phase.COLLECT, Phase.CONTROL):
        assert phase_of(stage_name(phase, 3)) is phase
