"""vLLM's own backends: what runs without a GPU, and the transfers that need one."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from rise_ray.sync.parity import check_parity
from tests.system.sync.sync_harness import (
    BUCKET_BYTES,
    EngineHost,
    push_host,
    serve,
)

SEQUENCES = (tuple(range(3, 40)), tuple(range(60, 20, -1)))


def test_vllm_gets_the_checkpoints_own_tensors(models: dict[str, str], engine: Any) -> None:
    assert ray.get(engine.source_differs.remote(models["a"])) == []


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["", "tied-"])
@pytest.mark.parametrize(("backend", "gpus"), [("ipc", 1), ("nccl", 2)])
def test_a_pushed_version_passes_the_parity_probe(
    models: dict[str, str], maker: Any, backend: str, gpus: int, kind: str
) -> None:
    """`ipc` shares one GPU between sender and engine; `nccl` needs one for each."""
    from rise_ray.sync.push import WeightSender

    _require_gpus(gpus)
    old, new = models[f"{kind}a"], models[f"{kind}b"]
    share = gpus / 2
    host = push_host(backend).options(num_gpus=share).remote(old)
    sender = ray.remote(num_gpus=share)(WeightSender).remote(new, 5, BUCKET_BYTES)
    assert ray.get(sender.send.remote([host], backend, 1)).version == 5
    reference = ray.get(maker.reference.remote(new, SEQUENCES))
    got = ray.get(host.logprobs.remote(SEQUENCES))
    check_parity(reference, got, 0.01, "pushed", 5)
    ray.kill(host)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["", "tied-"])
def test_a_pulled_version_passes_the_parity_probe_on_a_gpu(
    models: dict[str, str], maker: Any, kind: str
) -> None:
    _require_gpus(1)
    host = EngineHost.options(num_gpus=0.5).remote(models[f"{kind}a"])
    ray.get(host.sync.remote(serve(models[f"{kind}b"], 6)))
    reference = ray.get(maker.reference.remote(models[f"{kind}b"], SEQUENCES))
    check_parity(reference, ray.get(host.logprobs.remote(SEQUENCES)), 0.01, "pulled", 6)
    ray.kill(host)


def _require_gpus(count: int) -> None:
    if ray.cluster_resources().get("GPU", 0) < count:
        pytest.skip(f"needs {count} GPU(s)")
