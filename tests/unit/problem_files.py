"""Model folders and data files as users have them: small, whole, or broken in one way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

SEVERAL_TURNS = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
FIRST_TURN_ONLY = "<user> {{ messages[0].content }} <end> <assistant> "
ONE_USER_TURN = (
    "{% if messages | selectattr('role', 'eq', 'user') | list | length > 1 %}"
    "{{ raise_exception('only one user turn') }}{% endif %}" + FIRST_TURN_ONLY
)


def write_tokenizer(folder: Path, template: str | None = SEVERAL_TURNS) -> Path:
    """A model folder as far as a check looks into it: a tokenizer, and names of weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<end>", "<user>", "<assistant>"]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="<end>", chat_template=template
    )
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder


def write_rows(path: Path, rows: Sequence[object]) -> Path:
    """A JSON-lines file; a row that is text is written as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def gsm8k_rows(count: int) -> list[dict[str, str]]:
    """Word problems in GSM8K's form, all different."""
    return [
        {"question": f"What is {n} and {n} ?", "answer": f"It is {2 * n} .\n#### {2 * n}"}
        for n in range(count)
    ]
