"""Ray Train resumes a run by its name: what changes the meaning of a state changes the name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rise_ray.config.settings import TrainConfig
from rise_ray.store.examples import ExampleManifest
from rise_ray.train import fit
from rise_ray.train.fit import _run_name


def _task(seed: int = 3, **settings: Any) -> Any:
    config = TrainConfig(workers=1, **settings)
    job = SimpleNamespace(name="iteration=1", base="m", seed=seed, token_budget=None, config=config)
    return SimpleNamespace(job=job, manifest=ExampleManifest(parts=(), mean_weight=1.0))


def test_a_run_of_another_state_version_seed_or_learning_rate_has_another_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = _run_name(_task())
    assert name == _run_name(_task())
    assert name == _run_name(_task(max_failures=7))  # how it is done, not what
    assert name == _run_name(_task(max_skipped_steps=7))  # a run that they ended goes on
    assert name != _run_name(_task(seed=4))
    assert name != _run_name(_task(lr=0.5))
    monkeypatch.setattr(fit, "STATE_VERSION", "another")
    assert name != _run_name(_task())
