"""Mathematical answers: are two equal, and what is an answer's normal form for voting?

`math-verify` parses LaTeX and compares with sympy. Only its LaTeX extraction is used: the plain
expression one ends in sympy's `parse_expr`, which is Python's `eval`. Parsing and comparing can
take arbitrarily long, so this runs in the verifier's children; math-verify's own time limits
(signals) are off, since a limit that returns "not equal" would turn a failure into data. For the
same reason a check that fails raises (`rise_ray.tasks.strict_math_verify`).
"""

from __future__ import annotations

import hashlib
import logging
import math
import sys
from functools import lru_cache

import sympy
from sympy.core.relational import Equality

from rise_ray.mdp import Outcome, Verdict
from rise_ray.tasks.strict_math_verify import NO_VALUE, grader, parser

MAX_ANSWER_CHARS = 1000
"""A longer answer is unparseable."""
MAX_VOTE_CHARS = 200
"""A longer normal form is replaced by its hash."""
MAX_DIGITS = 10_000
"""An answer whose value may have more is not evaluated: it is unparseable."""

_EXTRACTION = [parser.LatexExtractionConfig(boxed_match_priority=0)]
_UNDEFINED = (sympy.nan, sympy.zoo)
_UNEVALUATED = (sympy.Integral, sympy.Sum, sympy.Product, sympy.Limit, sympy.Derivative)

Parsed = list[sympy.Basic | sympy.MatrixBase | str]

# sympy turns numbers into text to order them, and Python refuses that for more than 4,300 digits. A
# difference of two fractions has twice the digits of each.
sys.set_int_max_str_digits(2 * MAX_DIGITS)

# It warns in every process that its time limits are off; that is on purpose (see above).
logging.getLogger("math_verify").setLevel(logging.ERROR)


def judge_answer(reference: str, answer: str | None) -> Verdict:
    """Compare the LaTeX `answer` with the LaTeX `reference`; `answer` None is unparseable.

    Raises:
        ValueError: the reference itself cannot be read.
        Exception: any other is a check that failed, out of memory for example, and says nothing
            of the answer. The verifier makes each of them an `error`.
    """
    if not answer:
        return Verdict(Outcome.UNPARSEABLE, None, r"no \boxed{} with an answer")
    if len(answer) > MAX_ANSWER_CHARS:
        reason = f"the answer has {len(answer)} characters, more than {MAX_ANSWER_CHARS}"
        return Verdict(Outcome.UNPARSEABLE, None, reason)
    gold = _parse_reference(reference)
    found = _parse(answer)
    if not found:
        return Verdict(Outcome.UNPARSEABLE, None, "the boxed text is not an answer")
    fault = _why_no_value(found[-1])
    if fault is not None and found[0] != gold[0]:
        return Verdict(Outcome.UNPARSEABLE, None, fault)
    equal = grader.verify(gold, found, timeout_seconds=None, raise_on_error=True)
    vote = str(found[0]) if fault else _normal_form(found[-1])
    if len(vote) > MAX_VOTE_CHARS:
        digest = hashlib.blake2b(vote.encode("utf-8", "backslashreplace"), digest_size=16)
        vote = f"blake2b:{digest.hexdigest()}"
    if equal:
        return Verdict(Outcome.CORRECT, vote, f"equals {reference}")
    return Verdict(Outcome.INCORRECT, vote, f"differs from {reference}")


def _parse(latex: str) -> Parsed:
    """The normalised text and then, where it parses, the sympy value; [] if there is neither.

    The text comes first so that equal texts are equal before any symbolic work.
    """
    found: Parsed = parser.parse(
        rf"\boxed{{{latex}}}", _EXTRACTION, parsing_timeout=None, raise_on_error=True
    )
    return found[::-1]


@lru_cache(maxsize=4096)  # a problem's candidates all meet the same reference
def _parse_reference(reference: str) -> Parsed:
    gold = _parse(reference)
    if not gold:
        raise ValueError(f"the reference answer {reference!r} cannot be parsed")
    return gold


def _why_no_value(value: sympy.Basic | sympy.MatrixBase | str) -> str | None:
    """Why this parsed answer has no value, or none that may be evaluated; None if it has."""
    if not isinstance(value, sympy.Basic):
        return None
    if value.has(*_UNDEFINED):
        return "the answer is undefined"
    if any(_digits(node) > MAX_DIGITS for node in sympy.preorder_traversal(value)):
        return f"the answer's value may have more than {MAX_DIGITS} digits"
    if value.has(*_UNEVALUATED):
        return None
    try:
        value.doit()
    except NO_VALUE as error:  # a remainder by zero, the square of a row
        return f"the answer is undefined: {error}"
    return None


def _digits(node: sympy.Basic) -> float:
    """About how many digits the value of an expression has at most; found without evaluating."""
    if isinstance(node, sympy.Rational):
        return math.log10(max(abs(node.p), node.q))
    parts = [_digits(part) for part in node.args]
    if isinstance(node, sympy.Pow):
        return parts[0] * _size(parts[1])
    if isinstance(node, sympy.factorial):
        return parts[0] * _size(parts[0])
    if isinstance(node, sympy.Mul):
        return sum(parts)
    return max(parts, default=1.0) + math.log10(max(1, len(parts)))


def _size(digits: float) -> float:
    """The largest number of so many digits; beyond float's range, just one that is too large."""
    return 10.0 ** min(digits, 300.0)


def _normal_form(value: sympy.Basic | sympy.MatrixBase | str) -> str:
    """One string for equal values, as far as evaluation (not simplification) shows it."""
    if isinstance(value, Equality) and value.lhs.is_Symbol:
        value = value.rhs  # x = 5 votes with 5, as it compares equal to it
    if isinstance(value, sympy.Basic) and not value.has(*_UNEVALUATED):
        value = value.doit()
        value = value.xreplace({f: sympy.Rational(str(f)) for f in value.atoms(sympy.Float)})
    return str(value)
