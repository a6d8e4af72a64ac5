"""A real engine ends responses where the chat template ends a turn."""

from __future__ import annotations

from collections.abc import Sequence

import ray

from rise_ray.config.settings import ModelConfig, SamplingConfig, WorkersConfig
from rise_ray.mdp import FinishReason, WeightVersion
from rise_ray.rollout.episode import Completion, Request
from tests.system.conftest import MAX_MODEL_LEN

SAMPLES, MOST = 64, 40
PROMPT = (10, 11, 12)


def _sample(path: str, ends: Sequence[int]) -> list[list[Completion]]:
    from rise_ray.rollout.engine import Engine

    model = ModelConfig(path=path, max_model_len=MAX_MODEL_LEN)
    workers = WorkersConfig(vllm={"enforce_eager": True})
    engine = Engine(path, model, workers, "object_store", seed=0)
    for end in ends:
        request = Request(0, False, PROMPT, SAMPLES, seed=1)
        engine.submit(str(end), request, SamplingConfig(max_tokens=MOST), end)
    found: dict[str, list[Completion]] = {}
    while engine.busy:
        found.update(engine.step())
    return [found[str(end)] for end in ends]


def test_a_response_ends_with_the_end_of_turn_that_the_model_does_not_list(
    tiny_model: WeightVersion,
) -> None:
    eos, other = 2, 50  # the model's own end of sequence, and a word of its vocabulary
    task = ray.remote(num_cpus=1, max_calls=1)(_sample)
    own, by_word = ray.get(task.remote(tiny_model.checkpoint, [eos, other]))
    for completions, ends in ((own, {eos}), (by_word, {eos, other})):
        assert len(completions) == SAMPLES
        for completion in completions:
            *body, last = completion.token_ids
            assert not ends & set(body)
            stopped = completion.finish_reason is FinishReason.STOP
            assert stopped if last in ends else len(completion.token_ids) == MOST
    assert any(other in completion.token_ids[:-1] for completion in own)
    assert any(completion.token_ids[-1] == other for completion in by_word)
