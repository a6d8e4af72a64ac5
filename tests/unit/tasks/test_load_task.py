"""A task is found by its name or import path, and a wrong one is refused with what is allowed."""

from __future__ import annotations

import pytest

from rise_ray.config.settings import TaskConfig
from rise_ray.errors import ConfigError
from rise_ray.tasks import load_task

OWN_TASK = """
class Own:
    name = "own"
    def __init__(self, size, color="red"):
        self.size = size
    def load(self, split): return []
    def prompt(self, problem): return []
    def feedback(self, problem): return ""
    def check(self, problem, response): ...
    def reference_response(self, problem): return None
    def demonstrations(self, problems, count, rng): return iter(())
    def vocabulary(self): return None

class Half:
    name = "half"
    def load(self, split): return []

number = 3
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_task.py").write_text(OWN_TASK)
    (tmp_path / "broken_task.py").write_text("import no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("name", ["countdown", "gsm8k", "math"])
def test_a_built_in_task_is_loaded_by_its_name_without_reading_data(name):
    assert load_task(TaskConfig(name=name)).name == name


def test_an_own_task_is_loaded_by_its_import_path_with_its_options(own_module):
    task = load_task(TaskConfig(name="own_task:Own", options={"size": 3}))
    assert task.size == 3


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("gsm9k", {}, ["gsm9k", "countdown, gsm8k, math", "package.module:Class"]),
        ("no_such_package.tasks:Mine", {}, ["no_such_package", "cannot be imported"]),
        ("broken_task:Mine", {}, ["broken_task", "no_such_module"]),
        (":Mine", {}, ["cannot be imported"]),
        ("own_task:Missing", {}, ["own_task", "no class `Missing`"]),
        ("own_task:number", {}, ["no class `number`"]),
        ("own_task:Half", {}, ["not a task", "check", "prompt"]),
        ("own_task:Own", {}, ["size", "allowed: size, color"]),
        ("own_task:Own", {"size": 1, "colour": 2}, ["colour", "allowed: size, color"]),
        ("countdown", {"numbers": 4}, ["numbers", "allowed: none"]),
        ("gsm8k", {"pathh": "x"}, ["pathh", "allowed: path, subset, paths, dev_share, feedback"]),
        ("gsm8k", {"dev_share": 2}, ["dev_share", "less than 0.9"]),
        ("gsm8k", {"path": 7}, ["path", "string"]),
        ("gsm8k", {"feedback": ""}, ["feedback"]),
        ("math", {"paths": {"valid": "a.jsonl"}}, ["valid", "train, dev, test"]),
        ("math", {"paths": {"train": "a.csv"}}, ["a.csv", ".jsonl"]),
    ],
)
def test_a_wrong_task_is_a_config_error_that_says_what_is_allowed(own_module, name, options, says):
    with pytest.raises(ConfigError) as caught:
        load_task(TaskConfig(name=name, options=options))
    for text in says:
        assert text in str(caught.value)
