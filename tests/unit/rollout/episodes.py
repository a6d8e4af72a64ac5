"""Episodes driven by hand: a plan, a spec, and completions in the place of an engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from rise_ray.config.settings import SamplingConfig
from rise_ray.feedback.constant import Constant
from rise_ray.mdp import FinishReason, Message, Outcome, Place, Problem, Trajectory, Verdict
from rise_ray.rollout.chat import ChatFormat
from rise_ray.rollout.episode import Episode, EpisodePlan, EpisodeSpec, Start
from rise_ray.rollout.requests import Check, Completion, Request, Sample, ScoreLabels
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
NO_START = Start()
PROBLEM = Problem("p0", "test", "What is 3 + 4 ?", "7")


@cache
def chat() -> ChatFormat:
    return chat_format(installed("template_chatml"))


AGAIN = Constant("Please try again .")
LOGPROB = -0.25


def spec(
    sample: int = 0, problem: Problem = PROBLEM, start: Start = NO_START, **changes: Any
) -> EpisodeSpec:
    prompt = (Message("user", problem.question),)
    return EpisodeSpec(replace(PLAN, **changes), problem, sample, prompt, AGAIN, start)


def completion(text: str) -> Completion:
    """A response as sampled; a `~` before it means truncated."""
    ids = chat().response_ids(text.removeprefix("~"))
    if text.startswith("~"):
        return Completion(ids[:-1], FinishReason.LENGTH, LOGPROB)
    return Completion(ids, FinishReason.STOP, LOGPROB)


def verdict(text: str) -> Verdict:
    if text == "crash":
        return Verdict(Outcome.ERROR, None, "the checker crashed")
    return Verdict(Outcome.CORRECT if text.endswith("7") else Outcome.INCORRECT, text, "compared")


def answer(episode: Episode, request: Sample, *texts: str) -> list[Sample]:
    """Complete and check one request with these responses; what is to be sampled next."""
    following = episode.reply(request, [completion(text) for text in texts])
    (check,) = [r for r in following if isinstance(r, Check)]
    checked = episode.reply(check, [verdict(text) for text in check.texts])
    return samples([r for r in following if r is not check] + checked)


def samples(requests: Sequence[Request]) -> list[Sample]:
    """These requests, all of which are to sample."""
    found = [request for request in requests if isinstance(request, Sample)]
    assert len(found) == len(requests)
    return found


def rolled(spec: EpisodeSpec, attempts: Sequence[str], candidates: str = "no") -> Trajectory:
    """A whole episode with these attempts, and `candidates` for every candidate."""
    episode = Episode(spec, chat(), weight_version=0)
    said = iter(attempts)
    requests = deque(episode.start())
    while requests:
        match request := requests.popleft():
            case Sample():
                texts = [candidates] * request.n if request.candidates else [next(said)]
                reply: list[Any] = [completion(text) for text in texts]
            case Check():
                reply = [verdict(text) for text in request.texts]
            case ScoreLabels():
                reply = [-0.5] * len(request.labels)
        requests += episode.reply(request, reply)
    return episode.trajectory()
