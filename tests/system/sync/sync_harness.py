"""One vLLM engine in a Ray actor, and the tiny models it loads (a module Ray workers import)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray

from rise_ray.errors import SyncError
from rise_ray.sync.buckets import Bucket, SyncReport
from rise_ray.sync.parity import (
    ParityReference,
    ParityReport,
    check_parity,
    engine_logprobs,
    reference_logprobs,
)
from rise_ray.sync.receiver import WeightReceiver, sync_engine, update_engine
from rise_ray.sync.source import pull, start_weight_server

ENGINE_ENV = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "TORCH_COMPILE_DISABLE": "1",  # as rise-ray's own engines
}
BUCKET_BYTES = 64 * 1024
DEADLINE_S = 60.0


def save_model(folder: Path, seed: int, tied: bool) -> str:
    """A random Llama: hidden 64, 2 layers, vocabulary 127; large weights make sharp outputs."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=127,  # not a multiple of 64: vLLM pads it
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,  # vLLM's CPU attention has no heads of 16
        num_key_value_heads=1,
        max_position_embeddings=256,
        initializer_range=0.2,
        tie_word_embeddings=tied,
        eos_token_id=None,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder)
    return str(folder)


def make_engine(model: str, backend: str) -> Any:
    """An in-process engine that takes weights through a backend."""
    from vllm.config import WeightTransferConfig
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    return LLMEngine.from_engine_args(
        EngineArgs(
            model=model,
            skip_tokenizer_init=True,
            dtype="float32",
            max_model_len=128,
            enforce_eager=True,
            gpu_memory_utilization=0.3,
            weight_transfer_config=WeightTransferConfig(backend=backend),
        )
    )


def push_host(backend: str) -> Any:
    """The actor class of a worker that one of vLLM's own GPU backends pushes to."""

    class PushHost(WeightReceiver):
        def __init__(self, model: str) -> None:
            self.engine = make_engine(model, backend)

        def logprobs(self, sequences: Sequence[Sequence[int]]) -> tuple[tuple[float, ...], ...]:
            return engine_logprobs(self.engine, sequences)

    return ray.remote(runtime_env={"env_vars": ENGINE_ENV})(PushHost)


def serve(model: str, version: int) -> Any:
    """A server of a model's weights."""
    server = start_weight_server()
    ray.get(server.serve.remote(model, version, BUCKET_BYTES))
    return server


@ray.remote(num_cpus=0.1, runtime_env={"env_vars": ENGINE_ENV})
class ModelMaker:
    """Keeps torch and transformers out of the test's own process."""

    def save(self, folder: str, seed: int, tied: bool) -> str:
        return save_model(Path(folder), seed, tied)

    def reference(self, folder: str, sequences: Sequence[Sequence[int]]) -> ParityReference:
        return reference_logprobs(folder, sequences, "float32", trust_remote_code=False)


@ray.remote(num_cpus=0.1, runtime_env={"env_vars": ENGINE_ENV})
class EngineHost:
    """What a rollout worker is to a sync: an actor with an in-process engine."""

    def __init__(self, model: str) -> None:
        self._engine = make_engine(model, "object_store")

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> tuple[tuple[float, ...], ...]:
        return engine_logprobs(self._engine, sequences)

    def sync(self, server: Any) -> SyncReport:
        return sync_engine(self._engine, server, DEADLINE_S)

    def sync_corrupted(self, server: Any) -> str:
        """Sync with a flipped bit in one bucket; the error's text."""
        manifest, buckets = pull(server, DEADLINE_S)
        try:
            update_engine(self._engine, manifest, _corrupted(buckets))
        except SyncError as error:
            return str(error)
        return "no error"

    def parity(self, reference: ParityReference, version: int) -> ParityReport:
        got = self.logprobs(reference.sequences)
        return check_parity(reference, got, 0.001, "host-0", version)

    def greedy(self, prompt: Sequence[int], request_id: str) -> tuple[tuple[int, ...], str]:
        """Twenty greedy tokens and the weight version the output carries."""
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input

        params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, detokenize=False)
        self._engine.add_request(request_id, tokens_input(list(prompt)), params)
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                if output.finished:
                    return tuple(output.outputs[0].token_ids), self._engine.get_weight_version()
        raise AssertionError("the engine finished without an output")

    def sync_while_busy(self, server: Any) -> str:
        """Sync with a request under way; the error's text."""
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input

        params = SamplingParams(detokenize=False)
        self._engine.add_request("busy", tokens_input([1, 2, 3]), params)
        try:
            self.sync(server)
        except SyncError as error:
            return str(error)
        finally:
            self._engine.abort_request(["busy"])
        return "no error"


def _corrupted(buckets: Iterator[Bucket]) -> Iterator[Bucket]:
    for bucket in buckets:
        if bucket.index == 1:
            payload = bucket.payload.copy()
            payload[3] ^= 1
            yield dataclasses.replace(bucket, payload=payload)
        else:
            yield bucket
