"""math-verify and its LaTeX reader, loaded so that running out of memory or stack is heard.

Both answer any exception with "not equal" or "no value" (`except Exception: pass`). That is right
for text that makes no sense, but an answer whose check ran out of memory or stack was never
checked, and no check may turn into "incorrect". So here `MemoryError` and `RecursionError` pass
every handler of theirs. The modules are copies: whoever imports math-verify itself gets the
original.
"""

from __future__ import annotations

import ast
import importlib.util
from importlib.machinery import SourceFileLoader
from types import CodeType, ModuleType

_LET_THROUGH = "try: pass\nexcept (MemoryError, RecursionError): raise"


class _LoudLoader(SourceFileLoader):
    """Puts a handler that re-raises the two before the handlers of every `try`."""

    def get_code(self, fullname: str) -> CodeType:
        """Always from the source: the compiled file beside it is the original's."""
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        for node in ast.walk(tree):
            if isinstance(node, ast.Try):
                node.handlers.insert(0, _let_through())
        return self.source_to_code(tree, path)


def _let_through() -> ast.ExceptHandler:
    statement = ast.parse(_LET_THROUGH).body[0]
    assert isinstance(statement, ast.Try)
    return statement.handlers[0]


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
