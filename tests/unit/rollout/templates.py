"""A small real tokenizer, and chat templates in the styles that models ship with.

Templates of whole models are read from the installed vllm package at test time.
"""

from __future__ import annotations

import copy
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rise_ray.config.settings import ScratchConfig
from rise_ray.mdp import Message
from rise_ray.models.scratch import _tokenizer
from rise_ray.rollout.chat import ChatFormat

MARKERS = [
    *("<s>", "</s>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<|im_start|>", "<|im_end|>"),
    *("<|User|>", "<|Assistant|>", "<|im_kimia_text_eos|>", "<|im_msg_end|>"),
]
TEXTS = [
    "What is 3 + 4 ? The answer is 7 , so it is correct . Please check and try again .",
    "user assistant system model Question Answer INST think",
] * 20

LLAMA_2 = (
    "{% for m in messages %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' }}"
    "{{ m.content | trim + '<end_of_turn>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
QWEN_3 = (
    "{% for m in messages %}"
    "{% set content = m.content.split('</think>')[-1] if m.role == 'assistant' else m.content %}"
    "{{ '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PLAIN_WORDS = (
    "{% for m in messages %}"
    "{{ '### ' + m.role + ':\\n' + m.content + '\\n\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant:\\n' }}{% endif %}"
)
ONE_QUESTION = (
    "{% if messages | length > 2 %}{{ raise_exception('single turn only') }}{% endif %}"
    "{{ '<|im_start|>user\\n' + messages[0].content + '<|im_end|>\\n' }}"
)
DROPS_ANSWERS = (
    "{% for m in messages if m.role == 'user' %}{{ m.content + '<|im_end|>' }}{% endfor %}"
)
REPEATS_ANSWERS = "{% for m in messages %}{{ m.content + m.content + '<|im_end|>' }}{% endfor %}"
DROPS_FEEDBACK = "{% for m in messages[:2] %}{{ m.content + '<|im_end|>' }}{% endfor %}"


def installed(name: str) -> str:
    """A template that the installed vllm brings, without importing vllm."""
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "transformers_utils" / "chat_templates"
    return (folder / f"{name}.jinja").read_text()


@cache
def _backend() -> Any:
    scratch = ScratchConfig(architecture={}, tokenizer="bpe", vocab_size=400)
    return _tokenizer(scratch, None, TEXTS)


def tokenizer(template: str | None, eos: str = "<|im_end|>") -> Any:
    """Byte-level BPE in which every marker is one special token."""
    made = copy.deepcopy(_backend())
    made.add_special_tokens(
        {"additional_special_tokens": MARKERS, "bos_token": "<s>", "eos_token": eos}
    )
    made.chat_template = template
    return made


def chat_format(template: str, eos: str = "<|im_end|>") -> ChatFormat:
    return ChatFormat(tokenizer(template, eos), "test/model")


def rendered(chat: ChatFormat, *contents: str) -> str:
    """User, assistant, user, ... as the template itself writes them, ready for an answer."""
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(contents)]
    return str(
        chat.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    )


def user(text: str) -> list[Message]:
    return [Message("user", text)]
