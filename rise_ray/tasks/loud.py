"""math-verify and its LaTeX reader, loaded so that a check that fails is heard.

Both answer any exception with "not equal" or "no value" (`except Exception: pass`). That is right
where the exception is the answer: the text is no mathematics, or the two values are of kinds that
cannot be equal. But a check that ran out of memory or stack, that sympy has no method for, or that
met a bug has not checked the answer, and no such check may turn into "incorrect". So here these
handlers keep the exceptions of the first sort and let all others pass. The modules are copies:
whoever imports math-verify itself gets the original.
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


def _raise_unless_an_answer() -> None:
    error = sys.exception()
    if type(error) is not Exception and not isinstance(error, _OF_ANOTHER_KIND):
        raise


class _LoudLoader(SourceFileLoader):
    """Has every handler of any exception begin with `_raise_unless_an_answer`."""

    def get_code(self, fullname: str) -> CodeType:
        """Always from the source: the compiled file beside it is the original's."""
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler) and _hears_all(node):
                node.body[:0] = ast.parse(f"{_raise_unless_an_answer.__name__}()").body
        return self.source_to_code(tree, path)

    def exec_module(self, module: ModuleType) -> None:
        """With the handlers' first call among the module's names."""
        vars(module)[_raise_unless_an_answer.__name__] = _raise_unless_an_answer
        super().exec_module(module)


def _hears_all(handler: ast.ExceptHandler) -> bool:
    return handler.type is None or (
        isinstance(handler.type, ast.Name) and handler.type.id in ("Exception", "BaseException")
    )


def _load(name: str) -> ModuleType:
    found = importlib.util.find_spec(name)
    assert found is not None
    assert found.origin is not None
    loader = _LoudLoader(name, found.origin)
    spec = importlib.util.spec_from_file_location(name, found.origin, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


grader = _load("math_verify.grader")
parser = _load("math_verify.parser")
parser.latex2sympy = _load("latex2sympy2_extended.latex2sympy2").latex2sympy  # type: ignore[attr-defined]
