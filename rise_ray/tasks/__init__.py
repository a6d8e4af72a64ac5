"""Tasks by name: what is solved, how it is asked, how an answer is judged.

task = load_task(TaskConfig(name="gsm8k", options={"path": "train.jsonl"}))
"""

from __future__ import annotations

import inspect
from typing import cast

from pydantic import ValidationError

from rise_ray.config.base import named_class
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
    try:
        task_class = named_class(config.name, BUILT_IN, "task")
    except ValueError as error:
        raise ConfigError(f"`task.name`: {error}") from error
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
