"""Who answers better in the states that a model visited: settings of the teachers.

`rise_ray.feedback.teacher` has the teachers themselves.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rise_ray.config.base import Settings
from rise_ray.config.settings import SamplingConfig, WorkersConfig


class NoTeacher(Settings):
    """Self-distillation: the model samples its own candidates."""

    kind: Literal["none"] = "none"


class ReferenceTeacher(Settings):
    """Distillation from the data set's own worked solutions."""

    kind: Literal["reference"]


class OpenAITeacher(Settings):
    """Distillation from an OpenAI-compatible endpoint."""

    kind: Literal["openai"]
    model: str
    """The model's name at the endpoint."""
    base_url: str | None = None
    """The endpoint; null is OpenAI's own."""
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the key, named like a secret (`LLM_API_KEY`). The key
    itself is never configured."""
    temperature: float = Field(default=0.7, ge=0)
    """The paper's 0.7."""
    max_tokens: int = Field(default=512, ge=1)
    """Most new tokens of one answer."""
    concurrency: int = Field(default=16, ge=1)
    """Requests under way at once."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """Rate limit; null is none."""
    max_retries: int = Field(default=5, ge=0)
    """Of the `openai` client, with its exponential back-off."""
    deadline_s: float = Field(default=120.0, gt=0)
    """Longest silence of the endpoint in a request. One that drips may take twice as long."""
    token_budget: int = Field(default=10_000_000, ge=1)
    """Prompt and completion tokens of the whole run; the run stops when it is spent."""


class ModelTeacher(Settings):
    """Distillation from another model on a second pool."""

    kind: Literal["model"]
    path: str
    """A Hugging Face folder, hub name or URI."""
    max_model_len: int = Field(default=2048, ge=16)
    """Of the teacher's engine."""
    workers: WorkersConfig = WorkersConfig()
    """The second pool."""
    sampling: SamplingConfig = SamplingConfig(temperature=0.7)
    """The paper's 0.7."""


TeacherConfig = Annotated[
    NoTeacher | ReferenceTeacher | OpenAITeacher | ModelTeacher, Field(discriminator="kind")
]
