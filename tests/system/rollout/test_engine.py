"""A real engine answers as plain Hugging Face would, and ends responses where it should."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import ray

from rise_ray.config.settings import SamplingConfig, WorkersConfig
from rise_ray.errors import ConfigError
from rise_ray.mdp import FinishReason, WeightVersion
from rise_ray.rollout.engine import Engine
from rise_ray.rollout.pool import RolloutPool
from rise_ray.rollout.requests import EngineRequest, Sample, ScoreLabels, ScoreSpans
from rise_ray.rollout.worker import RolloutWorker
from rise_ray.sync.parity import reference_logprobs
from tests.system.rollout.conftest import on_a_worker

SAMPLES, MOST = 64, 40
PROMPT = (10, 11, 12)
EOS, OTHER = 2, 50  # the model's own end of sequence, and a word of its vocabulary
HOT = SamplingConfig(max_tokens=MOST, temperature=1.7, top_p=0.9)
TOLERANCE = 1e-3  # nats, float32 on both sides


def _answers(worker: RolloutWorker, requests: Sequence[EngineRequest], end: int) -> list[list[Any]]:
    engine = worker._engine
    for number, request in enumerate(requests):
        engine.submit(str(number), request, end)
    found: dict[str, list[Any]] = {}
    while engine.busy:
        found.update(engine.step())
    return [found[str(number)] for number in range(len(requests))]


def _ask(pair: RolloutPool, *requests: EngineRequest, end: int = EOS) -> list[list[Any]]:
    """The replies, to requests that are under way side by side."""
    return on_a_worker(pair, _answers, requests, end)


def _sample(n: int = SAMPLES, sampling: SamplingConfig | None = None, **more: Any) -> Sample:
    chosen = sampling or SamplingConfig(max_tokens=MOST)
    return Sample(0, False, PROMPT, n, 1, chosen, **more)


def _by_hugging_face(
    model: WeightVersion, sequences: Sequence[tuple[int, ...]]
) -> list[tuple[float, ...]]:
    """Log p of every token after the first."""

    def score() -> list[tuple[float, ...]]:
        return list(reference_logprobs(model.checkpoint, sequences, "float32", False).logprobs)

    return ray.get(ray.remote(num_cpus=1, max_calls=1)(score).remote())


def test_a_response_ends_with_the_end_of_turn_that_the_model_does_not_list(
    pair: RolloutPool,
) -> None:
    (own,), (by_word,) = _ask(pair, _sample()), _ask(pair, _sample(), end=OTHER)
    for completions, ends in ((own, {EOS}), (by_word, {EOS, OTHER})):
        assert len(completions) == SAMPLES
        for completion in completions:
            *body, last = completion.token_ids
            assert not ends & set(body)
            stopped = completion.finish_reason is FinishReason.STOP
            assert stopped if last in ends else len(completion.token_ids) == MOST
    assert any(OTHER in completion.token_ids[:-1] for completion in own)
    assert any(completion.token_ids[-1] == OTHER for completion in by_word)


def test_a_step_ends_with_a_token_of_its_own(pair: RolloutPool) -> None:
    own, by_step = _ask(pair, _sample(), _sample(stop=(OTHER, 51)))
    for plain, step in zip(own, by_step, strict=True):
        end = next((n for n, i in enumerate(plain.token_ids) if i in (OTHER, 51)), None)
        if end is None:
            assert step == plain
        else:
            assert step.token_ids == plain.token_ids[: end + 1]  # the same draws up to there
            assert step.finish_reason is FinishReason.STOP
    assert sum(len(c.token_ids) for c in by_step) < sum(len(c.token_ids) for c in own)


def test_an_opening_is_sampled_on_and_one_of_no_tokens_changes_nothing(pair: RolloutPool) -> None:
    opening = (20, 21, 22)
    longer = Sample(0, False, (*PROMPT, *opening), SAMPLES, 1, SamplingConfig(max_tokens=MOST))
    opened, state, empty, none = _ask(
        pair, _sample(opening_ids=opening), longer, _sample(opening_ids=()), _sample()
    )
    assert [c.token_ids for c in opened] == [c.token_ids for c in state]
    assert [c.token_ids for c in empty] == [c.token_ids for c in none]
    assert [c.token_ids for c in opened] != [c.token_ids for c in none]


def test_scores_are_the_models_own_log_probabilities(
    pair: RolloutPool, tiny_model: WeightVersion
) -> None:
    """Before temperature and top-p; requests of all kinds share the engine's batches."""
    labels, spans = (60, 6, 33), ((1, 3), (2, 20), (5, 6))
    text = tuple(range(30, 50))
    completions, (greedy,), among, more, sums = _ask(
        pair,
        _sample(4, HOT),
        _sample(1, SamplingConfig(max_tokens=MOST, temperature=0.0)),
        ScoreLabels(0, -1, text, labels),
        ScoreLabels(0, 0, PROMPT, (7, 8)),
        ScoreSpans(text, spans),
    )
    sampled = [*completions, greedy]
    expected = _by_hugging_face(
        tiny_model,
        [
            *((*PROMPT, *c.token_ids) for c in sampled),
            *((*text, label) for label in labels),
            *((*PROMPT, label) for label in (7, 8)),
            text,
        ],
    )
    for completion, logprobs in zip(sampled, expected, strict=False):
        own = sum(logprobs[len(PROMPT) - 1 :])
        assert completion.logprob == pytest.approx(own, abs=MOST * TOLERANCE)
    raw, raw_more = [row[-1] for row in expected[5:8]], [row[-1] for row in expected[8:10]]
    for scored, found in ((among, raw), (more, raw_more)):
        total = _log_sum_exp(found)
        assert scored == pytest.approx([value - total for value in found], abs=TOLERANCE)
        assert _log_sum_exp(scored) == pytest.approx(0.0, abs=1e-6)
    by_span = [sum(expected[10][start - 1 : end - 1]) for start, end in spans]
    assert sums == pytest.approx(by_span, abs=len(text) * TOLERANCE)


def _log_sum_exp(values: Sequence[float]) -> float:

    return math.log(sum(math.exp(value) for value in values))


def _engine(worker: RolloutWorker, **vllm: Any) -> Engine:
    path = worker.version.checkpoint
    return Engine(path, worker._model, WorkersConfig(vllm=vllm), "object_store", seed=0)


def test_an_eager_engine_on_the_cpu_has_compiled_nothing(pair: RolloutPool) -> None:
    def compiled(worker: RolloutWorker) -> dict[str, int]:
        from torch._dynamo.utils import counters

        return dict(counters["frames"])

    assert on_a_worker(pair, compiled) == {}


def test_what_a_log_probability_means_is_not_a_setting(pair: RolloutPool) -> None:
    with pytest.raises(ConfigError, match="logprobs_mode are set by rise-ray itself"):
        on_a_worker(pair, partial(_engine, logprobs_mode="processed_logprobs"))
