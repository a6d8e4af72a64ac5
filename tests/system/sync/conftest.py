"""Tiny models and engine actors for the tests of weight syncs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.system.sync.sync_harness import EngineHost, ModelMaker


@pytest.fixture(scope="session")
def maker(ray_runtime: None) -> Any:
    return ModelMaker.remote()


@pytest.fixture(scope="session")
def models(maker: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two versions of an untied and of a tied model."""
    root: Path = tmp_path_factory.mktemp("models")
    wanted = {"a": (0, False), "b": (1, False), "tied-a": (2, True), "tied-b": (3, True)}
    return {
        name: ray.get(maker.save.remote(str(root / name), seed, tied))
        for name, (seed, tied) in wanted.items()
    }


@pytest.fixture(scope="session")
def engine(models: dict[str, str]) -> Iterator[Any]:
    """An engine that loaded the untied model `a`; a test that syncs it syncs it back."""
    yield from _host(models["a"])


@pytest.fixture(scope="session")
def tied_engine(models: dict[str, str]) -> Iterator[Any]:
    """An engine that loaded the tied model `tied-a`, for the tests until one has damaged it."""
    yield from _host(models["tied-a"])


def _host(model: str) -> Iterator[Any]:
    host = EngineHost.remote(model)
    yield host
    ray.kill(host)
