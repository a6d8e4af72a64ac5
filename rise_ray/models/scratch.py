"""A small model from nothing: its tokenizer, its chat template, its random weights.

For warm starts (`model.scratch`): the packaged Countdown model and the CPU run over GSM8K are
made this way. The result is an ordinary Hugging Face folder.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rise_ray.config.settings import ScratchConfig
from rise_ray.errors import ConfigError

END, PAD, UNKNOWN = "<|end|>", "<|pad|>", "<|unknown|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
SPECIAL = (PAD, UNKNOWN, END, *ROLES)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|{{ message.role }}|>{{ message.content }}<|end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_scratch_model(
    scratch: ScratchConfig,
    words: list[str] | None,
    texts: Iterable[str],
    max_model_len: int,
    seed: int,
    folder: Path,
) -> None:
    """Write a randomly initialised model and its tokenizer to `folder` (float32 safetensors).

    A `word` tokenizer has the `words` of the task's closed vocabulary; a `bpe` one is trained on
    `texts`. `max_model_len` is written as `max_position_embeddings`; `seed` is of the weights.

    Raises:
        ConfigError: the architecture is unknown, or a `word` tokenizer has no vocabulary.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    tokenizer = _tokenizer(scratch, words, texts)
    architecture = dict(scratch.architecture)
    model_type = architecture.pop("model_type", None)
    if model_type is None:
        raise ConfigError("`model.scratch.architecture.model_type`: missing (for example `llama`)")
    ids = {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "max_position_embeddings": max_model_len,
    }
    try:
        config = AutoConfig.for_model(model_type, **{**ids, **architecture})
    except (ValueError, TypeError) as error:
        raise ConfigError(f"`model.scratch.architecture`: {error}") from error
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer(scratch: ScratchConfig, words: list[str] | None, texts: Iterable[str]) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if scratch.tokenizer == "word":
        if words is None:
            raise ConfigError(
                "`model.scratch.tokenizer: word` needs a task with a closed vocabulary; use `bpe`"
            )
        vocabulary = {word: index for index, word in enumerate((*SPECIAL, *words))}
        backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    else:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=scratch.vocab_size,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
