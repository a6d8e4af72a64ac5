"""vLLM in this process: add requests, step, collect what finished.

The engine core runs in the caller's process (`VLLM_ENABLE_V1_MULTIPROCESSING=0`), so that a
finished turn starts its next turn before the engine's next step, and one actor is one engine.
A process can host one engine only.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from rise_ray.cluster.cleanup import temporary_files, temporary_folder
from rise_ray.cluster.imports import uncollected
from rise_ray.config.settings import ModelConfig, WorkersConfig
from rise_ray.errors import ConfigError
from rise_ray.mdp import FinishReason
from rise_ray.models.locate import resolve_dtype
from rise_ray.rollout.requests import Completion, EngineRequest, Sample, ScoreLabels, ScoreSpans

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput, RequestOutput
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
_ONE_TOKEN: dict[str, Any] = {"temperature": 0.0, "max_tokens": 1}


class Engine:
    """One vLLM engine of the model in a local Hugging Face folder, or of a hub name.

    `backend` is the weight-transfer backend that `rise_ray.sync` will use; `seed` is of sampling
    without a request seed.

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
        with uncollected():
            if not workers.num_gpus and workers.vllm.get("enforce_eager"):
                # Or vLLM's first probe compiles a sum of comparisons, in 4 s, in each process.
                off = os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
                import torch._dynamo

                torch._dynamo.config.disable = off == "1"
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
            "logprobs_mode": "raw_logprobs",  # before temperature: scores are of the model itself
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
        self._requests: dict[str, EngineRequest] = {}
        self.tokens = 0
        """Generated so far, those of unfinished responses included."""
        self._watch_core()

    @property
    def busy(self) -> bool:
        return bool(self.llm.has_unfinished_requests())

    def submit(self, key: str, request: EngineRequest, end_of_turn: int) -> None:
        """Queue a request under a key of the caller's.

        A response ends with the token `end_of_turn`, which a base model's own list of
        end-of-sequence tokens may lack, with a token of that list, or with one of the request's.
        """
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind

        match request:
            case Sample():
                ids = (*request.state_ids, *request.opening_ids)
                settings = {
                    "n": request.n,
                    "temperature": request.sampling.temperature,
                    "top_p": request.sampling.top_p,
                    "max_tokens": request.sampling.max_tokens,
                    "seed": request.seed,
                    "stop_token_ids": [end_of_turn, *request.stop],
                    "logprobs": 0,  # of the sampled token only
                }
            case ScoreLabels():
                ids = request.state_ids
                settings = _ONE_TOKEN | {"logprob_token_ids": list(request.labels)}
            case ScoreSpans():
                ids, settings = request.ids, _ONE_TOKEN | {"prompt_logprobs": 0}
        params = SamplingParams(
            **settings, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
        )
        self.llm.add_request(key, tokens_input(list(ids)), params)
        self._requests[key] = request

    def step(self) -> list[tuple[str, list[Any]]]:
        """One engine step: the requests that it finished, each with its reply."""
        finished = []
        for output in self.llm.step():
            if output.finished:
                request = self._requests.pop(output.request_id)
                finished.append((output.request_id, _reply(request, output)))
        return finished

    def _watch_core(self) -> None:
        """Take from the core's outputs what vLLM would give late, or at a price.

        Tokens are counted as they come: a finished request may be minutes away. The
        log-probabilities of sampled tokens are summed here, for 2% of a small model's tokens/s on
        a CPU; vLLM's own object for each token costs 10%.
        """
        core, states = self.llm.engine_core, self.llm.output_processor.request_states
        get_output = core.get_output

        def watched() -> EngineCoreOutputs:
            outputs = get_output()
            for output in outputs.outputs:
                self.tokens += len(output.new_token_ids)
                if output.new_logprobs is None:
                    continue
                processor = states[output.request_id].logprobs_processor
                if processor.num_logprobs == 0:  # of the sampled token only
                    processor.cumulative_logprob += float(output.new_logprobs.logprobs[:, 0].sum())
                    output.new_logprobs = None
            return outputs

        core.get_output = watched


def _reply(request: EngineRequest, output: RequestOutput) -> list[Any]:
    samples = sorted(output.outputs, key=lambda sample: sample.index)
    reasons = [_finish_reason(output.request_id, sample) for sample in samples]
    match request:
        case Sample():
            return [
                Completion(tuple(sample.token_ids), reason, sample.cumulative_logprob)
                for sample, reason in zip(samples, reasons, strict=True)
            ]
        case ScoreLabels():
            at = samples[0].logprobs[0]
            return _renormalised([at[label].logprob for label in request.labels])
        case ScoreSpans():
            positions = zip(request.ids[1:], output.prompt_logprobs[1:], strict=True)
            logprobs = [at[token].logprob for token, at in positions]
            return [math.fsum(logprobs[start - 1 : end - 1]) for start, end in request.spans]


def _finish_reason(key: str, sample: CompletionOutput) -> FinishReason:
    try:
        return FinishReason(str(sample.finish_reason))
    except ValueError:
        raise RuntimeError(f"vLLM ended request {key} with `{sample.finish_reason}`") from None


def _renormalised(logprobs: Sequence[float]) -> list[float]:
    """Log-probabilities among these alone."""
    most = max(logprobs)
    total = most + math.log(math.fsum(math.exp(value - most) for value in logprobs))
    return [value - total for value in logprobs]
