"""What decides a verdict, as a text that is stored with it.

    gsm8k/0.1.0/math-verify 0.9.0/latex2sympy2_extended 1.11.0/sympy 1.14.0/source 1f0c5a9be2d4

Verdicts with one such text were made by the same rules: the task, rise-ray's own version, those of
the libraries that read and compare answers, and a digest of the code that calls them. What the
user's own task imports from elsewhere is not in it.
"""

from __future__ import annotations

import hashlib
import sys
from importlib.metadata import version
from typing import Any, cast

from rise_ray import __version__
from rise_ray.tasks.base import Task

_LIBRARIES = ("math-verify", "latex2sympy2_extended", "sympy")
_DECIDE_NOTHING = {"pydantic", "rise_ray", *sys.stdlib_module_names}
"""Packages of classes that a task may extend. (`rise_ray.config` changes with any setting.)"""


def verifier_version(name: str, task: Task) -> str:
    """Of `task`, which was loaded in this process as `name`."""
    libraries = [f"{library} {version(library)}" for library in _LIBRARIES]
    digest = hashlib.blake2b(digest_size=6)
    # The modules of the task's class and of those it extends, and ours that it has imported.
    ours = {module for module in sys.modules if module.startswith("rise_ray.tasks.")}
    classes = {base.__module__ for base in type(task).__mro__}
    others = {name for name in classes if name.partition(".")[0] not in _DECIDE_NOTHING}
    for module in sorted(ours | others):
        # Code as Python's own loader reads it: from a folder or an archive, source or compiled.
        loader = cast(Any, sys.modules[module].__loader__)
        code = loader.get_data(sys.modules[module].__file__)
        digest.update(hashlib.blake2b(code).digest())
    return "/".join([name, __version__, *libraries, f"source {digest.hexdigest()}"])
