"""math-verify and its LaTeX reader, loaded so that a check that fails raises.

Its own `raise_on_error` reaches the outermost of its handlers only, and some twenty lie inside.
These answer any exception with "not equal" or "no value" (`except Exception: pass`). That is right
where the exception is the answer: the text is no mathematics, or the two values are of kinds that
cannot be equal. But a check that ran out of memory or stack, that sympy has no method for, or that
met a bug has not checked the answer, and no such check may turn into "incorrect". So here these
handlers keep the exceptions of the first sort and let all others pass. The modules are copies:
whoever imports math-verify itself gets the original.

Which exceptions are of the first sort depends on the module. Where a text is read, `ValueError` and
`ZeroDivisionError` say that it has no value: a matrix with rows of two lengths. Where two values
are compared, they say that one way to compare them does not apply, and these may be equal all the
same: sympy solves `x + y < 3` for no two symbols at once, and the last way to find it equal to
`2x + 2y < 6` is to solve both. So a wrong answer to a reference like that, an inequality in several
variables, is often an `error`. So is an answer that is a set, where the reference is a relation
in several variables: sympy cannot turn that into a set, and it may be the same one.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from types import CodeType, ModuleType

from sympy.matrices.exceptions import ShapeError

_OF_ANOTHER_KIND = (TypeError, AttributeError, ShapeError)
"""What Python and sympy raise where an operation is not there for such values: an order of symbols,
a difference of a number and an inequality, or of matrices of two shapes. (latex2sympy raises a bare
`Exception` for wrong syntax.) Nothing else came from 700 answers of MATH, each compared with itself
and with those of other problems."""
NO_VALUE = (ValueError, ZeroDivisionError)
"""What sympy raises where an expression is undefined; but see above for comparisons."""

_CHECK = "_raise_unless_an_answer"


class _StrictLoader(SourceFileLoader):
    """Has every handler of any exception call `_CHECK` first, a name that its module is given."""

    def get_code(self, fullname: str) -> CodeType:
        """Always from the source: the compiled file beside it is the original's."""
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        for node in ast.walk(tree):
            if not isinstance(node, ast.ExceptHandler):
                continue
            if node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"):
                node.body[:0] = ast.parse(f"{_CHECK}()").body
        return self.source_to_code(tree, path)


def _load(name: str, answers: tuple[type[Exception], ...]) -> ModuleType:
    """A copy whose handlers of any exception raise it again, unless it is one of `answers`."""

    def raise_unless_an_answer() -> None:
        error = sys.exception()
        if type(error) is not Exception and not isinstance(error, answers):
            raise

    found = importlib.util.find_spec(name)
    assert found is not None
    assert found.origin is not None
    loader = _StrictLoader(name, found.origin)
    module = importlib.util.module_from_spec(found)
    vars(module)[_CHECK] = raise_unless_an_answer
    loader.exec_module(module)
    return module


_latex2sympy = _load("latex2sympy2_extended.latex2sympy2", _OF_ANOTHER_KIND + NO_VALUE)
parser = _load("math_verify.parser", _OF_ANOTHER_KIND + NO_VALUE)
parser.latex2sympy = _latex2sympy.latex2sympy  # type: ignore[attr-defined]
grader = _load("math_verify.grader", _OF_ANOTHER_KIND)
