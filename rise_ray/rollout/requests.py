"""What an episode asks for, and the replies: the worker sends each to where it is answered.

    Sample, ScoreLabels, ScoreSpans   the engine
    Check                             the verifier

Each is one question with everything in it that its answer depends on, so an episode is a pure
function of the replies.
"""

from __future__ import annotations

from dataclasses import dataclass

from rise_ray.config.settings import SamplingConfig
from rise_ray.mdp import FinishReason


@dataclass(frozen=True, slots=True)
class Sample:
    """`n` responses wanted to one state; the reply is a `Completion` for each.

    `candidates` tells the improvement from the attempt of turn `turn`. The responses begin with
    `opening_ids`; `sampling.max_tokens` bounds what is sampled after them. A response ends with
    its turn, or with a token of `stop`. Response i of n has the seed `seed + i`.
    """

    turn: int
    candidates: bool
    state_ids: tuple[int, ...]
    n: int
    seed: int
    sampling: SamplingConfig
    stop: tuple[int, ...] = ()
    opening_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled response: the tokens after the opening, the one that ended it included.

    `logprob` is the sum of their log-probabilities in nats, before temperature and top-p.
    """

    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprob: float


@dataclass(frozen=True, slots=True)
class Check:
    """The verdicts wanted on the responses of a `Sample`; the reply has them in order."""

    turn: int
    candidates: bool
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ScoreLabels:
    """Which label comes next? The reply is each label's log-probability among the labels.

    It is about the response of turn `turn`: candidate `candidate`, -1 the attempt itself. The
    labels are different tokens, at most 128; the state is one token shorter than the context.
    """

    turn: int
    candidate: int
    state_ids: tuple[int, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ScoreSpans:
    """How likely are given tokens? The reply is the sum of log-probabilities of each span.

    A span is (start, end) in `ids`, the end exclusive, the start at least 1. vLLM computes the
    whole sequence anew for it: for likelihoods, not for a search.
    """

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        for start, end in self.spans:
            if not 1 <= start < end <= len(self.ids):
                raise ValueError(f"span {start}:{end} is not within 1:{len(self.ids)}")


EngineRequest = Sample | ScoreLabels | ScoreSpans
Request = Sample | Check | ScoreLabels
"""What a chain of attempts asks for."""
