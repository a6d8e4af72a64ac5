"""Multi-turn episodes through the pool against bare `LLM.generate` with a barrier each turn.

    python jobs/benchmarks/run.py rollout [--quick]

Generated tokens a second. Baseline: as many processes as the pool has workers, each with vLLM's
`LLM` in it and half of the problems; a turn is one call of `generate` for all of them, and nothing
is verified. rise-ray's side leases, verifies, and starts each turn when its attempt is checked.
Both have the same model, engine settings and threads; they take turns, and the ratio is of medians.

`rollout` has the quick start's model, which ends its answers itself. `rollout_varied` has a random
model that hardly does, so that a problem's `max_tokens`, 10 to 100, is the length of its answers.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
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
from rise_ray.models.locate import locate_tokenizer, shared_model
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
PROCESSES, CANDIDATES, ROUNDS = 2, 8, 3
VLLM = {"enforce_eager": True, "max_num_seqs": 1024, "block_size": 64}
WORKERS = WorkersConfig(
    min_workers=PROCESSES,
    max_workers=PROCESSES,
    num_cpus=0.3,
    episodes_in_flight=128,
    vllm=VLLM,
)
LENGTHS = (10, 18, 32, 56, 100)
RANDOM = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
CASES = {  # name: turns, max_model_len, max_tokens, goal
    "rollout": (5, 256, (28,), 1.0),
    "rollout_varied": (3, 512, LENGTHS, 1.2),
}


def run(quick: bool) -> list[dict[str, Any]]:
    """One record for each case."""
    if not ray.is_initialized():
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    with tempfile.TemporaryDirectory() as path:
        size = (60, 1) if quick else (250, ROUNDS)
        return [_measure(name, *size, Path(path) / name) for name in CASES]


def _measure(name: str, problems: int, rounds: int, folder: Path) -> dict[str, Any]:
    turns, max_model_len, lengths, goal = CASES[name]
    path = "package:countdown-base" if name == "rollout" else _random_model(folder, max_model_len)
    model = ModelConfig(path=path, max_model_len=max_model_len)
    chat = load_chat(locate_tokenizer(shared_model(path)), model, path)
    specs = _specs(chat, problems, turns, max_model_len, lengths)
    pool = _pool(model, chat, specs, folder / "parity")
    host: Any = ray.remote(num_cpus=0.3, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})(_Bare)
    bare = [host.remote(shared_model(path), max_model_len) for _ in range(PROCESSES)]
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
        "baseline": f"LLM.generate in {PROCESSES} processes, a barrier a turn, no verification",
        "baseline_tokens_per_s": round(baseline_rate),
        "goal": f">= {goal}",
        "holds": rate / baseline_rate >= goal,
        "problems": problems,
    }


def _specs(
    chat: ChatFormat, problems: int, turns: int, max_model_len: int, lengths: Sequence[int]
) -> list[EpisodeSpec]:
    plan = EpisodePlan(
        run="benchmark",
        place=Place("iteration", 1, "collect"),
        seed=0,
        sampling=SamplingConfig(max_tokens=max(lengths)),
        max_model_len=max_model_len,
        turns=turns,
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
    model: ModelConfig, chat: ChatFormat, specs: Sequence[EpisodeSpec], parity: Path
) -> RolloutPool:
    def probe(_: ChatFormat) -> tuple[tuple[int, ...], ...]:
        chats = [(chat.prompt_ids(s.prompt), _reference(chat, s.problem)) for s in specs[:8]]
        return parity_sequences(chats, model.max_model_len)

    version = given_model(model, Folder(str(parity)))
    verifiers = start_verifiers(TASK, VerifyConfig())
    pool = RolloutPool(version, model, WORKERS, SyncConfig(), verifiers, 0)
    add_reference(version, model, WORKERS, ReferenceConfig(), probe, 600.0, pool.start)
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

    def __init__(self, path: str, max_model_len: int) -> None:
        os.environ |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_LOGGING_LEVEL": "ERROR",
        }
        from vllm import LLM

        self._llm = LLM(model=path, max_model_len=max_model_len, dtype="float32", **VLLM)
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


def _random_model(folder: Path, max_model_len: int) -> str:
    from rise_ray.models.scratch import make_scratch_model

    scratch = ScratchConfig(tokenizer="word", architecture=RANDOM)
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
