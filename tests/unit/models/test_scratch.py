"""A model from nothing is an ordinary Hugging Face folder that chats over several turns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rise_ray.config.settings import ScratchConfig
from rise_ray.errors import ConfigError
from rise_ray.models.scratch import END, make_scratch_model
from rise_ray.rollout.chat import ChatFormat, load_tokenizer
from rise_ray.tasks.countdown import Countdown

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "tie_word_embeddings": False,
}
TEXTS = ["What is 3 + 4 ? It is 7 ."] * 10


def _make(folder: Path, seed: int = 0, **settings: Any) -> Path:
    scratch = ScratchConfig(**{"architecture": LLAMA, **settings})
    make_scratch_model(scratch, Countdown().vocabulary(), TEXTS, 64, seed, folder)
    return folder


def test_the_folder_loads_with_the_tokenizers_own_sizes_and_ids(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = _make(tmp_path / "model")
    tokenizer = load_tokenizer(str(folder), None, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.max_position_embeddings == 64
    end = tokenizer.convert_tokens_to_ids(END)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == end
    assert ChatFormat(tokenizer, "model").end_of_turn == end
    assert str(model.dtype) == "torch.float32"


def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    weights = [
        (_make(tmp_path / name, seed) / "model.safetensors").read_bytes()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert weights[0] == weights[1] != weights[2]


def test_a_word_tokenizer_gives_every_word_of_the_task_one_token(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(_make(tmp_path / "model")), None, trust_remote_code=False)
    chat, task = ChatFormat(tokenizer, "model"), Countdown()
    problem = task.load("dev")[0]
    (message,) = task.prompt(problem)
    ids = chat.prompt_ids([message])
    assert len(ids) == len(message.content.split()) + 3  # user, end, assistant
    assert tokenizer.unk_token_id not in ids
    feedback = chat.feedback_ids([message], task.feedback(problem), ())
    assert tokenizer.unk_token_id not in feedback


def test_a_bpe_tokenizer_keeps_any_text(tmp_path: Path) -> None:
    folder = _make(tmp_path / "model", tokenizer="bpe", vocab_size=300)
    tokenizer = load_tokenizer(str(folder), None, trust_remote_code=False)
    text = " Žluťoučký\n\tkůň 🐎 <|x|>"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    config = json.loads((folder / "config.json").read_text())
    assert config["vocab_size"] == len(tokenizer) <= 300


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({}, "`model.scratch.architecture.model_type`: missing"),
        ({"model_type": "no-such-model"}, "no-such-model"),
    ],
)
def test_an_architecture_that_is_unknown_is_an_error_of_the_config(
    tmp_path: Path, architecture: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        _make(tmp_path, architecture=architecture)


def test_a_word_tokenizer_needs_a_closed_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="closed vocabulary; use `bpe`"):
        make_scratch_model(ScratchConfig(architecture=LLAMA), None, TEXTS, 64, 0, tmp_path)
