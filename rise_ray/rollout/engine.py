"""vLLM in this process: add requests, step, collect what finished.

The engine core runs in the caller's process (`VLLM_ENABLE_V1_MULTIPROCESSING=0`), so that a
finished turn starts its next turn before the engine's next step, and one actor is one engine.
A process can host one engine only.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from rise_ray.cluster.cleanup import temporary_files, temporary_folder
from rise_ray.config.settings import ModelConfig, SamplingConfig, WorkersConfig
from rise_ray.errors import ConfigError
from rise_ray.mdp import FinishReason
from rise_ray.models.locate import resolve_dtype
from rise_ray.rollout.episode import Completion, Request

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreOutputs

# On a machine shared with the trainer: a small key-value cache, and no pinning of threads to
# cores that other processes use too. A user's environment or `workers.env` wins.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}

_CPU_BATCH_TOKENS = 4096


class Engine:
    """One vLLM engine.

    Args:
        path: a local Hugging Face folder or a hub name.
        model: dtype, context length, trust.
        workers: vLLM settings and environment.
        backend: the weight-transfer backend that `rise_ray.sync` will use.
        seed: of sampling without a request seed.

    Raises:
        ConfigError: `workers.vllm` has a setting that vLLM does not know or that is rise-ray's.
    """

    def __init__(
        self, path: str, model: ModelConfig, workers: WorkersConfig, backend: str, seed: int
    ) -> None:
        sockets = {"VLLM_RPC_BASE_PATH": str(temporary_folder())}
        for key, value in (_ENVIRONMENT | sockets).items():
            os.environ.setdefault(key, value)
        os.environ.update(workers.env)
        from vllm import EngineArgs
        from vllm.config import WeightTransferConfig
        from vllm.v1.engine.llm_engine import LLMEngine

        settings: dict[str, Any] = {
            "model": path,
            "dtype": resolve_dtype(model.dtype, workers.num_gpus),
            "max_model_len": model.max_model_len,
            "trust_remote_code": model.trust_remote_code,
            "load_format": "safetensors",  # a pickle could run code when it is read
            "seed": seed % 2**32,
            "disable_log_stats": True,
            "weight_transfer_config": WeightTransferConfig(backend=backend),
        }
        if not workers.num_gpus:
            # vLLM's CPU runner cannot rewind a request's seeded generator after a partial
            # prefill ("CPU Generator does not use offset"), so prefills are not split.
            settings["enable_chunked_prefill"] = False
            settings["max_num_batched_tokens"] = max(_CPU_BATCH_TOKENS, model.max_model_len)
        if taken := sorted(settings.keys() & workers.vllm.keys()):
            raise ConfigError(f"`workers.vllm`: {', '.join(taken)} are set by rise-ray itself")
        try:
            arguments = EngineArgs(**{**settings, **workers.vllm})
        except TypeError as error:
            raise ConfigError(f"`workers.vllm`: {error}") from error
        try:
            with temporary_files():
                self.llm = LLMEngine.from_engine_args(arguments)
        except ValueError as error:
            # A pydantic error cannot be sent to the pool: its messages can.
            found = error.errors() if isinstance(error, ValidationError) else [{"msg": str(error)}]
            text = "; ".join(" ".join(problem["msg"].split()) for problem in found)
            raise RuntimeError(f"vLLM refuses its settings: {text}") from error
        self.tokens = 0
        """Generated so far, those of unfinished responses included."""
        self._count_tokens()

    @property
    def busy(self) -> bool:
        """Whether a request is under way."""
        return bool(self.llm.has_unfinished_requests())

    def submit(
        self, key: str, request: Request, sampling: SamplingConfig, end_of_turn: int
    ) -> None:
        """Queue a request under a key of the caller's; sample i of n has the seed `seed + i`.

        A response ends with the token `end_of_turn`, which a base model's own list of
        end-of-sequence tokens may lack, or with a token of that list.
        """
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            n=request.n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            seed=request.seed,
            stop_token_ids=[end_of_turn],
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self.llm.add_request(key, tokens_input(list(request.prompt_ids)), params)

    def step(self) -> list[tuple[str, list[Completion]]]:
        """One engine step: the requests that it finished, each with its n completions."""
        finished = []
        for output in self.llm.step():
            if not output.finished:
                continue
            completions = [
                _completion(output.request_id, sample.token_ids, sample.finish_reason)
                for sample in sorted(output.outputs, key=lambda sample: sample.index)
            ]
            finished.append((output.request_id, completions))
        return finished

    def _count_tokens(self) -> None:
        """Count tokens as the core makes them: a finished request may be minutes away."""
        core = self.llm.engine_core
        get_output = core.get_output

        def counted() -> EngineCoreOutputs:
            outputs = get_output()
            self.tokens += sum(len(output.new_token_ids) for output in outputs.outputs)
            return outputs

        core.get_output = counted


def _completion(key: str, token_ids: Sequence[int], finish_reason: str | None) -> Completion:
    try:
        reason = FinishReason(str(finish_reason))
    except ValueError:
        raise RuntimeError(f"vLLM ended request {key} with `{finish_reason}`") from None
    return Completion(tuple(token_ids), reason)
