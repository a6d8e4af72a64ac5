"""Chat templates as token segments: render a prompt once, then splice.

A Hugging Face chat template renders whole conversations, and rendering again after every turn
would re-tokenize the model's own responses. Here the template is asked once for the prompt, and
once for what stands between an attempt and the next one; responses keep the ids they were
sampled as (`rise_ray.mdp.state_ids` puts the pieces together).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from rise_ray.config.settings import ModelConfig
from rise_ray.errors import ModelError
from rise_ray.mdp import Message, after_response

_ATTEMPT = "rise-ray-attempt-placeholder"
# What an error proposes: whichever of them are one token each.
_LABEL_WORDS = (
    *("yes", "no", "Yes", "No", "right", "wrong", "correct", "again", "true", "false"),
    *("good", "bad", "A", "B", "1", "0"),
)


class ChatFormat:
    """A Hugging Face tokenizer and its chat template, cut into segments.

    `name` is what errors call the model.

    Raises:
        ModelError: there is no chat template, or it cannot express a second user turn.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        self.tokenizer = tokenizer
        self.name = name
        if not tokenizer.chat_template:
            raise ModelError(
                f"model {name}: its tokenizer has no chat template; name one in "
                "`model.chat_template`"
            )
        probe = [Message("user", "question")]
        _, self.end_of_turn = self._after_attempt(probe, "feedback")

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The first state: `messages` and the header of the assistant's turn."""
        return self._encode(self._render(messages, generate=True))

    def feedback_ids(
        self, prompt: Sequence[Message], feedback: str, attempt_ids: Sequence[int]
    ) -> tuple[int, ...]:
        """What stands between an attempt and the next: its end, the feedback, the next header.

        An attempt that ends with the end-of-turn token (it was not truncated) keeps that token
        as its own last id, and the segment starts after it.
        """
        between, end_of_turn = self._after_attempt(prompt, feedback)
        return after_response(between, end_of_turn, attempt_ids)

    def response_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of a response that the model did not sample itself, with its end of turn."""
        return (*self._encode(text), self.end_of_turn)

    def text(self, token_ids: Sequence[int], ended: bool) -> str:
        """A sampled response as text; one that `ended` its turn without the token that did."""
        body = token_ids[:-1] if ended else token_ids
        return str(self.tokenizer.decode(list(body), skip_special_tokens=True))

    def label_ids(self, words: Sequence[str]) -> tuple[int, ...]:
        """The one token of each label word, as it begins an assistant's turn.

        Raises:
            ModelError: a word is not one token, or not one of its own.
        """
        found = {word: self._begin_turn(word) for word in words}
        labels = [ids[0] for ids in found.values() if self._is_label(ids)]
        if len(set(labels)) == len(words):
            return tuple(labels)
        said = ", ".join(f"`{word}` is {list(ids)}" for word, ids in found.items())
        single = [word for word in _LABEL_WORDS if self._is_label(self._begin_turn(word))]
        raise ModelError(
            f"model {self.name}: label words must be one token each, known and different: {said}; "
            f"words that its tokenizer does not split: {', '.join(single) or 'none of the usual'}"
        )

    def _is_label(self, ids: Sequence[int]) -> bool:
        return len(ids) == 1 and ids[0] != self.tokenizer.unk_token_id

    def _begin_turn(self, text: str) -> tuple[int, ...]:
        """The ids of `text` after the header of an assistant's turn."""
        header = self._render([Message("user", "question")], generate=True)
        before, whole = self._encode(header), self._encode(header + text)
        if whole[: len(before)] == before:
            return whole[len(before) :]
        return self._encode(text)  # they merge in text, but a state keeps the header's own ids

    def _after_attempt(
        self, prompt: Sequence[Message], feedback: str
    ) -> tuple[tuple[int, ...], int]:
        """The ids after an attempt's text up to the next attempt, and the end-of-turn id."""
        rendered = self._render(
            [*prompt, Message("assistant", _ATTEMPT), Message("user", feedback)], generate=True
        )
        _, found, after = rendered.partition(_ATTEMPT)
        if not found or _ATTEMPT in after or feedback.strip() not in after:
            raise ModelError(
                f"model {self.name}: its chat template cannot express a second user turn (it "
                "drops or repeats the first answer, or drops the second question); RISE needs "
                "multi-turn chats: name another template in `model.chat_template`"
            )
        ids = self._encode(after)
        special = set(self.tokenizer.all_special_ids)
        lead = next((n for n, i in enumerate(ids) if i in special), None)
        if lead is None or self.tokenizer.decode(list(ids[:lead])).strip():
            if self.tokenizer.eos_token_id is None:
                raise ModelError(f"model {self.name}: its tokenizer has no end-of-sequence token")
            return ids, int(self.tokenizer.eos_token_id)  # a template of plain words ends with eos
        return ids[lead:], ids[lead]  # white space before the end token is the template's own

    def _render(self, messages: Sequence[Message], generate: bool) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [{"role": m.role, "content": m.content} for m in messages],
                    tokenize=False,
                    add_generation_prompt=generate,
                )
            )
        except TemplateError as error:
            raise ModelError(
                f"model {self.name}: its chat template cannot render "
                f"{'/'.join(m.role for m in messages)}: {error}; name another template in "
                "`model.chat_template`"
            ) from error

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))


def load_chat(path: str, model: ModelConfig, name: str) -> ChatFormat:
    """The chat format of the tokenizer in `path`, with the template that the config may give.

    Raises:
        ModelError: the tokenizer or the template cannot be used; `name` is what it calls the model.
    """
    tokenizer = load_tokenizer(path, model.chat_template, model.trust_remote_code)
    return ChatFormat(tokenizer, name)


def load_tokenizer(path: str, chat_template: str | None, trust_remote_code: bool) -> Any:
    """A Hugging Face tokenizer from a folder or hub name, with an optional template file.

    Raises:
        ModelError: the tokenizer or the template file cannot be read.
    """
    try:
        tokenizer = _tokenizer_class(path).from_pretrained(
            path, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        kind = "" if Path(path).is_dir() else " (no folder here, so taken for a name on the hub)"
        raise ModelError(f"model {path}{kind}: its tokenizer cannot be loaded: {error}") from error
    if chat_template is not None:
        try:
            tokenizer.chat_template = Path(chat_template).read_text()
        except OSError as error:
            raise ModelError(f"`model.chat_template`: {chat_template}: {error.strerror}") from error
    return tokenizer


def _tokenizer_class(path: str) -> Any:
    """The class to load it with.

    The general one where the folder names that: `AutoTokenizer` imports torch before it looks,
    which is seven of nine seconds of a driver's start.
    """
    try:
        settings = json.loads((Path(path) / "tokenizer_config.json").read_text())
        if settings["tokenizer_class"] == "TokenizersBackend" and "auto_map" not in settings:
            from transformers import TokenizersBackend

            return TokenizersBackend
    except (OSError, ValueError, KeyError, TypeError):
        pass  # `AutoTokenizer` says what is wrong, if anything is
    from transformers import AutoTokenizer

    return AutoTokenizer
