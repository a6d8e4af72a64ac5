"""A state in the run folder is read as tensors and numbers: a pickle with code in it never runs."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from rise_ray.config.settings import TrainConfig
from rise_ray.errors import StoreError
from rise_ray.train.deepspeed_config import deepspeed_config
from rise_ray.train.engine import TAG, load_state
from rise_ray.train.job import STATE_VERSION

CONFIG = TrainConfig(workers=1, batch_tokens=8, row_tokens=8, lr=0.1)


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.fixture(scope="module")
def in_own_process(ray_runtime: None) -> Iterator[Any]:
    """Calls a function in a process that has an engine, with the engine and more arguments."""
    process = ray.remote(num_cpus=1)(Process).remote()
    yield lambda work, *arguments: ray.get(process.call.remote(work, *arguments))
    ray.kill(process)


class Process:
    """One weight matrix under ZeRO-3 on one rank."""

    def __init__(self) -> None:
        os.environ |= {"DS_ACCELERATOR": "cpu", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        import deepspeed
        import torch

        from rise_ray.train.engine import take_over_process_group

        meeting = f"file://{tempfile.mkdtemp()}/ranks"
        torch.distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
        take_over_process_group()
        torch.manual_seed(0)
        self._engine, *_ = deepspeed.initialize(
            model=torch.nn.Linear(4, 4),
            config=deepspeed_config(CONFIG),
            lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda n: 1.0
            ),
        )

    def call(self, work: Any, *arguments: Any) -> Any:
        """What `work(engine, *arguments)` returns."""
        return work(self._engine, *arguments)


def step(engine: Any) -> float:
    import torch

    loss = engine(torch.ones(1, 4)).square().sum()
    engine.backward(loss)
    engine.step()
    return float(loss)


def test_a_state_comes_back_with_its_optimizer_and_the_callers_part(
    in_own_process: Any, tmp_path: Path
) -> None:
    def work(engine: Any, folder: str) -> tuple[list[float], list[float], dict[str, Any]]:
        for _ in range(3):
            step(engine)
        saved = {"schema_version": STATE_VERSION, "step": 3, "losses": [0.5]}
        engine.save_checkpoint(folder, tag=TAG, client_state=saved)
        expected = [step(engine), step(engine)]
        state = load_state(engine, folder)
        return expected, [step(engine), step(engine)], state

    expected, again, state = in_own_process(work, str(tmp_path))
    assert again == pytest.approx(expected, abs=1e-6)
    assert (state["step"], state["losses"]) == (3, [0.5])


def test_a_state_of_another_schema_version_is_refused(in_own_process: Any, tmp_path: Path) -> None:
    def work(engine: Any, folder: str) -> list[str]:
        refused = []
        for state in ({"step": 3}, {"schema_version": "0", "step": 3}):
            engine.save_checkpoint(folder, tag=TAG, client_state=state)
            try:
                load_state(engine, folder)
            except StoreError as error:
                refused.append(str(error))
        return refused

    without, other = in_own_process(work, str(tmp_path))
    assert (
        f"state of schema version None; this rise-ray reads {STATE_VERSION}; delete it" in without
    )
    assert "state of schema version 0; this" in other


def test_a_state_that_is_a_pickle_with_code_is_refused_and_does_not_run(
    in_own_process: Any, tmp_path: Path
) -> None:
    marker = tmp_path / "it ran"

    def work(engine: Any, folder: str, marker: Path) -> list[str]:
        import torch

        engine.save_checkpoint(folder, tag=TAG, client_state={"step": 3})
        refused = []
        for file in sorted(Path(folder, TAG).glob("*.pt")):
            whole = file.read_bytes()
            torch.save({"step": 3, "module": Trap(marker)}, file)
            try:
                load_state(engine, folder)
            except pickle.UnpicklingError as error:
                refused.append(f"{file.name}: {error}")
            file.write_bytes(whole)
        return refused

    refused = in_own_process(work, str(tmp_path / "state"), marker)
    assert len(refused) == 2  # the model's and the optimizer's
    assert all("Weights only load failed" in text for text in refused)
    assert not marker.exists()
