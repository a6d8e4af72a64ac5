"""The versions that a run was made with."""

from __future__ import annotations

import platform
from importlib.metadata import packages_distributions, version

_PACKAGES = ("rise-ray", "ray", "torch", "deepspeed", "transformers", "datasets", "wandb")


def package_versions() -> dict[str, str]:
    """Python and the packages that decide a run's figures; vLLM by the build that is installed."""
    names = (*_PACKAGES, *packages_distributions()["vllm"])
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
