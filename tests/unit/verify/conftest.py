"""Fixtures of the verifier's tests."""

from __future__ import annotations

import pytest

from rise_ray.config.settings import TaskConfig
from tests.unit.verify.harness import HOSTILE_TASK, SHORT_TASK


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    (tmp_path / "hostile_task.py").write_text(HOSTILE_TASK)
    (tmp_path / "short_task.py").write_text(SHORT_TASK)
    monkeypatch.syspath_prepend(tmp_path)
    return TaskConfig(name="hostile_task:Hostile")
