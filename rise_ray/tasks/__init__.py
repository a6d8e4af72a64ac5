"""Tasks by name: what is solved, how it is asked, how an answer is judged.

task = load_task(TaskConfig(name="gsm8k", options={"path": "train.jsonl"}))
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any, cast

from pydantic import ValidationError

from rise_ray.config.settings import TaskConfig
from rise_ray.errors import ConfigError
from rise_ray.tasks.base import Task

BUILT_IN = {
    "countdown": "rise_ray.tasks.countdown:Countdown",
    "gsm8k": "rise_ray.tasks.gsm8k:Gsm8k",
    "math": "rise_ray.tasks.math:Math",
}
_METHODS = tuple(name for name in vars(Task) if not name.startswith("_"))


def load_task(config: TaskConfig) -> Task:
    """The task that `config` names, constructed with its options; reads no data yet.

    Raises:
        ConfigError: the name is unknown, its module cannot be imported, the class is not a
            task, or an option is unknown or has a bad value; says what is allowed.
    """
    task_class = _import(config.name)
    try:
        inspect.signature(task_class).bind(**config.options)
    except TypeError as error:
        allowed = ", ".join(inspect.signature(task_class).parameters) or "none"
        raise ConfigError(
            f"`task.options` of `{config.name}`: {error} (allowed: {allowed})"
        ) from error
    try:
        task = task_class(**config.options)
    except ValidationError as error:
        # Without the values, which may be secrets in the wrong place; pydantic's error holds them.
        lines = [
            f"`task.options.{'.'.join(map(str, wrong['loc']))}` of `{config.name}`: {wrong['msg']}"
            for wrong in error.errors()
        ]
        raise ConfigError("\n".join(lines)) from None
    missing = [m for m in _METHODS if not callable(getattr(task, m, None))]
    missing += [] if isinstance(getattr(task, "name", None), str) else ["name"]
    if missing:
        raise ConfigError(
            f"`task.name`: `{config.name}` is not a task: it lacks {', '.join(missing)} "
            "(rise_ray.tasks.base)"
        )
    return cast(Task, task)


def _import(name: str) -> Any:
    module_name, colon, class_name = BUILT_IN.get(name, name).partition(":")
    if not colon:
        raise ConfigError(
            f"`task.name`: unknown task `{name}` (allowed: {', '.join(BUILT_IN)}, "
            "or the import path of your own as `package.module:Class`)"
        )
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:  # ValueError: an empty or relative module name
        raise ConfigError(
            f"`task.name`: `{name}`: module `{module_name}` cannot be imported: {error}"
        ) from error
    task_class = getattr(module, class_name, None)
    if not inspect.isclass(task_class):
        raise ConfigError(f"`task.name`: `{name}`: `{module_name}` has no class `{class_name}`")
    return task_class
