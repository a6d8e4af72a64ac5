"""What the driver decides before the ranks start: what a state is of, the plan, what it refuses."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen3Config

from rise_ray.config.settings import TrainConfig
from rise_ray.errors import TrainError
from rise_ray.mdp import Example, Place, Provenance, Span
from rise_ray.store.examples import ExampleManifest, write_example_parts
from rise_ray.store.files import Folder
from rise_ray.train import fit
from rise_ray.train.fit import _digest, _plan, _sees_all


def _state(name: str = "iteration=1", seed: int = 3, **settings: Any) -> str:
    config = TrainConfig(workers=1, **settings)
    job: Any = SimpleNamespace(name=name, base="m", seed=seed, token_budget=None, config=config)
    return _digest(job, ExampleManifest(parts=(), mean_weight=1.0))


def test_a_training_of_another_name_state_version_seed_or_learning_rate_has_another_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = _state()
    assert state == _state()
    assert state == _state(max_failures=7)  # how it is done, not what
    assert state == _state(rows_per_pass=4)
    assert state == _state(max_skipped_steps=7)  # a training that they ended goes on
    assert state != _state(name="iteration=2")
    assert state != _state(seed=4)
    assert state != _state(lr=0.5)
    monkeypatch.setattr(fit, "STATE_VERSION", "another")
    assert state != _state()


@pytest.mark.parametrize(
    ("config", "sees_all"),
    [
        (LlamaConfig(), True),
        (Qwen3Config(num_hidden_layers=2), True),
        (MistralConfig(sliding_window=None), True),
        (MistralConfig(sliding_window=128), False),
        (Gemma3TextConfig(num_hidden_layers=6), False),
    ],
)
def test_a_model_with_a_sliding_window_shares_no_prefixes(
    config: Any, sees_all: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config.save_pretrained(tmp_path)
    job: Any = SimpleNamespace(name="iteration=1", base=str(tmp_path), trust_remote_code=False)
    assert _sees_all(job) == sees_all
    assert ("iteration=1: shared prefixes are not used" in caplog.text) == (not sees_all)


def test_an_example_longer_than_a_row_is_named(tmp_path: Path) -> None:
    place = Place("iteration", 1, "collect")
    origin = Provenance("candidate", "all", "t", "p", place, 0, 0, 1.0, 0, 0, "")
    made = [Example(f"e{n}", tuple(range(n)), (Span(1, n, 1.0),), origin) for n in (3, 33, 4)]
    folder = Folder(str(tmp_path))
    manifest = write_example_parts(folder, made, seed=0)
    config = TrainConfig(workers=1, batch_tokens=32, row_tokens=32)
    job: Any = SimpleNamespace(config=config, token_budget=None, seed=0)
    with pytest.raises(TrainError, match=r"^example e33 has 33 tokens.*`row_tokens` = 32$"):
        _plan(job, folder, manifest)
