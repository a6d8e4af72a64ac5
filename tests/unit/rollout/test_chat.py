"""Chat templates as token segments: spliced states say what the template itself would say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rise_ray.config.settings import ScratchConfig
from rise_ray.errors import ModelError
from rise_ray.mdp import Message
from rise_ray.models.locate import locate_model
from rise_ray.models.scratch import CHAT_TEMPLATE, _tokenizer
from rise_ray.rollout.chat import ChatFormat, load_tokenizer
from rise_ray.tasks.countdown import Countdown
from tests.unit.rollout import templates
from tests.unit.rollout.templates import chat_format, installed, rendered, tokenizer, user

QUESTION, FEEDBACK = "What is 3 + 4 ?", "Please check and try again ."

# Template, end-of-sequence token, end-of-turn token, and a response as the model samples it.
FAITHFUL = {
    "scratch": (CHAT_TEMPLATE, "<|end|>", "<|end|>", "it is 7"),
    "chatml": (installed("template_chatml"), "<|im_end|>", "<|im_end|>", "it is 7"),
    "qwen-3": (templates.QWEN_3, "<eos>", "<|im_end|>", "it is 7"),
    "gemma": (templates.GEMMA, "<eos>", "<end_of_turn>", "it is 7"),
    "llama-2": (templates.LLAMA_2, "</s>", "</s>", " it is 7 "),
}
# The header ends in a blank: the template's rendering would merge it with the answer's first word.
SAME_TEXT = {
    "deepseek-vl2": (installed("template_deepseek_vl2"), "</s>", "</s>", "it is 7"),
    "deepseek-ocr": (installed("template_deepseek_ocr"), "</s>", "</s>", "it is 7"),
    "blip2": (installed("template_blip2"), "</s>", "</s>", " it is 7"),
    "basic": (installed("template_basic"), "</s>", "</s>", "it is 7"),
    "plain words": (templates.PLAIN_WORDS, "</s>", "</s>", "it is 7"),
}


def _states(chat: ChatFormat, response: str, turns: int) -> list[tuple[int, ...]]:
    """The states of a chat in which every answer is `response`."""
    ids = chat.prompt_ids(user(QUESTION))
    states = [ids]
    for _ in range(turns):
        attempt = chat.response_ids(response)
        ids = (*ids, *attempt, *chat.feedback_ids(user(QUESTION), FEEDBACK, attempt))
        states.append(ids)
    return states


@pytest.mark.parametrize("style", FAITHFUL)
def test_spliced_ids_are_those_of_the_whole_conversation(style: str) -> None:
    template, eos, end_of_turn, response = FAITHFUL[style]
    chat = chat_format(template, eos)
    assert chat.end_of_turn == chat.tokenizer.convert_tokens_to_ids(end_of_turn)
    conversation = [QUESTION]
    for state in _states(chat, response, turns=3):
        whole = chat.tokenizer.encode(rendered(chat, *conversation), add_special_tokens=False)
        assert state == tuple(whole)
        conversation += [response.strip(), FEEDBACK]


@pytest.mark.parametrize("style", SAME_TEXT)
def test_spliced_text_is_that_of_the_whole_conversation(style: str) -> None:
    template, eos, end_of_turn, response = SAME_TEXT[style]
    chat = chat_format(template, eos)
    assert chat.end_of_turn == chat.tokenizer.convert_tokens_to_ids(end_of_turn)
    conversation = [QUESTION]
    for state in _states(chat, response, turns=3):
        whole = rendered(chat, *conversation)
        text = chat.tokenizer.decode(list(state))
        # Templates of plain words have no end of turn; the sampled one stays in the state.
        assert text == whole if eos in whole else text.replace(eos, "") == whole
        conversation += [response.strip(), FEEDBACK]


@pytest.mark.parametrize("style", [*FAITHFUL, *SAME_TEXT])
def test_an_end_of_turn_is_in_the_state_once_whether_sampled_or_not(style: str) -> None:
    template, eos, _, response = {**FAITHFUL, **SAME_TEXT}[style]
    chat = chat_format(template, eos)
    ended = chat.response_ids(response)
    after_ended = chat.feedback_ids(user(QUESTION), FEEDBACK, ended)
    truncated = ended[:-1]
    after_truncated = chat.feedback_ids(user(QUESTION), FEEDBACK, truncated)
    if eos in rendered(chat, QUESTION, response, FEEDBACK) or style in FAITHFUL:
        assert truncated + after_truncated == ended + after_ended
    else:  # a template of plain words does not end a truncated answer either
        assert after_truncated == after_ended


def test_a_header_of_the_next_turn_is_kept_where_history_would_lose_it() -> None:
    # This template opens an answer with an empty thought, and renders earlier ones without it.
    chat = chat_format(installed("template_minicpmv45"))
    header = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    first = f"<|im_start|>user\n{QUESTION}<|im_end|>\n{header}"
    second = f"{first}it is 7<|im_end|>\n<|im_start|>user\n{FEEDBACK}<|im_end|>\n{header}"
    assert [chat.tokenizer.decode(list(s)) for s in _states(chat, "it is 7", 1)] == [first, second]


def test_a_thought_that_the_template_strips_from_history_stays_in_the_state() -> None:
    chat = chat_format(templates.QWEN_3)
    response = "<think> 3 + 4 </think>it is 7"
    assert "<think>" not in rendered(chat, QUESTION, response, FEEDBACK)
    first, second = _states(chat, response, 1)
    attempt = chat.response_ids(response)
    assert second[len(first) :][: len(attempt)] == attempt


@pytest.mark.parametrize(
    "template",
    [
        templates.DROPS_ANSWERS,
        templates.REPEATS_ANSWERS,
        templates.DROPS_FEEDBACK,
        installed("template_kimi_audio"),  # reads a variable that only its own processor sets
    ],
)
def test_a_template_that_cannot_hold_a_second_turn_is_refused(template: str) -> None:
    with pytest.raises(ModelError, match=r"test/model.*cannot express a second user turn"):
        chat_format(template)


def test_a_template_that_raises_on_a_second_turn_is_refused_with_its_reason() -> None:
    with pytest.raises(ModelError, match=r"user/assistant/user: single turn only.*chat_template"):
        chat_format(templates.ONE_QUESTION)


def test_a_role_that_the_template_does_not_know_is_an_error_of_the_model() -> None:
    prompt = [Message("system", "Be brief ."), *user(QUESTION)]
    with pytest.raises(ModelError, match="system/user: no system role"):
        chat_format(templates.GEMMA, "<eos>").prompt_ids(prompt)


def test_a_system_message_opens_the_prompt_and_does_not_come_again() -> None:
    chat = chat_format(installed("template_chatml"))
    prompt = [Message("system", "Be brief ."), *user(QUESTION)]
    opening = chat.tokenizer.decode(list(chat.prompt_ids(prompt)))
    assert opening.startswith("<|im_start|>system\nBe brief .<|im_end|>\n<|im_start|>user\n")
    attempt = chat.response_ids("it is 7")
    between = chat.feedback_ids(prompt, FEEDBACK, attempt)
    assert between == chat.feedback_ids(user(QUESTION), FEEDBACK, attempt)


def test_a_tokenizer_without_a_template_or_an_end_token_is_refused() -> None:
    with pytest.raises(ModelError, match=r"no chat template; name one in `model\.chat_template`"):
        ChatFormat(tokenizer(None), "test/model")
    endless = tokenizer(templates.PLAIN_WORDS)
    endless.eos_token = None
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        ChatFormat(endless, "test/model")


@pytest.mark.parametrize("text", ["it is 7", "  blanks\n kept ", "žluťoučký 🐎", ""])
def test_a_response_decodes_to_the_text_it_was(text: str) -> None:
    chat = chat_format(installed("template_chatml"))
    ids = chat.response_ids(text)
    assert ids[-1] == chat.end_of_turn
    assert chat.text(ids, ended=True) == text
    assert chat.text(ids[:-1], ended=False) == text


@pytest.mark.parametrize("style", [*FAITHFUL, *SAME_TEXT])
def test_label_words_are_the_tokens_that_begin_an_answer(style: str) -> None:
    template, eos, _, _ = {**FAITHFUL, **SAME_TEXT}[style]
    chat = chat_format(template, eos)
    state = chat.prompt_ids(user(QUESTION))
    for word, label in zip(("7", "4"), chat.label_ids(("7", "4")), strict=True):
        text = chat.tokenizer.decode([*state, label])
        assert text == rendered(chat, QUESTION) + word


def test_label_words_that_the_tokenizer_splits_are_refused_with_words_that_it_does_not() -> None:
    chat = chat_format(installed("template_chatml"))
    ids = list(chat.response_ids("perhaps")[:-1])
    assert len(ids) > 1
    found = re.escape(f"`7` is {list(chat.response_ids('7')[:-1])}, `perhaps` is {ids}")
    with pytest.raises(ModelError, match=rf"test/model: .*{found}; .*split: .*A, B, 1, 0$"):
        chat.label_ids(("7", "perhaps"))
    with pytest.raises(ModelError, match="different"):
        chat.label_ids(("7", "7"))


def test_a_word_outside_a_closed_vocabulary_is_no_label() -> None:
    scratch = ScratchConfig(architecture={}, tokenizer="word")
    chat = ChatFormat(_tokenizer(scratch, Countdown().vocabulary(), []), "countdown")
    assert len(set(chat.label_ids(("correct", "again")))) == 2
    unknown = chat.tokenizer.unk_token_id
    with pytest.raises(
        ModelError, match=rf"`yes` is \[{unknown}\].*split: .*correct, again, 1, 0$"
    ):
        chat.label_ids(("yes", "correct"))


def test_a_template_file_replaces_the_tokenizers_own(tmp_path: Path) -> None:
    made: Any = tokenizer(installed("template_chatml"))
    made.save_pretrained(tmp_path / "model")
    file = tmp_path / "own.jinja"
    file.write_text(templates.PLAIN_WORDS)
    loaded = load_tokenizer(str(tmp_path / "model"), str(file), trust_remote_code=False)
    assert loaded.chat_template == templates.PLAIN_WORDS
    assert loaded.encode(QUESTION) == made.encode(QUESTION)
    with pytest.raises(ModelError, match=r"`model\.chat_template`.*none\.jinja"):
        load_tokenizer(str(tmp_path / "model"), str(tmp_path / "none.jinja"), False)
    with pytest.raises(ModelError, match="tokenizer cannot be loaded"):
        load_tokenizer(str(tmp_path), None, False)


def test_a_general_tokenizer_is_the_librarys_and_costs_no_torch() -> None:
    from transformers import AutoTokenizer

    folder = locate_model("package:countdown-base")
    ours, theirs = load_tokenizer(folder, None, False), AutoTokenizer.from_pretrained(folder)
    assert type(ours) is type(theirs)
    assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
    assert ours.chat_template == theirs.chat_template
    script = f"""
import sys
from rise_ray.rollout.chat import load_tokenizer
load_tokenizer({folder!r}, None, False)
print('torch' in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
