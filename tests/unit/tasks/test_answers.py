"""Answers are equal when their values are, and equal values vote together."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rise_ray.mdp import Outcome, Problem
from rise_ray.tasks import answers
from rise_ray.tasks.answers import MAX_ANSWER_CHARS, MAX_VOTE_CHARS, judge_answer
from rise_ray.tasks.gsm8k import Gsm8k

GSM8K = Gsm8k()


def gsm8k_problem(reference):
    return Problem("gsm8k-1", "gsm8k", "How many?", reference)


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("72", "72.0"),
        ("1000", "1,000"),
        (r"\frac{1}{2}", "0.5"),
        (r"\frac{1}{2}", r"\dfrac12"),
        (r"2\sqrt{2}", r"\sqrt{8}"),
        ("x+1", "1 + x"),
        ("5", "x = 5"),
        (r"\text{Evelyn}", "Evelyn"),
        (r"\{1, 2\}", r"\{2, 1\}"),
        ("(1, 2)", r"\left(1, 2\right)"),
        ("50", r"50\%"),
    ],
)
def test_an_equal_value_in_another_form_is_correct(reference, answer):
    assert judge_answer(reference, answer).outcome is Outcome.CORRECT


@pytest.mark.parametrize(
    ("reference", "answer"),
    [("72", "73"), ("72", "-72"), ("x+1", "x-1"), ("(1,2)", "(2,1)"), ("72", "seventy-two")],
)
def test_a_different_value_is_incorrect_and_still_votes(reference, answer):
    verdict = judge_answer(reference, answer)
    assert verdict.outcome is Outcome.INCORRECT
    assert verdict.answer


@pytest.mark.parametrize(
    "answer",
    [
        *(None, "", "$", r"\frac{1}{0}", "9^{9^{9^{9}}}", "(99!)!", "10^{-10^{9}}"),
        *(r"5 \mod 0", r"\begin{pmatrix}1&2\end{pmatrix}^2"),
        *("((9^{9999})^{9999})^{9999}", "7" * (MAX_ANSWER_CHARS + 1)),
    ],
)
def test_no_answer_or_one_without_a_usable_value_is_unparseable_and_casts_no_vote(answer):
    verdict = judge_answer("72", answer)
    assert (verdict.outcome, verdict.answer) == (Outcome.UNPARSEABLE, None)
    assert verdict.reason


def test_an_answer_too_large_to_evaluate_is_correct_where_the_reference_is_the_same_text():
    assert judge_answer("9^{9^{9^{9}}}", "9^{9^{9^{9}}}").outcome is Outcome.CORRECT


@pytest.mark.parametrize("answer", [r"5 \mod 0", r"\begin{pmatrix}1&2\end{pmatrix}^2"])
def test_an_undefined_answer_is_correct_where_the_reference_is_the_same_text(answer):
    verdict = judge_answer(answer, answer)
    assert (verdict.outcome, verdict.answer) == (Outcome.CORRECT, answer)


@pytest.mark.parametrize(
    "answer", ["10^{5000}", r"10^{2500} \cdot 10^{2500}", r"10 \cdot 10^{4999}"]
)
def test_numbers_up_to_the_longest_are_compared_and_vote(answer):
    right, wrong = judge_answer("10^{5000}", answer), judge_answer("10^{5001}", answer)
    assert (right.outcome, wrong.outcome) == (Outcome.CORRECT, Outcome.INCORRECT)
    assert right.answer == wrong.answer
    assert right.answer.startswith("blake2b:")


@pytest.mark.parametrize("error", [MemoryError, RecursionError, TypeError])
def test_a_vote_that_cannot_be_found_is_an_exception(monkeypatch, error):
    def fail(value):
        raise error

    monkeypatch.setattr(answers, "_normal_form", fail)
    with pytest.raises(error):
        judge_answer("72", "70+2")


def test_a_reference_that_cannot_be_parsed_is_an_exception_and_no_verdict():
    with pytest.raises(ValueError, match="reference"):
        judge_answer("$", "72")


@settings(deadline=None, max_examples=50)
@given(st.integers(-(10**6), 10**6))
def test_one_value_has_one_vote(number):
    forms = [f"{number}", f"{number:,}", f"{number}.0", rf"\frac{{{2 * number}}}{{2}}"]
    votes = {judge_answer("72", form).answer for form in forms}
    assert votes == {str(number)}


@pytest.mark.parametrize("answer", ["7" * 900, "a+" * 300 + "b", r"\text{" + "\u202e" * 500 + "}"])
def test_votes_are_short(answer):
    assert len(judge_answer("72", answer).answer) <= MAX_VOTE_CHARS


@pytest.mark.parametrize(
    "response",
    [
        r"so \boxed{1080}",
        r"so \boxed{1,080}",
        r"so \boxed{\$1{,}080}",
        r"so \boxed{1\,080}",
        r"so \boxed{1080 dollars}",
        r"so \boxed{1080\text{ kg}}",
        r"so \boxed{$1080.00}",
        "worked out\n#### 1,080",
        "worked out\n#### 1080\nI hope this helps",
        r"#### 5 and then \boxed{1080}",
    ],
)
def test_gsm8k_reads_the_number_with_its_unit_or_after_the_mark(response):
    verdict = GSM8K.check(gsm8k_problem("1080"), response)
    assert (verdict.outcome, verdict.answer) == (Outcome.CORRECT, "1080")


@pytest.mark.parametrize(
    "response", [r"\boxed{1081}", r"\boxed{10.80}", "#### 108", r"#### 1080 but \boxed{3}"]
)
def test_gsm8k_refuses_another_number(response):
    assert GSM8K.check(gsm8k_problem("1080"), response).outcome is Outcome.INCORRECT


@pytest.mark.parametrize("response", ["", "it is 1080", r"\boxed{1080", "####", r"\boxed{}"])
def test_gsm8k_without_a_marked_answer_is_unparseable(response):
    assert GSM8K.check(gsm8k_problem("1080"), response).outcome is Outcome.UNPARSEABLE
