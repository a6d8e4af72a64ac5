"""Countdown-3 is the problem of the quick start: these rules, these splits, this warm start."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace
from itertools import permutations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rise_ray.errors import DataError
from rise_ray.mdp import Outcome
from rise_ray.tasks.countdown import Countdown, chains

TASK = Countdown()
SPLITS = {split: TASK.load(split) for split in ("train", "dev", "test")}
PROBLEMS = [problem for problems in SPLITS.values() for problem in problems]
BY_ID = {problem.id: problem for problem in PROBLEMS}
EXAMPLE = replace(PROBLEMS[0], data={"numbers": [5, 6, 9], "target": 21})

problems = st.sampled_from(PROBLEMS)


def multiset(problem):
    return tuple(sorted(problem.data["numbers"]))


def box(expression, before=""):
    return rf"{before} \boxed{{ {expression} }}"


def test_all_2910_problems_are_there_once_in_splits_of_the_documented_sizes():
    assert len(BY_ID) == len(PROBLEMS) == 2910
    assert {split: len(found) for split, found in SPLITS.items()} == {
        "train": 1894,
        "dev": 464,
        "test": 552,
    }


def test_no_number_multiset_is_in_two_splits():
    seen = {split: {multiset(p) for p in found} for split, found in SPLITS.items()}
    assert not seen["train"] & seen["dev"]
    assert not seen["train"] & seen["test"]
    assert not seen["dev"] & seen["test"]


def test_loading_is_the_same_every_time():
    assert TASK.load("dev") == SPLITS["dev"]
    assert SPLITS["test"][0].id == "countdown-1-4-5-15"  # moves only if every result moves


def test_as_many_problems_with_the_numbers_of_test_have_no_solution():
    unsolvable = TASK.load("test_unsolvable")
    assert len({problem.id for problem in unsolvable}) == len(unsolvable) == 552
    assert Counter(map(multiset, unsolvable)) == Counter(map(multiset, SPLITS["test"]))
    assert not {problem.id for problem in unsolvable} & BY_ID.keys()
    forms = ("( {} {} {} ) {} {}", "{} {} ( {} {} {} )")
    for problem in unsolvable[:20]:
        assert TASK.reference_response(problem) is None
        for numbers in permutations(problem.data["numbers"]):
            for first, second in product("+-*", repeat=2):
                a, b, c = numbers
                for form in forms:
                    answer = box(form.format(a, first, b, second, c))
                    assert TASK.check(problem, answer).outcome is Outcome.INCORRECT


def test_an_unknown_split_is_refused_by_name():
    with pytest.raises(DataError, match="validation"):
        TASK.load("validation")


@given(problems)
def test_a_problem_reads_as_documented_and_obeys_the_rules(problem):
    a, b, c = problem.data["numbers"]
    target = problem.data["target"]
    assert problem.question == f"Use {a} {b} and {c} to make {target} ."
    assert all(1 <= number <= 12 for number in (a, b, c))
    assert 10 <= target <= 99


@given(problems)
def test_every_chain_is_legal_and_every_solution_is_correct(problem):
    for value, found in chains(multiset(problem)).items():
        for chain in found:
            assert chain.value == value
            assert 1 <= chain.middle <= 99
            assert 1 <= value <= 99
            assert not (chain.first == "*" and 1 in (chain.a, chain.b))
            assert not (chain.second == "*" and 1 in (chain.middle, chain.c))
            verdict = TASK.check(problem, chain.response(problem.data["target"]))
            right = value == problem.data["target"]
            assert verdict.outcome is (Outcome.CORRECT if right else Outcome.INCORRECT)
            assert verdict.claims_correct is right


@given(problems)
def test_the_reference_response_is_correct(problem):
    assert TASK.check(problem, TASK.reference_response(problem)).outcome is Outcome.CORRECT
    assert TASK.check(problem, box(problem.reference)).outcome is Outcome.CORRECT


@given(st.integers(0, 2**32))
def test_demonstrations_check_as_they_claim_and_their_arithmetic_is_right(seed):
    for problem, messages in TASK.demonstrations(PROBLEMS, 5, random.Random(seed)):
        assert messages[0].content == problem.question
        assert [m.role for m in messages] == ["user", "assistant"] * (len(messages) // 2)
        assert all(m.content == TASK.feedback(problem) for m in messages[2::2])
        for message in messages[1::2]:
            verdict = TASK.check(problem, message.content)
            assert verdict.claims_correct is (verdict.outcome is Outcome.CORRECT)
            for a, op, b, c in re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)", message.content):
                value = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[op]
                assert value == int(c)


def test_demonstrations_are_imperfect_in_the_documented_shares():
    turns, outcomes = Counter(), Counter()
    for problem, messages in TASK.demonstrations(PROBLEMS, 4000, random.Random(0)):
        turns[len(messages) // 2] += 1
        outcomes.update(TASK.check(problem, m.content).outcome for m in messages[1::2])
    assert turns[1] / 4000 == pytest.approx(0.30, abs=0.03)
    assert turns[3] / 4000 == pytest.approx(0.35, abs=0.03)
    assert turns[5] / 4000 == pytest.approx(0.35, abs=0.03)
    assert outcomes[Outcome.CORRECT] / outcomes.total() == pytest.approx(0.6, abs=0.02)
    assert set(outcomes) == {Outcome.CORRECT, Outcome.INCORRECT}


def test_a_wrong_demonstration_reaches_one_of_the_four_nearest_values():
    for problem, messages in TASK.demonstrations(PROBLEMS, 500, random.Random(1)):
        target = problem.data["target"]
        others = sorted(abs(v - target) for v in chains(multiset(problem)) if v != target)
        for message in messages[1::2]:
            value = int(re.findall(r"= (\d+)", message.content)[-1])
            assert value == target or abs(value - target) <= others[:4][-1]


def test_every_word_of_the_task_is_in_the_vocabulary_once():
    vocabulary = TASK.vocabulary()
    assert len(set(vocabulary)) == len(vocabulary) == 122
    words = set(vocabulary)
    for problem, messages in TASK.demonstrations(PROBLEMS, 2000, random.Random(2)):
        for message in [*messages, *TASK.prompt(problem)]:
            assert set(message.content.split(" ")) <= words


@pytest.mark.parametrize(
    ("response", "outcome", "answer"),
    [
        (box("( 6 * 5 ) - 9"), Outcome.CORRECT, "5*6-9"),
        (box("5 * 6 - 9"), Outcome.CORRECT, "5*6-9"),
        (box("(5*6)-9"), Outcome.CORRECT, "5*6-9"),
        (box("( 6 + 5 ) + 9"), Outcome.INCORRECT, "5+6+9"),
        (box("( 6 * 5 )"), Outcome.INCORRECT, "5*6"),
        (box("21"), Outcome.INCORRECT, "21"),
        (box("( 6 * 5 ) - 9 + 6 - 6"), Outcome.INCORRECT, "5*6+6-6-9"),
        (box("( 6 * 5 - 9"), Outcome.UNPARSEABLE, None),
        (box(""), Outcome.UNPARSEABLE, None),
        (box("9**9**9**9"), Outcome.UNPARSEABLE, None),
        ("6 * 5 = 30 , 30 - 9 = 21 correct .", Outcome.UNPARSEABLE, None),
        (r"6 * 5 \boxed{ ( 6 * 5 ) - 9", Outcome.UNPARSEABLE, None),
        (r"\boxed{ 1 } \boxed{ ( 6 * 5 ) - 9 }", Outcome.CORRECT, "5*6-9"),
    ],
)
def test_the_boxed_expression_alone_decides(response, outcome, answer):
    verdict = TASK.check(EXAMPLE, response)
    assert (verdict.outcome, verdict.answer) == (outcome, answer)
    assert verdict.reason


@pytest.mark.parametrize(
    ("before", "claims"),
    [
        ("correct .", True),
        ("too low .", False),
        ("too high .", False),
        ("", None),
        ("incorrect .", None),
        ("too low . correct .", True),
        ("correct . too  high", False),
    ],
)
def test_the_verdict_word_before_the_box_is_the_claim(before, claims):
    assert TASK.check(EXAMPLE, box("5 + 6 + 9", before)).claims_correct is claims
    assert TASK.check(EXAMPLE, before).claims_correct is claims


@given(problems, st.text(max_size=200))
def test_any_text_gets_a_verdict(problem, text):
    for response in (text, box(text)):
        assert TASK.check(problem, response).outcome is not Outcome.ERROR
