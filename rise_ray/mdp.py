"""RISE's words as data: problems, states, attempts, verdicts, trajectories, examples.

A single-turn problem becomes a multi-turn Markov decision process (RISE, arXiv 2407.18219,
section 3): the state is the prompt and every earlier attempt with its feedback, the action is a
whole response, the reward says whether its answer is right. Everything here is a frozen value
without behaviour that needs Ray, vLLM or torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """What the verifier found."""

    CORRECT = "correct"
    """The answer was extracted and equals the reference."""
    INCORRECT = "incorrect"
    """The answer was extracted, compared, and differs from the reference."""
    UNPARSEABLE = "unparseable"
    """The response holds no answer that the task can read."""
    ERROR = "error"
    """The check itself failed (deadline, memory, crash): nothing is known about the answer."""
    PARTIAL = "partial"
    """A step, an action, a critique: not a final answer, nothing was checked."""


class FinishReason(StrEnum):
    """Why the model stopped writing a response."""

    STOP = "stop"
    """It ended its turn itself, or the step that it was asked for."""
    LENGTH = "length"
    """It reached the token limit: the response is truncated."""


class StopReason(StrEnum):
    """Why a trajectory ended."""

    SUCCESS = "success"
    """A right answer, where `stop_on_success` asks to stop there."""
    MAX_TURNS = "max_turns"
    """All turns were taken."""
    CONTEXT_OVERFLOW = "context_overflow"
    """The next state plus one response would not fit the model's context."""
    ERROR = "error"
    """The episode failed (`Trajectory.error` says how); its rows never become training data."""


MAIN_TRACK = "iteration"
"""The line of weights of a run's own recipe; `iteration-0` is the base."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A phase of a track in an iteration: what trajectories were rolled out for.

    Written `<track>-<iteration>/<phase>`, which is also the stage's key in the run's journal. A
    track is a named line of weights (`iteration` is the run's own, a control has another); what a
    track rolls in an iteration is declared by its recipe.
    """

    track: str
    iteration: int
    phase: str

    @property
    def stage(self) -> str:
        """`<track>-<iteration>`."""
        return f"{self.track}-{self.iteration}"

    def __str__(self) -> str:
        return f"{self.stage}/{self.phase}"


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message; `role` is `system`, `user` or `assistant`."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of a task.

    `id` is unique in the task and stable over runs; `reference` is the right answer as text;
    `solution` is a worked solution where the data set has one; `data` holds what the task's
    checker needs beside them (JSON-serialisable).
    """

    id: str
    task: str
    question: str
    reference: str
    solution: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verifier's finding on one response.

    `answer` is the normalised extracted answer, the unit of majority votes (None where none was
    extracted); `reason` says why for a person; `claims_correct` is the response's own opinion
    of its answer, None where the task cannot tell.
    """

    outcome: Outcome
    answer: str | None
    reason: str
    claims_correct: bool | None = None
    verifier_version: str = ""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One response in one state.

    `token_ids` are the sampled ids themselves, with the token that ended it when
    `finish_reason` is `stop`; they are spliced into later states and never made again from
    `text`. `weight_version` is the iteration number of the weights that sampled it, -1 for a
    response that no model of the run wrote (a teacher's).

    `scores` are log-probabilities in nats, by name: `logprob` is the sum over the sampled tokens,
    before temperature and top-p, the ending token included (no teacher's answer has it); others
    are named by the plan that asked for them. `role` names who wrote it. The first `given` tokens
    were not sampled here: an opening, or all of an attempt with which the episode started.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    verdict: Verdict
    weight_version: int
    seed: int
    scores: Mapping[str, float] = field(default_factory=dict)
    role: str = "policy"
    given: int = 0

    @property
    def sampled(self) -> bool:
        """Whether this episode sampled any of it."""
        return self.given < len(self.token_ids)


@dataclass(frozen=True, slots=True)
class Turn:
    """A visited state's attempt, the candidates sampled to improve on it, and the feedback.

    `feedback_ids` are the tokens between this attempt and the next one (end of the assistant's
    turn if the attempt was truncated, the user's feedback, the next assistant header); empty on
    a trajectory's last turn, unless its plan asks for it there, too.
    """

    attempt: Attempt
    candidates: tuple[Attempt, ...] = ()
    feedback_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """Where an episode was forked: before token `token` of the response of turn `turn`."""

    trajectory_id: str
    turn: int
    token: int


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One episode on one problem, on-policy, as it is stored.

    `window` is the number of turns a state shows at most, the one being taken included
    (RISE's k: `window - 1` earlier attempts); None shows all. `source` is the lineage of an
    episode that goes on from another; `feedback` names what was said between turns by what it
    reveals (`rise_ray.feedback`).
    """

    id: str
    run: str
    place: Place
    problem: Problem
    sample: int
    prompt_ids: tuple[int, ...]
    turns: tuple[Turn, ...]
    stop_reason: StopReason
    window: int | None
    error: str | None = None
    source: Source | None = None
    feedback: str = "constant"


@dataclass(frozen=True, slots=True)
class WeightVersion:
    """Weights by iteration number (0: the base) and by the checkpoint that holds them.

    `parity` is the URI of the folder with their `parity.json`: the checkpoint's own for weights
    that this run trained.
    """

    iteration: int
    checkpoint: str
    parity: str


def shown_turns(turns: Sequence[Turn], turn: int, window: int | None) -> Sequence[Turn]:
    """What the state of `turn` shows: its last `window - 1` turns (RISE's k), whole; None, all."""
    return turns[0 if window is None else max(0, turn - (window - 1)) : turn]


def state_ids(
    prompt_ids: Sequence[int], turns: Sequence[Turn], turn: int, window: int | None
) -> tuple[int, ...]:
    """What the model sees when turn number `turn` (from 0) is taken, in tokens.

    The prompt, and each earlier attempt that is shown with the feedback after it. Without a
    window a state's ids extend those of the state before it; that of turn 0 is the bare prompt,
    which ends with the first assistant header. For `window` see `shown_turns`.
    """
    ids = list(prompt_ids)
    for earlier in shown_turns(turns, turn, window):
        ids += (*earlier.attempt.token_ids, *earlier.feedback_ids)
    return tuple(ids)


def after_response(
    between: tuple[int, ...], end_of_turn: int, response_ids: Sequence[int]
) -> tuple[int, ...]:
    """What stands between a response and the next one, where `between` begins with its end.

    A response that ended its turn itself has that token as its own last id.
    """
    ended = tuple(response_ids[-1:]) == (end_of_turn,) == between[:1]
    return between[1:] if ended else between


def trajectory_id(run: str, place: Place, problem_id: str, sample: int) -> str:
    """The id of an episode: fixed before it runs, so that writing it twice writes it once."""
    return f"{run}/{place.track}={place.iteration}/{place.phase}/{problem_id}/{sample}"


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from the names of what it is for; equal parts give equal seeds anywhere."""
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens `start` to `end` (exclusive) of an example that carry the loss weight `weight`."""

    start: int
    end: int
    weight: float


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where an example came from, down to the response.

    `source` is `attempt`, `candidate`, `teacher` or `demonstration`; `turn` and `candidate` are
    indices in the trajectory (candidate -1: the attempt itself). A demonstration has no trajectory
    and was never checked: its `trajectory_id` is its own id, its `reward` None, its versions -1
    and empty.
    """

    source: str
    rule: str
    trajectory_id: str
    problem_id: str
    place: Place
    turn: int
    candidate: int
    reward: float | None
    seed: int
    weight_version: int
    verifier_version: str


@dataclass(frozen=True, slots=True)
class Example:
    """What the trainer eats: state and response ids, and the loss weight of each token span.

    Weights are as the relabel rule gave them; training divides them by the data set's mean.
    """

    id: str
    input_ids: tuple[int, ...]
    spans: tuple[Span, ...]
    provenance: Provenance
