"""Integer expressions over `+ - *`: a parser for untrusted text, and their normal form.

Text is never handed to Python's own evaluation; length and nesting are bounded.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass

MAX_EXPRESSION_CHARS = 200
MAX_DEPTH = 20
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}

_TOKEN = re.compile(r"[0-9]+|\S")


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed expression: what it is worth, the numbers in it, and its normal form.

    The normal form is a sum of signed terms and a product of factors, each flattened and
    sorted, so that expressions equal by the laws of + and * alone get the same `text`.
    """

    value: int
    numbers: tuple[int, ...]
    terms: tuple[tuple[bool, str], ...]
    """(is subtracted, text)"""
    factors: tuple[str, ...]

    @property
    def text(self) -> str:
        """The normal form; added terms come first, so that it never starts with a sign."""
        signed = "".join(("-" if minus else "+") + term for minus, term in self.terms)
        return signed.removeprefix("+")

    def combine(self, sign: str, other: Expression) -> Expression:
        """`self sign other`, for one of `+ - *`."""
        value = OPERATIONS[sign](self.value, other.value)
        numbers = self.numbers + other.numbers
        if sign == "*":
            factors = tuple(sorted(self.factors + other.factors))
            return Expression(value, numbers, ((False, "*".join(factors)),), factors)
        added = ((minus != (sign == "-"), term) for minus, term in other.terms)
        total = Expression(value, numbers, tuple(sorted((*self.terms, *added))), ())
        return Expression(value, numbers, total.terms, (f"({total.text})",))


def parse_expression(text: str) -> Expression:
    """Parse numbers, `+ - *` and parentheses by recursive descent; nothing is evaluated as code.

    Raises:
        ValueError: it is something else, too long or too deeply nested; says what.
    """
    if len(text) > MAX_EXPRESSION_CHARS:
        raise ValueError(f"has {len(text)} characters, more than {MAX_EXPRESSION_CHARS}")
    parser = _Parser(_TOKEN.findall(text))
    expression = parser.sum(depth=0)
    if parser.peek() is not None:
        raise ValueError(f"unexpected {parser.peek()!r}")
    return expression


class _Parser:
    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._next = 0

    def peek(self) -> str | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def take(self) -> str:
        token = self.peek()
        if token is None:
            raise ValueError("ends too early")
        self._next += 1
        return token

    def sum(self, depth: int) -> Expression:
        left = self.product(depth)
        while self.peek() in ("+", "-"):
            left = left.combine(self.take(), self.product(depth))
        return left

    def product(self, depth: int) -> Expression:
        left = self.atom(depth)
        while self.peek() == "*":
            left = left.combine(self.take(), self.atom(depth))
        return left

    def atom(self, depth: int) -> Expression:
        token = self.take()
        if token == "(":
            if depth == MAX_DEPTH:
                raise ValueError(f"nests deeper than {MAX_DEPTH}")
            inner = self.sum(depth + 1)
            if self.take() != ")":
                raise ValueError("a parenthesis is not closed")
            return inner
        if not (token.isascii() and token.isdigit()):
            raise ValueError(f"unexpected {token!r}")
        return Expression(int(token), (int(token),), ((False, token),), (token,))
