"""A check that ran out of memory or stack has said nothing about the answer, and says so."""

from __future__ import annotations

import pytest
import sympy

from rise_ray.mdp import Outcome
from rise_ray.tasks import loud
from rise_ray.tasks.answers import judge_answer
from rise_ray.tasks.loud import grader, parser


def raising(error):
    def fail(*args, **kwargs):
        raise error

    return fail


def break_parsing(monkeypatch, error):
    monkeypatch.setattr(parser, "latex2sympy", raising(error))
    parser.parse_latex_cached.cache_clear()


@pytest.mark.parametrize("error", [MemoryError, RecursionError])
def test_running_out_while_parsing_is_raised(monkeypatch, error):
    judge_answer("72", "72")  # the reference is parsed, and kept
    break_parsing(monkeypatch, error)
    with pytest.raises(error):
        judge_answer("72", "70 + 2")


@pytest.mark.parametrize("error", [MemoryError, RecursionError])
@pytest.mark.parametrize("step", ["simplify", "sympy_solve_and_compare", "unwrap_fcs"])
def test_running_out_while_comparing_is_raised(monkeypatch, error, step):
    monkeypatch.setattr(grader, step, raising(error))
    reference, answer = {
        "simplify": ("x^2", "x y"),
        "sympy_solve_and_compare": ("x + y = 1", "x + y = 2"),
        "unwrap_fcs": ("1 < x", r"(2, \infty)"),
    }[step]
    with pytest.raises(error):
        judge_answer(reference, answer)


@pytest.mark.parametrize("error", [MemoryError, RecursionError])
def test_running_out_within_sympy_is_raised(monkeypatch, error):
    monkeypatch.setattr(sympy.Expr, "__sub__", raising(error))
    with pytest.raises(error):
        judge_answer("x^2", "x y")


def test_what_else_goes_wrong_is_still_no_value_and_not_equal(monkeypatch):
    monkeypatch.setattr(grader, "simplify", raising(NotImplementedError))
    assert judge_answer("x^2", "x y").outcome is Outcome.INCORRECT
    break_parsing(monkeypatch, NotImplementedError)
    assert judge_answer("72", "70 + 1 + 1").outcome is Outcome.INCORRECT


def test_math_verify_itself_is_left_as_it_is():
    import math_verify

    assert loud.grader.verify is not math_verify.verify
    assert math_verify.parser.latex2sympy is not parser.latex2sympy
