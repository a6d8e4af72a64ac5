"""Episodes driven by hand: a plan, a spec, and completions in the place of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from rise_ray.config.settings import SamplingConfig
from rise_ray.mdp import FinishReason, Message, Outcome, Place, Problem, Trajectory, Verdict
from rise_ray.rollout.chat import ChatFormat
from rise_ray.rollout.episode import Completion, Episode, EpisodePlan, EpisodeSpec, Request
from tests.unit.rollout.templates import chat_format, installed

PLAN = EpisodePlan(
    run="run",
    place=Place("iteration", 1, "collect"),
    seed=7,
    turns=3,
    window=None,
    stop_on_success=True,
    candidates=2,
    first_state_only=False,
    last_feedback=False,
    sampling=SamplingConfig(max_tokens=20),
    max_model_len=1000,
)
PROBLEM = Problem("p0", "test", "What is 3 + 4 ?", "7")


@cache
def chat() -> ChatFormat:
    return chat_format(installed("template_chatml"))


def spec(sample: int = 0, problem: Problem = PROBLEM, **changes: Any) -> EpisodeSpec:
    prompt = (Message("user", problem.question),)
    return EpisodeSpec(replace(PLAN, **changes), problem, sample, prompt, "Please try again .")


def completion(text: str) -> Completion:
    """A response as sampled; a `~` before it means truncated."""
    ids = chat().response_ids(text.removeprefix("~"))
    if text.startswith("~"):
        return Completion(ids[:-1], FinishReason.LENGTH)
    return Completion(ids, FinishReason.STOP)


def verdict(text: str) -> Verdict:
    if text == "crash":
        return Verdict(Outcome.ERROR, None, "the checker crashed")
    return Verdict(Outcome.CORRECT if text.endswith("7") else Outcome.INCORRECT, text, "compared")


def answer(episode: Episode, request: Request, *texts: str) -> list[Request]:
    """Complete and verify one request with these responses."""
    said = episode.completed(request, [completion(text) for text in texts])
    return episode.verified(request, [verdict(text) for text in said])


def rolled(spec: EpisodeSpec, attempts: Sequence[str], candidates: str = "no") -> Trajectory:
    """A whole episode with these attempts, and `candidates` for every candidate."""
    episode = Episode(spec, chat(), weight_version=0)
    said = iter(attempts)
    requests = episode.start()
    while requests:
        following = []
        for request in requests:
            texts = [candidates] * request.n if request.candidates else [next(said)]
            following += answer(episode, request, *texts)
        requests = following
    return episode.trajectory()
