"""One episode as a pure state machine: it says what it wants to know, and when it ends.

It owns no engine, actor or clock. `rise_ray.rollout.worker` has its requests answered:

    requests = episode.start()
    requests = episode.reply(request, reply)     # what is wanted next, or nothing
    if episode.done: episode.trajectory()

Candidates of a state, and scores, never hold up the next turn: they are made side by side. Nor
does a verdict, but where an episode may end by it or its feedback tells it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rise_ray.config.settings import SamplingConfig
from rise_ray.feedback.base import Feedback
from rise_ray.mdp import (
    Attempt,
    FinishReason,
    Message,
    Outcome,
    Place,
    Problem,
    Source,
    StopReason,
    Trajectory,
    Turn,
    Verdict,
    derive_seed,
    state_ids,
    trajectory_id,
)
from rise_ray.rollout.chat import ChatFormat
from rise_ray.rollout.requests import Check, Completion, Request, Sample, ScoreLabels

_UNCHECKED = Verdict(Outcome.PARTIAL, None, "was not to be checked")


@dataclass(frozen=True, slots=True)
class Question:
    """What every response is asked about: the score `name` is how likely the first word is.

    `text` is said as the user's turn after the response; of the answers `words`, one token each,
    the log-probability of the first among all of them is kept.
    """

    name: str
    text: str
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EpisodePlan:
    """What all episodes of a phase have in common.

    `turns` counts those with which an episode starts, too. `candidates` responses are sampled
    beside the attempt at every visited state, or only at the first where `first_state_only` (an
    evaluation's parallel answers). With `last_feedback` the last attempt has its feedback, too.
    `max_model_len` bounds state plus response, in tokens. `feedback` names what is said between
    turns (`rise_ray.feedback.base`).

    A token of `stop` ends a response, too, and belongs to its text. Without `check` responses are
    no final answers, and no verifier sees them. `role` names who writes them; `question` is asked
    about each.
    """

    run: str
    place: Place
    seed: int
    sampling: SamplingConfig
    max_model_len: int
    turns: int = 1
    window: int | None = None
    stop_on_success: bool = False
    candidates: int = 0
    first_state_only: bool = False
    last_feedback: bool = False
    feedback: str = "constant"
    stop: tuple[int, ...] = ()
    check: bool = True
    role: str = "policy"
    question: Question | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """Where an episode begins: after `turns`, with the first tokens of the next response.

    Each turn has the `feedback_ids` that follow it; `opening_ids` begin the first attempt that is
    sampled, and the candidates of its state.
    """

    turns: tuple[Turn, ...] = ()
    opening_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class EpisodeSpec:
    """One episode to roll: enough to run it on any worker, any number of times, alike."""

    plan: EpisodePlan
    problem: Problem
    sample: int
    prompt: tuple[Message, ...]
    feedback: Feedback
    start: Start = Start()
    source: Source | None = None

    def __post_init__(self) -> None:
        if len(self.start.turns) >= self.plan.turns:
            raise ValueError(
                f"{self.id}: starts after {len(self.start.turns)} turns of {self.plan.turns}"
            )

    @property
    def id(self) -> str:
        return trajectory_id(self.plan.run, self.plan.place, self.problem.id, self.sample)

    def trajectory(
        self,
        stop_reason: StopReason,
        error: str | None,
        prompt_ids: tuple[int, ...] = (),
        turns: tuple[Turn, ...] = (),
    ) -> Trajectory:
        """The episode's record, however it ended."""
        return Trajectory(
            id=self.id,
            run=self.plan.run,
            place=self.plan.place,
            problem=self.problem,
            sample=self.sample,
            prompt_ids=prompt_ids,
            turns=turns,
            stop_reason=stop_reason,
            window=self.plan.window,
            error=error,
            source=self.source,
            feedback=self.feedback.name,
        )


class Episode:
    """The state machine of one `EpisodeSpec` under one weight version."""

    def __init__(self, spec: EpisodeSpec, chat: ChatFormat, weight_version: int) -> None:
        self.spec = spec
        self._chat = chat
        self._weight_version = weight_version
        self._prompt_ids = chat.prompt_ids(spec.prompt)
        self._turns = [_given(turn) for turn in spec.start.turns]
        self._candidates: dict[int, tuple[Attempt, ...]] = {}
        self._scores: dict[tuple[int, int], dict[str, float]] = {}
        self._labels: tuple[int, ...] = ()
        self._reserved = 0
        if question := spec.plan.question:
            self._labels = chat.label_ids(question.words)
            self._reserved = len(chat.feedback_ids(spec.prompt, question.text, ())) + 1
        self._open = 0
        self._stop: StopReason | None = None
        self._error: str | None = None

    @property
    def _waits_for_verdict(self) -> bool:
        """Whether what comes after an attempt depends on whether it is right."""
        plan = self.spec.plan
        return plan.check and (plan.stop_on_success or self.spec.feedback.tells_verdict)

    @property
    def done(self) -> bool:
        """Whether it has ended and every request of its has its reply."""
        return self._stop is not None and self._open == 0

    def start(self) -> list[Request]:
        """What to sample first; nothing, and it is done, where the prompt leaves no room."""
        requests = self._visit(len(self._turns)) or self._end(StopReason.CONTEXT_OVERFLOW)
        self._open += len(requests)
        return requests

    def reply(self, request: Request, reply: Sequence[Any]) -> list[Request]:
        """Take the reply to one of its requests (see there); return what is wanted next."""
        self._open -= 1
        match request:
            case Sample():
                requests = self._sampled(request, reply)
            case Check():
                requests = self._checked(request, reply)
            case ScoreLabels():
                assert self.spec.plan.question is not None
                name = self.spec.plan.question.name
                self._scores[request.turn, request.candidate] = {name: reply[0]}
                requests = []
        self._open += len(requests)
        return requests

    def trajectory(self) -> Trajectory:
        assert self._stop is not None
        assert self.done
        turns = tuple(self._turn(number, turn) for number, turn in enumerate(self._turns))
        return self.spec.trajectory(self._stop, self._error, self._prompt_ids, turns)

    def _sampled(self, request: Sample, completions: Sequence[Completion]) -> list[Request]:
        responses = tuple(self._response(request, n, c) for n, c in enumerate(completions))
        if request.candidates:
            self._candidates[request.turn] = responses
        else:
            self._turns.append(Turn(responses[0]))
        wanted: list[Request] = []
        if self.spec.plan.check:
            texts = tuple(response.text for response in responses)
            wanted.append(Check(request.turn, request.candidates, texts))
        wanted += self._ask(request, responses)
        if not request.candidates and not self._waits_for_verdict:
            wanted += self._after_attempt()
        return wanted

    def _response(self, request: Sample, number: int, completion: Completion) -> Attempt:
        ids = (*request.opening_ids, *completion.token_ids)
        ended = completion.finish_reason is FinishReason.STOP
        return Attempt(
            text=self._chat.text(ids, ended and ids[-1] not in request.stop),
            token_ids=ids,
            finish_reason=completion.finish_reason,
            verdict=_UNCHECKED,
            weight_version=self._weight_version,
            seed=request.seed + number,
            scores={"logprob": completion.logprob},
            role=self.spec.plan.role,
            given=len(request.opening_ids),
        )

    def _ask(self, request: Sample, responses: Sequence[Attempt]) -> list[Request]:
        question = self.spec.plan.question
        if question is None:
            return []
        asked: list[Request] = []
        for number, response in enumerate(responses, start=0 if request.candidates else -1):
            ids = response.token_ids
            said = self._chat.feedback_ids(self.spec.prompt, question.text, ids)
            state = (*request.state_ids, *ids, *said)
            asked.append(ScoreLabels(request.turn, number, state, self._labels))
        return asked

    def _checked(self, request: Check, verdicts: Sequence[Verdict]) -> list[Request]:
        if request.candidates:
            candidates = zip(self._candidates[request.turn], verdicts, strict=True)
            self._candidates[request.turn] = tuple(replace(c, verdict=v) for c, v in candidates)
            return []
        (verdict,), turn = verdicts, self._turns[request.turn]
        self._turns[request.turn] = replace(turn, attempt=replace(turn.attempt, verdict=verdict))
        return self._after_attempt() if self._waits_for_verdict else []

    def _after_attempt(self) -> list[Request]:
        plan = self.spec.plan
        turn, attempt = len(self._turns), self._turns[-1].attempt
        if plan.stop_on_success and attempt.verdict.outcome is Outcome.ERROR:
            # Whether to stop is unknown: going on would condition on an unchecked answer.
            return self._end(StopReason.ERROR, f"verifier: {attempt.verdict.reason}")
        if plan.stop_on_success and attempt.verdict.outcome is Outcome.CORRECT:
            return self._end(StopReason.SUCCESS)
        if turn == plan.turns and not plan.last_feedback:
            return self._end(StopReason.MAX_TURNS)
        feedback = self.spec.feedback
        said = feedback.text(self.spec.problem, attempt)
        if said is None:
            reason = f"feedback `{feedback.name}`: verifier: {attempt.verdict.reason}"
            return self._end(StopReason.ERROR, reason)
        last = self._turns[-1]
        ids = self._chat.feedback_ids(self.spec.prompt, said, attempt.token_ids)
        self._turns[-1] = replace(last, feedback_ids=ids)
        if turn == plan.turns:
            return self._end(StopReason.MAX_TURNS)
        requests = self._visit(turn)
        if not requests:
            self._turns[-1] = last  # no further state was visited
            return self._end(StopReason.CONTEXT_OVERFLOW)
        return requests

    def _visit(self, turn: int) -> list[Request]:
        plan, first = self.spec.plan, turn == len(self.spec.start.turns)
        ids = state_ids(self._prompt_ids, self._turns, turn, plan.window)
        opening = self.spec.start.opening_ids if first else ()
        sampled = plan.sampling.max_tokens + self._reserved
        if len(ids) + len(opening) + sampled > plan.max_model_len:
            return []
        wanted = [(False, 1, "attempt")]
        if plan.candidates and (first or not plan.first_state_only):
            wanted.append((True, plan.candidates, "candidates"))
        where, problem_id, sample = plan.place, self.spec.problem.id, self.spec.sample
        sampling = plan.sampling.at(turn)
        of = (plan.seed, where.iteration, where.phase, problem_id, sample, turn)
        return [
            Sample(turn, beside, ids, n, derive_seed(*of, role), sampling, plan.stop, opening)
            for beside, n, role in wanted
        ]

    def _turn(self, number: int, turn: Turn) -> Turn:
        """With its candidates, and all scores."""
        candidates = self._candidates.get(number, ())
        return replace(
            turn,
            attempt=self._with_scores(turn.attempt, number, -1),
            candidates=tuple(self._with_scores(c, number, n) for n, c in enumerate(candidates)),
        )

    def _with_scores(self, attempt: Attempt, turn: int, candidate: int) -> Attempt:
        more = self._scores.get((turn, candidate), {})
        return replace(attempt, scores={**attempt.scores, **more})

    def _end(self, reason: StopReason, error: str | None = None) -> list[Request]:
        self._stop, self._error = reason, error
        return []


def _given(turn: Turn) -> Turn:
    """A turn of another episode: nothing of it is sampled again, its candidates stay there."""
    attempt = replace(turn.attempt, given=len(turn.attempt.token_ids))
    return replace(turn, attempt=attempt, candidates=())


def failed_trajectory(spec: EpisodeSpec, reason: str) -> Trajectory:
    """The record of an episode that was set aside: no turns, stop reason `error`, why."""
    return spec.trajectory(StopReason.ERROR, reason)
