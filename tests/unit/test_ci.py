"""What CI sets before the tests: data sets beside the checkout are found, others are kept."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "run"
DATA = {
    "RISE_RAY_GSM8K": "shared/data/gsm8k/train.jsonl",
    "RISE_RAY_MATH": "shared/data/math/test_first700.jsonl",
}


@pytest.fixture
def ci(tmp_path: Path) -> Path:
    """The script in a checkout without anything else, and a `make` that shows its environment."""
    script = tmp_path / "checkout" / ".ci" / "run"
    script.parent.mkdir(parents=True)
    (tmp_path / "checkout" / "tests").mkdir()
    shutil.copy(SCRIPT, script)
    make = tmp_path / "bin" / "make"
    make.parent.mkdir()
    make.write_text("#!/bin/sh\nenv\n")
    make.chmod(0o755)
    return script


def seen_by_make(script: Path, **environment: str) -> dict[str, str]:
    outer = {k: v for k, v in os.environ.items() if k not in DATA} | environment
    outer["PATH"] = f"{script.parents[2] / 'bin'}:{outer['PATH']}"
    done = subprocess.run([script], env=outer, capture_output=True, text=True, check=True)
    lines = (line.partition("=") for line in done.stdout.splitlines())
    return {name: value for name, _, value in lines if name in DATA}


def test_data_sets_beside_the_checkout_are_named_unless_others_are(
    ci: Path, tmp_path: Path
) -> None:
    assert seen_by_make(ci) == {}
    for path in DATA.values():
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    found = {name: Path(path) for name, path in seen_by_make(ci).items()}
    assert {name: path.resolve() for name, path in found.items()} == {
        name: tmp_path / path for name, path in DATA.items()
    }
    assert all(path.is_absolute() for path in found.values())
    assert seen_by_make(ci, RISE_RAY_MATH="/mine")["RISE_RAY_MATH"] == "/mine"
