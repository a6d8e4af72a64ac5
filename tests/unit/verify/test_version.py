"""Whatever decides a verdict is in the text that is stored with it."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

from rise_ray.tasks.base import Task
from rise_ray.tasks.countdown import Countdown
from rise_ray.tasks.gsm8k import Gsm8k
from rise_ray.verify import version
from rise_ray.verify.version import verifier_version


def test_it_names_the_task_the_libraries_and_the_source():
    assert re.fullmatch(
        r"gsm8k/[^/]+/math-verify [\d.]+/latex2sympy2_extended [\d.]+/sympy [\d.]+"
        r"/source [0-9a-f]{12}",
        verifier_version("gsm8k", Gsm8k()),
    )


def test_the_same_sources_have_the_same_version():
    assert verifier_version("gsm8k", Gsm8k()) == verifier_version("gsm8k", Gsm8k())


@pytest.mark.parametrize("library", ["math-verify", "latex2sympy2_extended", "sympy"])
def test_another_version_of_a_library_is_another_version(monkeypatch, library):
    installed = version.version
    monkeypatch.setattr(version, "version", lambda name: installed(name) + ".1" * (name == library))
    changed = verifier_version("gsm8k", Gsm8k())
    monkeypatch.undo()
    assert changed != verifier_version("gsm8k", Gsm8k())


@pytest.mark.parametrize(
    ("task", "module"),
    [
        *(
            (Gsm8k, f"rise_ray.tasks.{name}")
            for name in ("answers", "strict_math_verify", "boxed", "gsm8k")
        ),
        (Countdown, "rise_ray.tasks.arithmetic"),
    ],
)
def test_another_source_of_a_module_that_decides_is_another_version(monkeypatch, task, module):
    before = verifier_version("task", task())
    change_source(monkeypatch, module)
    assert verifier_version("task", task()) != before


@pytest.mark.parametrize("changed", ["users_base", "users_task"])
def test_a_task_of_the_users_own_is_in_it_with_the_classes_it_extends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    (tmp_path / "users_base.py").write_text(
        "from rise_ray.tasks.gsm8k import Gsm8k\nclass Base(Gsm8k): pass\n"
    )
    (tmp_path / "users_task.py").write_text("from users_base import Base\nclass Own(Base): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = own_version()
    with (tmp_path / f"{changed}.py").open("a") as source:
        source.write("# another rule\n")
    assert own_version() != before


def own_version() -> str:
    import users_task

    task: Task = users_task.Own()
    try:
        return verifier_version("users_task:Own", task)
    finally:
        del sys.modules["users_task"], sys.modules["users_base"]


def change_source(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    def get_data(path: str) -> bytes:
        return Path(path).read_bytes() + b"# another rule"

    loader = types.SimpleNamespace(get_data=get_data)
    monkeypatch.setattr(sys.modules[module], "__loader__", loader)
