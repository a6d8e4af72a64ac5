"""A check that failed has said nothing about the answer, and says so."""

from __future__ import annotations

import pytest
import sympy

from rise_ray.mdp import Outcome
from rise_ray.tasks import strict_math_verify
from rise_ray.tasks.answers import judge_answer
from rise_ray.tasks.strict_math_verify import grader, parser

FAILURES = [MemoryError, RecursionError, NotImplementedError, IndexError]


def raising(error):
    def fail(*args, **kwargs):
        raise error

    return fail


def break_parsing(monkeypatch, error):
    monkeypatch.setattr(parser, "latex2sympy", raising(error))
    parser.parse_latex_cached.cache_clear()


@pytest.mark.parametrize("error", FAILURES)
def test_a_failure_of_the_parser_is_raised(monkeypatch, error):
    judge_answer("72", "72")  # the reference is parsed, and kept
    break_parsing(monkeypatch, error)
    with pytest.raises(error):
        judge_answer("72", "70 + 2")


@pytest.mark.parametrize("error", [ValueError, ZeroDivisionError])
def test_what_is_undefined_while_it_is_read_has_no_value(monkeypatch, error):
    judge_answer("72", "72")
    break_parsing(monkeypatch, error)
    verdict = judge_answer("72", "70 + 2")
    assert (verdict.outcome, verdict.answer) == (Outcome.INCORRECT, "70 + 2")


@pytest.mark.parametrize("error", [*FAILURES, ValueError, ZeroDivisionError])
@pytest.mark.parametrize("step", ["simplify", "sympy_solve_and_compare", "unwrap_fcs"])
def test_a_failure_of_the_comparison_is_raised(monkeypatch, error, step):
    monkeypatch.setattr(grader, step, raising(error))
    reference, answer = {
        "simplify": ("x^2", "x y"),
        "sympy_solve_and_compare": ("x + y = 1", "x + y = 2"),
        "unwrap_fcs": ("1 < x", r"(2, \infty)"),
    }[step]
    with pytest.raises(error):
        judge_answer(reference, answer)


@pytest.mark.parametrize("error", [*FAILURES, ValueError, ZeroDivisionError])
def test_a_failure_within_sympy_is_raised(monkeypatch, error):
    monkeypatch.setattr(sympy.Expr, "__sub__", raising(error))
    with pytest.raises(error):
        judge_answer("x^2", "x y")


@pytest.mark.parametrize(
    ("reference", "answer", "error"),
    [
        ("x + y > 1", "(0, 3)", NotImplementedError),  # sympy has no method
        ("x + y > 1", r"\{x + y > 1\}", NotImplementedError),  # for what is right, either
        ("x + y < 3", "x + y < 4", ValueError),
        ("x + y < 3", "2x + 2y < 6", ValueError),  # right
        ("61,328", r"-\log 37", ValueError),  # more digits than Python turns into text
        ("72", r"2\$\in\$10^{9}", IndexError),  # a bug of latex2sympy's
    ],
)
def test_what_cannot_be_compared_is_not_incorrect(reference, answer, error):
    with pytest.raises(error):
        judge_answer(reference, answer)


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("8", "(3"),  # no mathematics
        ("8", "7 apples each"),
        ("3", "1 < x"),  # a number and an inequality
        ("3.2", "x y"),  # what cannot be rounded
        (r"(2, \infty)", "5 x"),  # what is on no side of 2
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\2\\3\end{pmatrix}"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", "3"),
        ("8", r"\begin{pmatrix}1&2\\3\end{pmatrix}"),  # no matrix
    ],
)
def test_no_mathematics_and_another_kind_are_incorrect(reference, answer):
    assert judge_answer(reference, answer).outcome is Outcome.INCORRECT


def test_math_verify_itself_is_left_as_it_is():
    import math_verify

    assert strict_math_verify.grader.verify is not math_verify.verify
    assert math_verify.parser.latex2sympy is not parser.latex2sympy
