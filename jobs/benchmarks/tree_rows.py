"""Training with shared prefixes computed once, against separate packed rows.

    python jobs/benchmarks/run.py tree_rows [--quick]

Useful tokens a second. Both sides train the same examples in steps of as many of them, on one rank,
with DeepSpeed's ZeRO-3, from batches in memory; they take turns, and the ratio is of medians.

The examples are of the quick start's shape: trajectories of 5 turns without a window, one or two
responses kept at each state. The models are the quick start's, and one of SmolLM2's width with
fewer layers.

Where torch sees a GPU, the sides train on it in bfloat16, and instead of the small models one of
Llama 3.2 1B's width learns from texts of a usual length, with each attention that trees can have.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

VOCABULARY = 128
ROUNDS = 5


@dataclass(frozen=True)
class Texts:
    """Tokens of a trajectory's parts; responses have between two numbers of them."""

    prompt: int
    response: tuple[int, int]
    feedback: int
    turns: int = 5


@dataclass(frozen=True)
class Case:
    """A model (Llama's settings), its texts, and how both sides train it."""

    model: dict[str, int]
    texts: Texts
    batch_tokens: int
    separate: dict[str, Any]
    trees: dict[str, Any]
    trajectories: int
    steps: int
    """Of a round."""
    goal: float
    num_gpus: int = 0


SHORT = Texts(prompt=16, response=(14, 24), feedback=12)
BATCH_TOKENS = 2048
SEPARATE = {"row_tokens": 256, "rows_per_pass": 4, "shared_prefixes": False}
TREES: dict[str, Any] = {"row_tokens": 512, "rows_per_pass": 2, "shared_prefixes": True}
COUNTDOWN = Case(
    {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    },
    *(SHORT, BATCH_TOKENS, SEPARATE, TREES),
    trajectories=360,
    steps=12,
    goal=1.7,
)
SMOL = replace(
    COUNTDOWN,
    model={
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 6,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    trajectories=170,
    steps=3,
    goal=2.1,
)
LLAMA = Case(
    {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 8,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    Texts(prompt=150, response=(150, 450), feedback=30),
    batch_tokens=65_536,
    separate={"row_tokens": 4096, "rows_per_pass": 4, "shared_prefixes": False},
    trees={"row_tokens": 4096, "rows_per_pass": 4, "shared_prefixes": True},
    trajectories=120,
    steps=3,
    goal=2.1,
    num_gpus=1,
)
FLEX = {"attn_implementation": "flex_attention"}
ON_CPU = {"tree_rows_countdown": COUNTDOWN, "tree_rows_hidden_576": SMOL}
ON_GPU = {
    "tree_rows_hidden_2048": LLAMA,
    "tree_rows_hidden_2048_flex": replace(LLAMA, trees=LLAMA.trees | FLEX),
}


def run(quick: bool) -> list[dict[str, Any]]:
    """One record for each case; models have fewer layers if `quick`."""
    import torch

    cases = ON_GPU if torch.cuda.is_available() else ON_CPU
    return [_measure(name, case, quick) for name, case in cases.items()]


def _measure(name: str, case: Case, quick: bool) -> dict[str, Any]:
    model = case.model
    if quick and case is not COUNTDOWN:
        model = {**model, "num_hidden_layers": 2}
    with tempfile.TemporaryDirectory() as path:
        _make_model(Path(path) / "model", model)
        examples = random_examples(case.trajectories, random.Random(0), case.texts)
        separate, trees = (
            Side(Path(path), f"{path}/model", examples, rows, case.batch_tokens, case.num_gpus)
            for rows in (case.separate, case.trees)
        )
        for side in (separate, trees):
            side.take(1)  # what is made once, is made here
        rates: dict[Side, list[float]] = {separate: [], trees: []}
        for _ in range(ROUNDS):
            for side, found in rates.items():
                found.append(side.take(case.steps))
    ratio = statistics.median(rates[trees]) / statistics.median(rates[separate])
    return {
        "name": name,
        "ratio": round(ratio, 3),
        "tokens_per_s": round(statistics.median(rates[trees])),
        "baseline": "separate packed rows",
        "baseline_tokens_per_s": round(statistics.median(rates[separate])),
        "goal": f">= {case.goal}",
        "holds": ratio >= case.goal,
        "tokens_per_computed_token": round(trees.saving, 3),
    }


class Side:
    """A training on one rank, its batches in memory."""

    def __init__(
        self,
        path: Path,
        base: str,
        examples: list[Any],
        rows: dict[str, Any],
        batch_tokens: int = BATCH_TOKENS,
        num_gpus: int = 0,
    ) -> None:
        from rise_ray.config.settings import TrainConfig
        from rise_ray.store.examples import PartLengths, examples_to_table
        from rise_ray.train.deepspeed_config import batch_sizes, deepspeed_config
        from rise_ray.train.engine import start_engine
        from rise_ray.train.job import TrainJob
        from rise_ray.train.packing import choose_layout, plan_epochs
        from rise_ray.train.rows import fill_rows

        self._device = "cuda" if num_gpus else "cpu"
        _join(path, self._device)
        config = TrainConfig(
            workers=1, num_gpus=num_gpus, batch_tokens=batch_tokens, lr=1e-4, **rows
        )
        table = examples_to_table(examples)
        names = ("tokens", "loss_tokens", "shared_tokens")
        lengths = [PartLengths(*(table[n].to_numpy().astype("int64") for n in names))]
        layout = choose_layout(
            lengths,
            batch_tokens=config.batch_tokens,
            row_tokens=config.row_tokens,
            workers=1,
            shared_prefixes=config.shared_prefixes,
        )
        self._plan = plan_epochs(lengths, layout, epochs=1, seed=0)
        self._at_once = self._plan.rows_at_once(1, config.rows_per_pass)
        sizes = batch_sizes(self._plan.rows_per_step, self._at_once, 1)
        job: Any = TrainJob(
            name="benchmark",
            config=config,
            base=base,
            examples="",
            output="",
            storage="",
            seed=0,
            token_budget=None,
            dtype="auto",
            trust_remote_code=False,
            parity_sequences=(),
            chat_template="",
            card={},
        )
        self._engine, self._keep_alive = start_engine(
            job, deepspeed_config(config) | sizes, self._plan
        )
        (part,) = self._plan.parts
        wanted, tokens = range(part.rows), self._plan.row_tokens
        self._rows = fill_rows(table, part, wanted, tokens, 1.0, self._plan.trees)
        self._step = 0

    @property
    def saving(self) -> float:
        """Useful tokens a token that is computed."""
        return float(self._plan.tokens.sum() / self._plan.computed_tokens.sum())

    def take(self, steps: int) -> float:
        """Useful tokens a second of the next steps."""
        import torch

        started, tokens = time.perf_counter(), 0
        for _ in range(steps):
            at = self._step % (self._plan.steps - 1)  # the last is not a whole one
            for batch in self._passes(at):
                loss = self._engine(*batch) / float(self._plan.loss_tokens[at])
                self._engine.backward(loss, scale_wrt_gas=False)
                self._engine.step()
            tokens += int(self._plan.tokens[at])
            self._step += 1
        if self._device == "cuda":
            torch.cuda.synchronize()
        return tokens / (time.perf_counter() - started)

    def _passes(self, step: int) -> Iterator[list[Any]]:
        from rise_ray.train.loop import tensors
        from rise_ray.train.rows import COLUMNS, RowBatch

        first, rows = step * self._plan.rows_per_step, self._plan.rows_per_step
        for at in range(first, first + rows, self._at_once):
            columns = (getattr(self._rows, name)[at : at + self._at_once] for name in COLUMNS)
            yield tensors(RowBatch(*columns), self._engine.module.takes_joined, self._device)


def _join(path: Path, device: str) -> None:
    import torch.distributed as dist

    os.environ |= {"DS_ACCELERATOR": device, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    if not dist.is_initialized():
        backend, meeting = "nccl" if device == "cuda" else "gloo", f"file://{path}/ranks"
        dist.init_process_group(backend, init_method=meeting, rank=0, world_size=1)


def random_examples(trajectories: int, rng: random.Random, texts: Texts = SHORT) -> list[Any]:
    from rise_ray.mdp import Example, Place, Provenance, Span

    def draw(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(VOCABULARY) for _ in range(count))

    made = []
    for number in range(trajectories):
        state, rows = draw(texts.prompt), []
        for _ in range(texts.turns):
            for _ in range(rng.choice((1, 1, 2))):
                response = draw(rng.randint(*texts.response))
                rows.append((state + response, len(state)))
            state = state + draw(rng.randint(*texts.response) + texts.feedback)
        place = Place("iteration", 1, "collect")
        origin = Provenance("candidate", "b", f"t{number}", "p", place, 0, 0, 1.0, 0, 0, "")
        for i, (ids, start) in enumerate(sorted(rows)):
            spans = (Span(start, len(ids), rng.uniform(0.2, 3)),)
            made.append(Example(f"t{number}/{i}", ids, spans, origin))
    return made


def _make_model(folder: Path, shape: dict[str, int]) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **shape, vocab_size=VOCABULARY, max_position_embeddings=8192, tie_word_embeddings=False
    )
    LlamaForCausalLM(config).save_pretrained(folder)


if __name__ == "__main__":
    import json
    import sys

    from rise_ray.train.engine import quiet_libraries

    quiet_libraries()
    for record in run(quick="--quick" in sys.argv):
        print(json.dumps(record))
