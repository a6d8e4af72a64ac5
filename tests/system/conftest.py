"""What all system tests share, because starting it dominates their time.

One Ray runtime, two tiny random models, one verifier, one pool, one whole run; and a look, at the
end, that no process of ours is left, and nothing in the user's home. Where pytest has several
processes, each has its own Ray, and the rest is started in one of them.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from rise_ray.cluster.connection import start_local_ray
from rise_ray.config.loading import load_config
from rise_ray.config.settings import (
    ModelConfig,
    ScratchConfig,
    SyncConfig,
    TaskConfig,
    VerifyConfig,
    WorkersConfig,
)
from rise_ray.mdp import WeightVersion
from rise_ray.report.console import Console
from rise_ray.rollout.pool import RolloutPool
from rise_ray.run.journal import Run
from rise_ray.run.stages import Stages
from rise_ray.store.files import Folder
from rise_ray.tasks.countdown import Countdown
from rise_ray.verify.actor import VerifierHandle, start_verifiers
from tests.system.miniature import JOB, WHOLE
from tests.system.processes import descendants, wait_gone

MakePool = Callable[..., RolloutPool]

MAX_MODEL_LEN = 512
SCRATCH = ScratchConfig(
    tokenizer="word",
    architecture={
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,  # vLLM's CPU attention has no heads of 16
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
        "initializer_range": 0.2,  # sharp outputs: other weights sample other tokens
    },
)

os.environ |= {
    # Actors run at the priority of the tests beside them; Ray's own default would starve them.
    "RAY_worker_niceness": "0",
    # Without a token a local Ray makes one, and keeps it in the user's home for any later Ray.
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Every process that a test started has ended, Ray's, vLLM's and the verifiers' included.

    In the user's home Ray's folder is as it was.
    """
    before = rays_files_at_home()
    yield
    left = wait_gone(descendants())
    assert not left, f"still running: {left}"
    assert rays_files_at_home() == before


def rays_files_at_home() -> dict[Path, int]:
    """When each was written, in nanoseconds."""
    files = (Path.home() / ".ray").rglob("*")
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.fixture(scope="session")
def ray_runtime(nothing_left_behind: None) -> Iterator[None]:
    """A Ray of this test session's own, with more logical CPUs than there may be cores."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        start_local_ray(
            num_cpus=4,
            object_store_memory=200 * 2**20,
            log_to_driver=False,  # vLLM says much; an error reaches the test as an exception
            logging_level="error",
        )
        yield
        started = descendants()
        ray.shutdown()
        left = wait_gone(started)
        assert not left, f"still running after ray.shutdown: {left}"


@pytest.fixture(scope="session")
def tiny_model(ray_runtime: None, tmp_path_factory: pytest.TempPathFactory) -> WeightVersion:
    """A random Llama with Countdown's vocabulary, as version 0, with its parity reference."""
    return make_version(0, tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def other_model(ray_runtime: None, tmp_path_factory: pytest.TempPathFactory) -> WeightVersion:
    """Other weights of the same architecture, as version 2."""
    return make_version(2, tmp_path_factory.mktemp("other-model"))


@pytest.fixture(scope="session")
def verifiers(ray_runtime: None) -> Iterator[list[VerifierHandle]]:
    """One verifier of Countdown."""
    started = start_verifiers(TaskConfig(name="countdown"), VerifyConfig())
    yield started
    for verifier in started:
        verifier.stop()


@pytest.fixture(scope="session")
def new_pool(tiny_model: WeightVersion, verifiers: list[Any]) -> MakePool:
    """Makes pools of one worker each, unless told otherwise; the caller releases them."""

    def make(
        label: str,
        sync_deadline_s: float = 600.0,
        sync_backend: str = "object_store",
        **workers: object,
    ) -> RolloutPool:
        settings = {
            "num_cpus": 0.3,
            "vllm": {"enforce_eager": True},
        }
        return RolloutPool(
            tiny_model,
            ModelConfig(path=tiny_model.checkpoint, max_model_len=MAX_MODEL_LEN),
            WorkersConfig(**(settings | workers)),
            SyncConfig(backend=sync_backend, bucket_bytes=64 * 1024, deadline_s=sync_deadline_s),
            verifiers,
            seed=0,
            label=label,
        )

    return make


@pytest.fixture
def make_pool(new_pool: MakePool) -> Iterator[MakePool]:
    """`new_pool` for one test, which releases them."""
    pools: list[RolloutPool] = []

    def make(label: str, **settings: Any) -> RolloutPool:
        pools.append(new_pool(label, **settings))
        return pools[-1]

    yield make
    for pool in pools:
        pool.release()


@pytest.fixture(scope="session")
def pair(new_pool: MakePool) -> Iterator[RolloutPool]:
    """A running pool of two workers with version 0. A test that takes one leaves another."""
    pool = new_pool("pair", min_workers=2, max_workers=2, episodes_in_flight=4, max_attempts=2)
    pool.wait_ready()
    yield pool
    pool.release()


def make_version(iteration: int, folder: Path) -> WeightVersion:
    """Write a random model whose weights depend on `iteration`."""
    words = Countdown().vocabulary()

    def make() -> None:
        from rise_ray.models.scratch import make_scratch_model
        from rise_ray.sync.parity import reference_logprobs

        make_scratch_model(SCRATCH, words, [], MAX_MODEL_LEN, iteration, folder)
        probe = [range(start, start + 20) for start in (10, 60)]
        reference_logprobs(str(folder), probe, "float32", False).save(Folder(str(folder)))

    # In a task whose process ends with it: the tests' own process stays free of torch.
    ray.get(ray.remote(num_cpus=1, max_calls=1)(make).remote())
    return WeightVersion(iteration, str(folder), str(folder))


@pytest.fixture(scope="session")
def miniature_run(ray_runtime: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of two iterations with its controls, by the driver in this process."""
    config = load_config(JOB, [*WHOLE, f"storage={tmp_path_factory.mktemp('runs')}"])
    run = Run(config, resume=False)
    with Stages(run, Console()) as stages:
        stages.do_all()
    return run
