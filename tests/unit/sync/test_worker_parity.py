"""A worker refuses weights that it was told of and did not get, whatever the tolerance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rise_ray.config.settings import ModelConfig, SyncConfig, WorkersConfig
from rise_ray.errors import SyncError
from rise_ray.mdp import WeightVersion
from rise_ray.rollout.worker import RolloutWorker
from rise_ray.store.files import Folder
from rise_ray.sync.parity import ParityReference

SEQUENCE = tuple(range(5))
OLD, NEW = (-1.0, -2.0, -0.5, -3.0), (-1.02, -1.97, -0.52, -3.03)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the worker's engine answers to the probe."""
    answers: dict[str, Any] = {"rows": (OLD,)}
    monkeypatch.setattr(
        "rise_ray.rollout.worker.engine_logprobs", lambda engine, sequences: answers["rows"]
    )
    monkeypatch.setattr(RolloutWorker, "engine", None, raising=False)
    return answers


def version(iteration: int, logprobs: tuple[float, ...], folder: Path) -> WeightVersion:
    ParityReference((SEQUENCE,), (logprobs,)).save(Folder(str(folder)))
    return WeightVersion(iteration, str(folder), str(folder))


def test_a_sync_that_left_the_old_weights_is_an_error_that_names_engine_and_versions(
    tmp_path: Path, engine: dict[str, Any]
) -> None:
    old, new = version(3, OLD, tmp_path / "old"), version(4, NEW, tmp_path / "new")
    model = ModelConfig(path="m", max_model_len=16, dtype="bfloat16")
    worker = RolloutWorker("rollout-7", old, model, WorkersConfig(), SyncConfig(), [], seed=0)
    assert worker.adopt(old).mean == 0.0
    with pytest.raises(SyncError, match=r"rollout-7 .* version 4: it still .* like version 3"):
        worker.adopt(new)
    engine["rows"] = (NEW,)
    assert worker.adopt(new).max == 0.0
