"""What is said between turns says by its name what it reveals, and needs no task to say it."""

from __future__ import annotations

import pickle
from collections.abc import Mapping

import pytest

from rise_ray.errors import ConfigError
from rise_ray.feedback.base import Feedback, feedback_of
from rise_ray.feedback.constant import Constant
from rise_ray.feedback.oracle import Oracle
from rise_ray.mdp import Problem
from rise_ray.tasks.countdown import Countdown
from tests.unit.evaluate.builders import attempt

TASK = Countdown()
PROBLEM = TASK.load("dev")[0]
ANSWERS = ("7", "3", "?", "!")  # right, wrong, unreadable, not known


class Hinting(Countdown):
    """Has feedback of its own."""

    def own_feedback(self, problem: Problem) -> Mapping[str, Constant | Oracle]:
        hint = problem.reference.split()[0]
        return {"hint": Constant(f"Begin with {hint} ."), "verdict": Oracle("Good .", "Bad .")}


def _said(feedback: Feedback) -> list[str | None]:
    return [feedback.text(PROBLEM, attempt(answer)) for answer in ANSWERS]


@pytest.mark.parametrize("name", ["constant", "neutral"])
def test_constant_feedback_is_the_tasks_sentence_whatever_was_answered(name: str) -> None:
    feedback = feedback_of(name, TASK, PROBLEM)
    assert feedback.name == name
    assert _said(feedback) == [TASK.feedback(PROBLEM)] * 4


def test_an_oracle_tells_right_from_wrong_and_guesses_nothing() -> None:
    feedback = feedback_of("oracle", Hinting(), PROBLEM)
    assert feedback.name == "oracle"
    assert _said(feedback) == [Oracle().right, Oracle().wrong, Oracle().wrong, None]


def test_a_task_may_word_the_oracle_as_one_with_a_closed_vocabulary_has_to() -> None:
    feedback = feedback_of("oracle", TASK, PROBLEM)
    assert feedback.name == "oracle"
    right, wrong, *_ = _said(feedback)
    assert right != wrong
    assert {word for text in feedback.texts for word in text.split()} <= set(TASK.vocabulary())


def test_a_task_may_have_feedback_of_its_own_under_its_own_name() -> None:
    hint = feedback_of("hint", Hinting(), PROBLEM)
    assert (hint.name, _said(hint)[0]) == ("hint", f"Begin with {PROBLEM.reference.split()[0]} .")
    told = feedback_of("verdict", Hinting(), PROBLEM)
    assert (told.name, _said(told)[:2]) == ("verdict", ["Good .", "Bad ."])


def test_an_unknown_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(
        ConfigError, match=r"`hint`: task countdown .*: constant, neutral, oracle\)"
    ):
        feedback_of("hint", TASK, PROBLEM)
    with pytest.raises(ConfigError, match=r"hint, oracle, verdict\)"):
        feedback_of("hnit", Hinting(), PROBLEM)


@pytest.mark.parametrize("name", ["constant", "oracle", "hint", "verdict"])
def test_a_feedback_is_sent_to_workers_without_its_task(name: str) -> None:
    feedback = feedback_of(name, Hinting(), PROBLEM)
    sent = pickle.dumps(feedback)
    assert b"Hinting" not in sent
    assert pickle.loads(sent) == feedback
    assert set(_said(feedback)) - {None} == set(feedback.texts)
