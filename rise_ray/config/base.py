"""What every group of settings is, and how a setting names a class."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A group of settings: unknown keys are refused, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def named_class(name: str, built_in: Mapping[str, str], kind: str, base: type = object) -> Any:
    """The class that `name` stands for: of `built_in`, or an import path (`package.module:Class`).

    Raises:
        ValueError: there is no such `kind` of class, or none that extends `base`; says what is
            allowed.
    """
    module_name, colon, class_name = built_in.get(name, name).partition(":")
    if not colon:
        raise ValueError(
            f"unknown {kind} `{name}` (allowed: {', '.join(built_in)}, or the import path of your "
            "own as `package.module:Class`)"
        )
    try:
        found = getattr(importlib.import_module(module_name), class_name, None)
    except (ImportError, ValueError) as error:  # ValueError: an empty or relative module name
        raise ValueError(f"`{name}`: module `{module_name}` cannot be imported: {error}") from error
    if not inspect.isclass(found):
        raise ValueError(f"`{name}`: `{module_name}` has no class `{class_name}`")
    if not issubclass(found, base):
        raise ValueError(f"`{name}`: `{module_name}` has no {kind} `{class_name}`")
    return found
