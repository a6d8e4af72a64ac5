"""Teachers without their endpoint or pool: what their replies become, and how errors count."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from rise_ray.config.teacher import ModelTeacher as ModelTeacherConfig
from rise_ray.config.teacher import OpenAITeacher as OpenAITeacherConfig
from rise_ray.feedback.teacher import Answer, ModelTeacher, OpenAITeacher, Spending
from rise_ray.mdp import FinishReason, Trajectory
from rise_ray.rollout.episode import EpisodeSpec, failed_trajectory
from tests.unit.rollout.episodes import rolled, spec


def read(content: str | None, monkeypatch: pytest.MonkeyPatch) -> Answer:
    monkeypatch.setenv("RISE_RAY_TEST_KEY", "not-a-key")
    config = OpenAITeacherConfig(kind="openai", model="m", api_key_env="RISE_RAY_TEST_KEY")
    teacher = OpenAITeacher(None, config, 0, Spending(0, lambda tokens: None))  # type: ignore[arg-type]
    choice = SimpleNamespace(finish_reason="length", message=SimpleNamespace(content=content))
    reply = SimpleNamespace(usage=SimpleNamespace(total_tokens=10), choices=[choice])
    return teacher._read(reply, SimpleNamespace(id="t"), 0, seed=5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("plain \U0001f600", "plain \U0001f600"),
        ("half an emoji \ud83d", r"half an emoji \ud83d"),
        (None, ""),
    ],
)
def test_the_text_of_an_answer_can_be_encoded(
    content: str | None, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = read(content, monkeypatch)
    assert answer == Answer(text, FinishReason.LENGTH, 5)


class LosingPool:
    """A pool that loses every episode; it notes what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int]] = []

    def roll(self, specs: Sequence[EpisodeSpec], total: int, errors: int) -> list[Trajectory]:
        self.asked.append((len(specs), total, errors))
        return [failed_trajectory(spec, "lost") for spec in specs]


def test_a_model_teachers_share_of_errors_is_of_all_its_states() -> None:
    pool = LosingPool()
    student = SimpleNamespace(messages=lambda *_: (), with_answers=lambda rolled, answers: rolled)
    config = ModelTeacherConfig(kind="model", path="m")
    teacher = ModelTeacher(student, pool, config, 0)  # type: ignore[arg-type]
    trajectories = [rolled(spec(sample), ["it is 7"]) for sample in range(66)]
    assert list(teacher.improve(trajectories)) == trajectories
    assert pool.asked == [(64, 64, 0), (2, 66, 64)]
