"""One episode as a pure state machine: it says what to sample and what to check, and when it ends.

It owns no engine, actor or clock. `rise_ray.rollout.worker` feeds it completions and verdicts:

    requests = episode.start()
    checks = episode.completed(request, completions)     # responses to verify
    requests = episode.verified(request, verdicts)       # the next turn, or nothing
    if episode.done: episode.trajectory()

Candidates of a state never hold up the next turn: both are sampled side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rise_ray.config.settings import SamplingConfig
from rise_ray.mdp import (
    Attempt,
    FinishReason,
    Message,
    Outcome,
    Place,
    Problem,
    StopReason,
    Trajectory,
    Turn,
    Verdict,
    derive_seed,
    state_at,
    trajectory_id,
)
from rise_ray.rollout.chat import ChatFormat


@dataclass(frozen=True, slots=True)
class EpisodePlan:
    """What all episodes of a phase have in common.

    `candidates` responses are sampled beside the attempt at every visited state, or only at the
    first where `first_state_only` (an evaluation's parallel answers). With `last_feedback` the last
    attempt has its feedback, too. `max_model_len` bounds
    state plus response, in tokens.
    """

    run: str
    place: Place
    seed: int
    turns: int
    window: int | None
    stop_on_success: bool
    candidates: int
    first_state_only: bool
    last_feedback: bool
    sampling: SamplingConfig
    max_model_len: int


@dataclass(frozen=True, slots=True)
class EpisodeSpec:
    """One episode to roll: enough to run it on any worker, any number of times, alike."""

    plan: EpisodePlan
    problem: Problem
    sample: int
    prompt: tuple[Message, ...]
    feedback: str

    @property
    def id(self) -> str:
        """The id its trajectory will have."""
        plan = self.plan
        return trajectory_id(plan.run, plan.place, self.problem.id, self.sample)


@dataclass(frozen=True, slots=True)
class Request:
    """`n` responses wanted to one state. `candidates` tells the improvement from the attempt."""

    turn: int
    candidates: bool
    prompt_ids: tuple[int, ...]
    n: int
    seed: int


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled response, before it is checked."""

    token_ids: tuple[int, ...]
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class _Response:
    text: str
    completion: Completion
    seed: int


class Episode:
    """The state machine of one `EpisodeSpec` under one weight version."""

    def __init__(self, spec: EpisodeSpec, chat: ChatFormat, weight_version: int) -> None:
        self.spec = spec
        self._chat = chat
        self._weight_version = weight_version
        self._prompt_ids = chat.prompt_ids(spec.prompt)
        self._turns: list[Turn] = []
        self._candidates: dict[int, tuple[Attempt, ...]] = {}
        self._unverified: dict[tuple[int, bool], list[_Response]] = {}
        self._open = 0
        self._stop: StopReason | None = None
        self._error: str | None = None

    @property
    def done(self) -> bool:
        """Whether it has ended and every response it asked for has its verdict."""
        return self._stop is not None and self._open == 0

    def start(self) -> list[Request]:
        """What to sample first; nothing, and it is done, where the prompt leaves no room."""
        return self._visit(0) or self._end(StopReason.CONTEXT_OVERFLOW)

    def completed(self, request: Request, completions: Sequence[Completion]) -> list[str]:
        """Take sampled responses; return their texts, to be verified in this order."""
        responses = [
            _Response(
                self._chat.text(c.token_ids, c.finish_reason),
                c,
                request.seed + index,
            )
            for index, c in enumerate(completions)
        ]
        self._unverified[request.turn, request.candidates] = responses
        return [response.text for response in responses]

    def verified(self, request: Request, verdicts: Sequence[Verdict]) -> list[Request]:
        """Take the verdicts on `completed`'s texts; return what to sample next."""
        self._open -= 1
        responses = self._unverified.pop((request.turn, request.candidates))
        attempts = tuple(
            Attempt(
                text=response.text,
                token_ids=response.completion.token_ids,
                finish_reason=response.completion.finish_reason,
                verdict=verdict,
                weight_version=self._weight_version,
                seed=response.seed,
            )
            for response, verdict in zip(responses, verdicts, strict=True)
        )
        if request.candidates:
            self._candidates[request.turn] = attempts
            return []
        self._turns.append(Turn(attempts[0]))
        return self._after_attempt(attempts[0])

    def trajectory(self) -> Trajectory:
        """The finished episode."""
        assert self._stop is not None
        assert self.done
        plan = self.spec.plan
        return Trajectory(
            id=self.spec.id,
            run=plan.run,
            place=plan.place,
            problem=self.spec.problem,
            sample=self.spec.sample,
            prompt_ids=self._prompt_ids,
            turns=tuple(
                replace(turn, candidates=self._candidates.get(index, ()))
                for index, turn in enumerate(self._turns)
            ),
            stop_reason=self._stop,
            window=plan.window,
            error=self._error,
        )

    def _after_attempt(self, attempt: Attempt) -> list[Request]:
        plan = self.spec.plan
        turn = len(self._turns)
        if plan.stop_on_success and attempt.verdict.outcome is Outcome.ERROR:
            # Whether to stop is unknown: going on would condition on an unchecked answer.
            return self._end(StopReason.ERROR, f"verifier: {attempt.verdict.reason}")
        if plan.stop_on_success and attempt.verdict.outcome is Outcome.CORRECT:
            return self._end(StopReason.SUCCESS)
        if turn == plan.turns and not plan.last_feedback:
            return self._end(StopReason.MAX_TURNS)
        feedback = self._chat.feedback_ids(self.spec.prompt, self.spec.feedback, attempt.token_ids)
        last = self._turns[-1]
        self._turns[-1] = replace(last, feedback_ids=feedback)
        if turn == plan.turns:
            return self._end(StopReason.MAX_TURNS)
        requests = self._visit(turn)
        if not requests:
            self._turns[-1] = last  # no further state was visited
            return self._end(StopReason.CONTEXT_OVERFLOW)
        return requests

    def _visit(self, turn: int) -> list[Request]:
        plan = self.spec.plan
        ids = state_at(self._prompt_ids, self._turns, turn, plan.window).token_ids
        if len(ids) + plan.sampling.max_tokens > plan.max_model_len:
            return []
        requests = [Request(turn, False, ids, 1, self._seed(turn, "attempt"))]
        if plan.candidates and (turn == 0 or not plan.first_state_only):
            seed = self._seed(turn, "candidates")
            requests.append(Request(turn, True, ids, plan.candidates, seed))
        self._open += len(requests)
        return requests

    def _seed(self, turn: int, role: str) -> int:
        spec, plan, place = self.spec, self.spec.plan, self.spec.plan.place
        return derive_seed(
            plan.seed, place.iteration, place.phase, spec.problem.id, spec.sample, turn, role
        )

    def _end(self, reason: StopReason, error: str | None = None) -> list[Request]:
        self._stop, self._error = reason, error
        return []


def failed_trajectory(spec: EpisodeSpec, reason: str) -> Trajectory:
    """The record of an episode that was set aside: no turns, stop reason `error`, why."""
    return Trajectory(
        id=spec.id,
        run=spec.plan.run,
        place=spec.plan.place,
        problem=spec.problem,
        sample=spec.sample,
        prompt_ids=(),
        turns=(),
        stop_reason=StopReason.ERROR,
        window=spec.plan.window,
        error=reason,
    )
