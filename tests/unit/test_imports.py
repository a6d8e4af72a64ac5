"""What may import what, read from the code: a breach fails with the rule that it breaks.

Imports inside functions count: they are imports that happen later. Those under `TYPE_CHECKING` do
not, since nothing is imported by them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "rise_ray"
HEAVY = {"ray", "vllm", "torch", "deepspeed", "transformers"}
PURE = (
    *("mdp", "errors", "text", "config.", "evaluate.", "recipes.", "relabel.rules."),
    *("relabel.rule", "relabel.rewards", "relabel.examples"),
    *("rollout.episode", "rollout.leases", "run.specs", "run.tracks", "run.plans"),
    *("tasks.arithmetic", "tasks.base", "tasks.boxed", "tasks.countdown"),
)
"""Modules, and with a dot at the end whole rooms, that are tested without any process."""
MOST_FILES, MOST_LOOSE = 12, 8


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(name: str) -> tuple[tuple[str, bool], ...]:
    """What a module imports: a full name, and whether it is imported at once."""
    tree = ast.parse(modules()[name].read_text())
    return tuple(_imports(tree.body, at_once=True))


def _imports(body: list[ast.stmt], at_once: bool) -> Iterator[tuple[str, bool]]:
    for node in body:
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from ((_target(str(node.module), alias.name), at_once) for alias in node.names)
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for field in ("body", "orelse", "finalbody", "handlers"):
                yield from _imports(getattr(node, field, []), at_once and not inside)


def _target(module: str, name: str) -> str:
    """`from a import b` imports the module a.b where there is one, else a."""
    return f"{module}.{name}" if f"{module}.{name}" in modules() else module


def ours(name: str, at_once_only: bool = False) -> set[str]:
    """The package's modules that a module imports itself."""
    found = {to for to, at_once in imports(name) if at_once or not at_once_only}
    return {to for to in found if to in modules() and to != name}


def is_pure(name: str) -> bool:
    short = name.removeprefix("rise_ray.")
    return any(short == rule or (rule[-1] == "." and short.startswith(rule)) for rule in PURE)


def test_nothing_imports_a_recipe() -> None:
    breaches = [
        f"{name} imports {to}"
        for name in modules()
        if not name.startswith("rise_ray.recipes")
        for to in ours(name)
        if to.startswith("rise_ray.recipes")
    ]
    assert breaches == [], "a recipe is found by its name (rise_ray/config/recipe.py)"


@pytest.mark.parametrize("name", [name for name in modules() if is_pure(name)])
def test_pure_logic_imports_neither_ray_nor_vllm_nor_torch(name: str) -> None:
    """Not itself at any time, nor through other modules when it is imported."""
    seen, waiting = set(), [(name, (name,))]
    lazily = {to for to, _ in imports(name)}
    assert not {to.partition(".")[0] for to in lazily} & HEAVY, f"{name} is pure logic"
    while waiting:
        module, way = waiting.pop()
        heavy = {to.partition(".")[0] for to, at_once in imports(module) if at_once} & HEAVY
        assert not heavy, f"{name} is pure logic, but {' -> '.join(way)} imports {sorted(heavy)}"
        for to in ours(module, at_once_only=True) - seen:
            seen.add(to)
            waiting.append((to, (*way, to)))


def test_there_is_no_circle() -> None:
    done: set[str] = set()
    circles: list[str] = []

    def visit(name: str, way: tuple[str, ...]) -> None:
        if name in way:
            circles.append(" -> ".join((*way[way.index(name) :], name)))
        elif name not in done:
            for to in sorted(ours(name)):
                visit(to, (*way, name))
            done.add(name)

    for name in modules():
        visit(name, ())
    assert circles == [], "no circle of imports, lazy ones included"


def test_a_room_holds_two_to_twelve_files_and_few_lie_at_the_root() -> None:
    rooms = {PACKAGE, *(path.parent for path in modules().values())}
    sizes = {str(room.relative_to(ROOT)): len(list(room.glob("*.py"))) for room in sorted(rooms)}
    assert sizes.pop("rise_ray") <= MOST_LOOSE, "the tree says what the program does"
    assert {room: size for room, size in sizes.items() if not 2 < size <= MOST_FILES} == {}, (
        f"a room has two files at least, beside its __init__, and {MOST_FILES} at most"
    )
