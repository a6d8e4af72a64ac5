"""What an endpoint replies becomes an answer that every later step can take."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rise_ray.config import OpenAITeacher as OpenAITeacherConfig
from rise_ray.mdp import FinishReason
from rise_ray.rollout.teacher import Answer, OpenAITeacher, Spending


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
