"""Multi-turn episodes through the pool against bare `LLM.generate` with a barrier each turn.

    python jobs/benchmarks/run.py rollout [--quick]

Generated tokens a second. Baseline: as many processes as the pool has workers, each with vLLM's
`LLM` in it and half of the problems; a turn is one call of `generate` for all of them, and nothing
is verified. rise-ray's side leases, verifies, and starts each turn when its attempt is checked.
Both have the same model, engine settings and threads; they take turns, and the ratio is of medians.

`rollout` has the quick start's model, which ends its answers itself. `rollout_varied` has a random
model that hardly does, so that a problem's `max_tokens`, 10 to 100, is the length of its answers.

Where Ray finds a GPU, both sides have a share of it and one process, decode by CUDA graphs, and
`rollout_varied` has a model of Llama 3.2 1B's width with answers five times as long.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray

from rise_ray.config.settings import (
    ModelConfig,
    ReferenceConfig,
    SamplingConfig,
    ScratchConfig,
    SyncConfig,
    TaskConfig,
    VerifyConfig,
    WorkersConfig,
)
from rise_ray.mdp import Place, Problem
from rise_ray.models.locate import locate_tokenizer, resolve_dtype, shared_model
from rise_ray.rollout.chat import ChatFormat, load_chat
from rise_ray.rollout.collect import specs_for
from rise_ray.rollout.episode import EpisodePlan, EpisodeSpec
from rise_ray.rollout.pool import RolloutPool
from rise_ray.run.actors import add_reference, given_model
from rise_ray.store.files import Folder
from rise_ray.sync.parity import parity_sequences
from rise_ray.tasks import load_task
from rise_ray.tasks.countdown import Countdown
from rise_ray.verify.actor import start_verifiers

TASK = TaskConfig(name="countdown")
CANDIDATES, ROUNDS = 8, 3
VLLM = {"max_num_seqs": 1024, "block_size": 64}
ON_CPU = WorkersConfig(
    min_workers=2,
    max_workers=2,
    num_cpus=0.3,
    episodes_in_flight=128,
    vllm=VLLM | {"enforce_eager": True},
)
GRAPHS = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}  # without torch.compile
ON_GPU = WorkersConfig(
    min_workers=1,
    max_workers=1,
    num_gpus=0.5,
    episodes_in_flight=128,
    vllm=VLLM | {"kv_cache_memory_bytes": 8 * 2**30, "compilation_config": GRAPHS},
)
RANDOM = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
LARGER = RANDOM | {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


@dataclass(frozen=True)
class Case:
    """What is asked of which model; without a model, the quick start's."""

    turns: int
    max_model_len: int
    max_tokens: tuple[int, ...]
    goal: float
    model: dict[str, Any] | None = None


VARIED = Case(3, 512, (10, 18, 32, 56, 100), 1.2, RANDOM)


def cases(on_gpu: bool) -> dict[str, Case]:
    """By name."""
    varied = replace(VARIED, max_model_len=2048, max_tokens=(50, 90, 160, 280, 500), model=LARGER)
    return {
        "rollout": Case(5, 256, (28,), 1.0),
        "rollout_varied": varied if on_gpu else VARIED,
    }


def run(quick: bool) -> list[dict[str, Any]]:
    """One record for each case."""
    if not ray.is_initialized():
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    on_gpu = ray.cluster_resources().get("GPU", 0) > 0
    workers = ON_GPU if on_gpu else ON_CPU
    size = (60, 1) if quick else (250, ROUNDS)
    with tempfile.TemporaryDirectory() as path:
        return [
            _measure(name, case, workers, *size, Path(path) / name)
            for name, case in cases(on_gpu).items()
        ]


def _measure(
    name: str, case: Case, workers: WorkersConfig, problems: int, rounds: int, folder: Path
) -> dict[str, Any]:
    path = "package:countdown-base"
    if case.model is not None:
        path = _random_model(case.model, folder, case.max_model_len)
    model = ModelConfig(path=path, max_model_len=case.max_model_len)
    chat = load_chat(locate_tokenizer(shared_model(path)), model, path)
    specs = _specs(chat, problems, case)
    pool = _pool(model, workers, chat, specs, folder / "parity")
    bare = [
        ray.remote(
            num_cpus=workers.num_cpus,
            num_gpus=workers.num_gpus,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
        )(_Bare).remote(shared_model(path), model, workers)
        for _ in range(workers.max_workers)
    ]
    ours, baseline = [], []
    for seed in range(1 + rounds):  # the first is to warm up
        seeded = [replace(spec, plan=replace(spec.plan, seed=seed)) for spec in specs]
        ours.append(_rate(lambda s=seeded: _pooled(pool, s)))  # type: ignore[misc]
        baseline.append(_rate(lambda s=seeded: _barriers(bare, s)))  # type: ignore[misc]
    pool.release()
    for process in bare:
        ray.kill(process)
    rate, baseline_rate = (statistics.median(rates[1:]) for rates in (ours, baseline))
    return {
        "name": name,
        "ratio": round(rate / baseline_rate, 3),
        "tokens_per_s": round(rate),
        "baseline": f"LLM.generate in {len(bare)} processes, a barrier a turn, no verification",
        "baseline_tokens_per_s": round(baseline_rate),
        "goal": f">= {case.goal}",
        "holds": rate / baseline_rate >= case.goal,
        "problems": problems,
    }


def _specs(chat: ChatFormat, problems: int, case: Case) -> list[EpisodeSpec]:
    lengths = case.max_tokens
    plan = EpisodePlan(
        run="benchmark",
        place=Place("iteration", 1, "collect"),
        seed=0,
        sampling=SamplingConfig(max_tokens=max(lengths)),
        max_model_len=case.max_model_len,
        turns=case.turns,
        candidates=CANDIDATES,
    )
    specs = specs_for(plan, load_task(TASK), chat, Countdown().load("train")[:problems], 1)
    return [
        replace(
            spec,
            plan=replace(plan, sampling=SamplingConfig(max_tokens=lengths[n % len(lengths)])),
        )
        for n, spec in enumerate(specs)
    ]


def _pool(
    model: ModelConfig,
    workers: WorkersConfig,
    chat: ChatFormat,
    specs: Sequence[EpisodeSpec],
    parity: Path,
) -> RolloutPool:
    def probe(_: ChatFormat) -> tuple[tuple[int, ...], ...]:
        chats = [(chat.prompt_ids(s.prompt), _reference(chat, s.problem)) for s in specs[:8]]
        return parity_sequences(chats, model.max_model_len)

    version = given_model(model, Folder(str(parity)))
    verifiers = start_verifiers(TASK, VerifyConfig())
    pool = RolloutPool(version, model, workers, SyncConfig(), verifiers, 0)
    add_reference(version, model, workers, ReferenceConfig(), probe, 600.0, pool.start)
    pool.wait_ready()
    return pool


def _reference(chat: ChatFormat, problem: Problem) -> tuple[int, ...]:
    return chat.response_ids(Countdown().reference_response(problem) or problem.reference)


def _pooled(pool: RolloutPool, specs: Sequence[EpisodeSpec]) -> int:
    return sum(
        len(response.token_ids)
        for trajectory in pool.roll(specs)
        for turn in trajectory.turns
        for response in (turn.attempt, *turn.candidates)
    )


def _barriers(hosts: Sequence[Any], specs: Sequence[EpisodeSpec]) -> int:
    shares = [specs[number :: len(hosts)] for number in range(len(hosts))]
    return sum(ray.get([h.roll.remote(share) for h, share in zip(hosts, shares, strict=True)]))


def _rate(work: Callable[[], int]) -> float:
    started = time.perf_counter()
    tokens = work()
    return tokens / (time.perf_counter() - started)


class _Bare:
    """vLLM's `LLM`, in this process like rise-ray's engine."""

    def __init__(self, path: str, model: ModelConfig, workers: WorkersConfig) -> None:
        os.environ |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_LOGGING_LEVEL": "ERROR",
        }
        from vllm import LLM

        dtype = resolve_dtype(model.dtype, workers.num_gpus)
        self._llm = LLM(path, max_model_len=model.max_model_len, dtype=dtype, **workers.vllm)
        self._tokenizer = self._llm.get_tokenizer()

    def roll(self, specs: Sequence[EpisodeSpec]) -> int:
        """All turns of the episodes; the tokens that were generated."""
        from vllm import SamplingParams

        chats: list[list[dict[str, Any]]] = [[asdict(m) for m in spec.prompt] for spec in specs]
        tokens = 0
        for _ in range(specs[0].plan.turns):
            prompts = [
                {
                    "prompt_token_ids": self._tokenizer.apply_chat_template(
                        chat, add_generation_prompt=True, return_dict=False
                    )
                }
                for chat in chats
            ]
            params = [
                SamplingParams(n=1 + CANDIDATES, max_tokens=spec.plan.sampling.max_tokens)
                for spec in specs
            ]
            done = self._llm.generate(prompts, params, use_tqdm=False)
            for spec, chat, request in zip(specs, chats, done, strict=True):
                tokens += sum(len(output.token_ids) for output in request.outputs)
                feedback = spec.feedback.text(spec.problem, None)  # type: ignore[arg-type]
                chat += [
                    {"role": "assistant", "content": request.outputs[0].text},
                    {"role": "user", "content": feedback},
                ]
        return tokens


def _random_model(architecture: dict[str, Any], folder: Path, max_model_len: int) -> str:
    from rise_ray.models.scratch import make_scratch_model

    scratch = ScratchConfig(tokenizer="word", architecture=architecture)
    folder.mkdir(parents=True)
    words, model = Countdown().vocabulary(), folder / "model"
    make = ray.remote(num_cpus=1, max_calls=1)(make_scratch_model)
    ray.get(make.remote(scratch, words, [], max_model_len, 0, model))
    return str(model)


if __name__ == "__main__":
    import json
    import sys

    for record in run(quick="--quick" in sys.argv):
        print(json.dumps(record))
