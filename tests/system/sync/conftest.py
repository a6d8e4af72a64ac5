"""Tiny models and engine actors for the tests of weight syncs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.system.sync.sync_harness import EngineHost, ModelMaker


@pytest.fixture(scope="module")
def maker(ray_runtime: None) -> Any:
    return ModelMaker.remote()


@pytest.fixture(scope="module")
def models(maker: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two versions of an untied and of a tied model."""
    root: Path = tmp_path_factory.mktemp("models")
    wanted = {"a": (0, False), "b": (1, False), "tied-a": (2, True), "tied-b": (3, True)}
    return {
        name: ray.get(maker.save.remote(str(root / name), seed, tied))
        for name, (seed, tied) in wanted.items()
    }


@pytest.fixture
def host() -> Iterator[Any]:
    """Makes engines, and ends them with the test."""
    hosts: list[Any] = []

    def make(model: str) -> Any:
        hosts.append(EngineHost.remote(model))
        return hosts[-1]

    yield make
    for handle in hosts:
        ray.kill(handle)
