"""Demonstrations as examples: built like the states that rollouts see, with no invented reward."""

from __future__ import annotations

import pytest

from rise_ray.errors import DataError
from rise_ray.mdp import Message, Problem
from rise_ray.rollout.chat import ChatFormat
from rise_ray.run.warm_start import Chat, demonstration_examples
from tests.unit.rollout import templates
from tests.unit.rollout.templates import chat_format, installed, rendered

QUESTION, FEEDBACK = "What is 3 + 4 ?", "Please try again ."


def _chat(*answers: str) -> Chat:
    messages = [Message("user", QUESTION)]
    for answer in answers:
        messages += [Message("assistant", answer), Message("user", FEEDBACK)]
    return Problem("p0", "test", QUESTION, "7"), messages[:-1]


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return chat_format(installed("template_chatml"))


def test_every_assistant_turn_carries_loss_and_nothing_else_does(chat: ChatFormat) -> None:
    ((example,), left_out) = demonstration_examples([_chat("it is 6", "it is 7")], chat, 1000)
    assert left_out == 0
    trained = [example.input_ids[span.start : span.end] for span in example.spans]
    assert trained == [chat.response_ids("it is 6"), chat.response_ids("it is 7")]
    assert [span.weight for span in example.spans] == [1.0, 1.0]


@pytest.mark.parametrize("style", ["chatml", "gemma"])
def test_a_demonstration_has_the_ids_of_the_rendered_conversation(style: str) -> None:
    template = {"chatml": installed("template_chatml"), "gemma": templates.GEMMA}[style]
    chat = chat_format(template, {"chatml": "<|im_end|>", "gemma": "<eos>"}[style])
    ((example,), _) = demonstration_examples([_chat("it is 6", "it is 7")], chat, 1000)
    before = rendered(chat, QUESTION, "it is 6", FEEDBACK)
    prefix = tuple(chat.tokenizer.encode(before, add_special_tokens=False))
    assert example.input_ids == (*prefix, *chat.response_ids("it is 7"))


def test_a_demonstration_was_never_checked_and_has_no_reward(chat: ChatFormat) -> None:
    (examples, _) = demonstration_examples([_chat("it is 7")] * 2, chat, 1000)
    assert [e.id for e in examples] == ["demonstration/0", "demonstration/1"]
    origin = examples[1].provenance
    assert (origin.source, origin.problem_id) == ("demonstration", "p0")
    assert origin.reward is None
    assert (origin.weight_version, origin.verifier_version) == (-1, "")


def test_chats_that_do_not_fit_are_left_out_and_counted(chat: ChatFormat) -> None:
    chats = [_chat("it is 7"), _chat("it is 6", "it is 7")]
    (examples, _) = demonstration_examples(chats, chat, 1000)
    short, long = (len(example.input_ids) for example in examples)
    fitting, left_out = demonstration_examples(chats, chat, long - 1)
    assert ([e.id for e in fitting], left_out) == (["demonstration/0"], 1)
    with pytest.raises(DataError, match=rf"all 2 .* \(the shortest has {short}\)"):
        demonstration_examples(chats, chat, short - 1)


def test_no_demonstrations_is_an_error_of_the_task(chat: ChatFormat) -> None:
    with pytest.raises(DataError, match="no demonstrations"):
        demonstration_examples([], chat, 1000)
