"""A small training, and what its checkpoint has to be."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from rise_ray.config.settings import TrainConfig
from rise_ray.mdp import Example
from rise_ray.store.files import Folder
from rise_ray.train.job import TrainJob

CONFIG = TrainConfig(
    workers=2,
    epochs=2,
    lr=2e-3,
    min_lr_ratio=0.1,
    warmup_ratio=0.1,
    weight_decay=0.01,
    batch_tokens=512,
    row_tokens=64,
    rows_per_pass=2,  # two accumulated passes of each rank in a step
    grad_clip=0.5,
)
CHAT_TEMPLATE = "{% for m in messages %}({{ m.content }}){% endfor %}"
PARITY = ((5, 9, 30, 77, 12), (100, 101, 3))


def make_job(tmp_path: Path, base: Path, examples: Folder, **changes: object) -> TrainJob:
    job = TrainJob(
        name="iteration=1",
        config=CONFIG,
        base=str(base),
        examples=examples.uri,
        output=str(tmp_path / "output"),
        storage=str(tmp_path / "storage"),
        seed=3,
        token_budget=None,
        dtype="auto",
        trust_remote_code=False,
        parity_sequences=PARITY,
        chat_template=CHAT_TEMPLATE,
        card={"Rule": "better"},
        log=None,
    )
    return replace(job, **changes)


def load(job: TrainJob) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(job.output)


def logprobs_of(model: torch.nn.Module) -> list[list[float]]:
    found = []
    for sequence in PARITY:
        ids = torch.tensor([sequence])
        with torch.no_grad():
            logprobs = torch.log_softmax(model(input_ids=ids).logits[0, :-1].float(), dim=-1)
        found.append(logprobs.gather(1, ids[0, 1:, None]).squeeze(1).tolist())
    return found


WriteExamples = Callable[[list[Example]], Folder]


def check_folder(job: TrainJob) -> None:
    """A complete Hugging Face folder whose parity file tells the truth about its weights."""
    parity = json.loads(Folder(job.output).read("parity.json"))
    assert parity["sequences"] == [list(sequence) for sequence in PARITY]
    for found, expected in zip(parity["logprobs"], logprobs_of(load(job)), strict=True):
        assert found == pytest.approx(expected, abs=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(job.output)
    said = tokenizer.apply_chat_template([{"role": "user", "content": "w5"}], tokenize=False)
    assert said == "(w5)"  # the job's template, not the base's
    assert GenerationConfig.from_pretrained(job.output).eos_token_id == 1
    card = Folder(job.output).read("README.md").decode()
    assert "| Rule | better |" in card
