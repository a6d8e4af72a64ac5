"""A real engine ends responses where the chat template ends a turn."""

from __future__ import annotations

from collections.abc import Sequence

from rise_ray.config.settings import SamplingConfig
from rise_ray.mdp import FinishReason
from rise_ray.rollout.episode import Completion, Request
from rise_ray.rollout.pool import RolloutPool
from rise_ray.rollout.worker import RolloutWorker
from tests.system.rollout.conftest import on_a_worker

SAMPLES, MOST = 64, 40
PROMPT = (10, 11, 12)


def _sample(worker: RolloutWorker, ends: Sequence[int]) -> list[list[Completion]]:
    engine = worker._engine
    for end in ends:
        request = Request(0, False, PROMPT, SAMPLES, seed=1)
        engine.submit(str(end), request, SamplingConfig(max_tokens=MOST), end)
    found: dict[str, list[Completion]] = {}
    while engine.busy:
        found.update(engine.step())
    return [found[str(end)] for end in ends]


def test_a_response_ends_with_the_end_of_turn_that_the_model_does_not_list(
    pair: RolloutPool,
) -> None:
    eos, other = 2, 50  # the model's own end of sequence, and a word of its vocabulary
    own, by_word = on_a_worker(pair, _sample, [eos, other])
    for completions, ends in ((own, {eos}), (by_word, {eos, other})):
        assert len(completions) == SAMPLES
        for completion in completions:
            *body, last = completion.token_ids
            assert not ends & set(body)
            stopped = completion.finish_reason is FinishReason.STOP
            assert stopped if last in ends else len(completion.token_ids) == MOST
    assert any(other in completion.token_ids[:-1] for completion in own)
    assert any(completion.token_ids[-1] == other for completion in by_word)
