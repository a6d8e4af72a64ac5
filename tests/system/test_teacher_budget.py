"""An endpoint's token budget is one of the whole run: over iterations, and over a resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rise_ray.config.loading import load_config
from rise_ray.config.settings import RunConfig
from rise_ray.errors import TeacherError
from rise_ray.report.console import Console
from rise_ray.run.journal import Run
from rise_ray.run.plans import of_kind
from rise_ray.run.specs import BASE, Roll
from rise_ray.run.stages import Stages
from tests.system.feedback.fake_endpoint import USAGE, FakeEndpoint, serving
from tests.system.miniature import JOB, SETTINGS

KEY_ENV = "RISE_RAY_TEST_KEY"
PROBLEMS = 4
COST = PROBLEMS * USAGE["total_tokens"]  # of an iteration of single-turn episodes
BUDGET = 2 * COST + COST // 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_budget_counts_what_the_whole_run_spent_and_may_be_raised_for_a_resume(
    ray_runtime: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_ENV, "not-a-key")
    with serving(FakeEndpoint(lambda messages: r"\boxed{ 1 + 1 }")) as endpoint:
        config = _config(tmp_path, endpoint.base_url)
        with Stages(Run(config, resume=False), Console()) as stages:
            for roll in rolls(stages)[:2]:
                stages.do(roll)
        with Stages(Run(config, resume=True), Console()) as stages:
            for iteration in (1, 2):
                assert stages.run.stages[f"iteration-{iteration}/collect"]["teacher_tokens"] == COST
            with pytest.raises(TeacherError, match=rf"is spent \({BUDGET}\); raise it and resume"):
                stages.do(rolls(stages)[2])
        assert len(endpoint.requests) == 2 * PROBLEMS + PROBLEMS // 2
        more = _config(tmp_path, endpoint.base_url, f"recipe.teacher.token_budget={BUDGET + COST}")
        with Stages(Run(more, resume=True), Console()) as stages:
            stages.do(rolls(stages)[2])
            assert stages.run.teacher_tokens == len(endpoint.requests) * USAGE["total_tokens"]


def rolls(stages: Stages) -> list[Roll]:
    """Those of the run, with the base's weights: nothing is trained here."""
    return [replace(roll, weights=BASE) for roll in of_kind(Roll, stages.stages)]


def _config(folder: Path, base_url: str, *overrides: str) -> RunConfig:
    return load_config(
        str(JOB),
        [
            *SETTINGS,
            f"storage={folder}",
            "iterations=3",
            f"problems={PROBLEMS}",
            "recipe={name: rise, turns: 1}",
            "recipe.teacher.kind=openai",
            "recipe.teacher.model=fake-model",
            f"recipe.teacher.base_url={base_url}",
            f"recipe.teacher.api_key_env={KEY_ENV}",
            f"recipe.teacher.token_budget={BUDGET}",
            "recipe.teacher.concurrency=1",
            *overrides,
        ],
    )
