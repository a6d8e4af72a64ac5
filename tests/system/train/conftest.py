"""A tiny random Llama with its tokenizer, and examples for it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rise_ray.mdp import Example, Place, Provenance, Span
from rise_ray.store.examples import write_example_parts
from rise_ray.store.files import Folder

VOCABULARY = 127


def tiny_config(**changes: object) -> object:
    from transformers import LlamaConfig

    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    return LlamaConfig(**(settings | changes))


def write_model(folder: Path, **changes: object) -> Path:
    """A random Llama and a word-level tokenizer with a chat template."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    LlamaForCausalLM(tiny_config(**changes)).save_pretrained(folder)
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>"])}
    words |= {f"w{i}": i for i in range(len(words), VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    fast.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
    fast.save_pretrained(folder)
    return folder


def make_examples(count: int, longest: int = 40, seed: int = 0) -> list[Example]:
    """Random examples with one or two spans and weights of 0.2 to 3."""
    rng = random.Random(seed)
    return [_example(rng, number, longest) for number in range(count)]


def _example(rng: random.Random, number: int, longest: int) -> Example:
    length = rng.randint(6, longest)
    cut = rng.randint(2, length - 3)
    spans = [Span(cut + 1, length, rng.uniform(0.2, 3.0))]
    if rng.random() < 0.5:
        spans.insert(0, Span(0, cut, rng.uniform(0.2, 3.0)))
    provenance = Provenance(
        source="demonstration",
        rule="test",
        trajectory_id=f"t{number}",
        problem_id=f"p{number}",
        place=Place("iteration", 0, "collect"),
        turn=0,
        candidate=-1,
        reward=1.0,
        seed=number,
        weight_version=-1,
        verifier_version="",
    )
    ids = tuple(rng.randrange(3, VOCABULARY) for _ in range(length))
    return Example(f"e{number}", ids, tuple(spans), provenance)


def branch(example: Example, count: int, longest: int = 40) -> list[Example]:
    """So many examples of its trajectory, itself one of them, that begin as it does."""
    rng = random.Random(example.id)
    made = [example]
    for number in range(1, count):
        kept = rng.randint(2, len(example.input_ids) - 2)
        tail = [rng.randrange(3, VOCABULARY) for _ in range(rng.randint(2, longest - kept))]
        ids = (*example.input_ids[:kept], *tail)
        spans = (Span(kept - 1, len(ids), rng.uniform(0.2, 3.0)),)  # one shared token, too
        made.append(replace(example, id=f"{example.id}/{number}", input_ids=ids, spans=spans))
    return made


@pytest.fixture(name="branch")
def _branch() -> Callable[..., list[Example]]:
    return branch


@pytest.fixture(name="make_examples")
def _make_examples() -> Callable[..., list[Example]]:
    return make_examples


@pytest.fixture(name="write_model")
def _write_model() -> Callable[..., Path]:
    return write_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def examples_folder(tmp_path: Path) -> Callable[[list[Example]], Folder]:
    def write(examples: list[Example]) -> Folder:
        folder = Folder(str(tmp_path / "examples"))
        write_example_parts(folder, examples, seed=0)
        return folder

    return write
