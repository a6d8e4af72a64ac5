"""vLLM's own backends: what runs without a GPU, and the transfers that need one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray

from rise_ray.sync.parity import check_parity
from rise_ray.sync.receiver import WeightReceiver, push_weights
from tests.system.sync.sync_harness import (
    BUCKET_BYTES,
    ENGINE_ENV,
    EngineHost,
    push_host,
    serve,
)

SEQUENCES = (tuple(range(3, 40)), tuple(range(60, 20, -1)))


@ray.remote(num_cpus=0.1, max_concurrency=3, runtime_env={"env_vars": ENGINE_ENV})
class Sender:
    """Of vLLM's own backends, without a GPU; and two engines of two processes each, as it is."""

    def source_differs(self, model: str) -> list[str]:
        """Names of tensors that `CheckpointSource` gives otherwise than safetensors' own reader."""
        import torch
        from safetensors.torch import load_file

        from rise_ray.sync.push import CheckpointSource
        from rise_ray.sync.source import Checkpoint

        expected = load_file(Path(model) / "model.safetensors")
        source = CheckpointSource(Checkpoint(Path(model)), "cpu")
        got = dict(source)
        assert [meta.name for meta in source.metadata()] == list(got)
        assert got.keys() == expected.keys()
        return [name for name in expected if not torch.equal(expected[name], got[name])]

    def meet(self, me: Any) -> list[int]:
        """The ranks of all who meet, as `NCCLTrainerWeightTransferEngine.trainer_init` has them."""
        from vllm.utils.network_utils import get_open_port

        from rise_ray.sync.push import EngineClient

        info = {"host": "127.0.0.1", "port": get_open_port(), "rank_offset": 1, "world_size": 5}
        client = EngineClient([me, me], engine_processes=2)
        with ThreadPoolExecutor() as pool:
            joining = pool.submit(client.init_weight_transfer_engine, info)
            group, ranks = _join(0, info)
            joining.result()
        del group  # the others read from its store until they have met
        return ranks

    def init_weight_transfer_engine(self, request: Any) -> None:
        """An engine's part: each of its two processes joins."""
        info = request.init_info
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda own: _join(info["rank_offset"] + own, info), range(2)))


def _join(rank: int, info: dict[str, Any]) -> tuple[Any, list[int]]:
    """vLLM's own rendezvous, and the ranks of all who met there."""
    from vllm.distributed.utils import StatelessProcessGroup

    world = info["world_size"]
    group = StatelessProcessGroup.create(info["host"], info["port"], rank, world, store_timeout=60)
    return group, list(group.all_gather_obj(rank))


@pytest.fixture(scope="module")
def sender(ray_runtime: None) -> Iterator[Any]:
    handle = Sender.remote()
    yield handle
    ray.kill(handle)


def test_vllm_gets_the_checkpoints_own_tensors(sender: Any, models: dict[str, str]) -> None:
    assert ray.get(sender.source_differs.remote(models["a"])) == []


def test_every_process_of_every_engine_has_a_rank_of_its_own(sender: Any) -> None:
    """With vLLM's own client two engines join as the same ranks, and wait for the others."""
    assert ray.get(sender.meet.remote(sender)) == [0, 1, 2, 3, 4]


def test_an_ipc_sender_is_on_the_workers_node_and_sees_its_gpu(ray_runtime: None) -> None:
    """Though the worker may have the GPU whole, and Ray would give a second process another."""
    worker = ray.remote(num_cpus=0.1)(WeightReceiver).options(
        runtime_env={"env_vars": {"CUDA_VISIBLE_DEVICES": "3"}}
    )
    handle = worker.remote()
    place = ray.get(handle.place.remote())
    node = ray.get_runtime_context().get_node_id()

    def seen() -> tuple[str, str | None]:
        return ray.get_runtime_context().get_node_id(), os.environ.get("CUDA_VISIBLE_DEVICES")

    sender = ray.remote(num_cpus=0, max_calls=1, **place)(seen)
    assert ray.get(sender.remote()) == (node, "3")
    strategy = place["scheduling_strategy"]
    assert (strategy.node_id, strategy.soft) == (node, False)
    ray.kill(handle)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["", "tied-"])
@pytest.mark.parametrize(("backend", "engines", "gpus"), [("ipc", 1, 1), ("nccl", 2, 3)])
def test_a_pushed_version_passes_the_parity_probe(
    models: dict[str, str], maker: Any, backend: str, engines: int, gpus: int, kind: str
) -> None:
    """`ipc` shares the engine's GPU; `nccl` needs one for the sender and one for each engine."""
    _require_gpus(gpus)
    old, new = models[f"{kind}a"], models[f"{kind}b"]
    hosts = [push_host(backend).options(num_gpus=1).remote(old) for _ in range(engines)]
    options = ray.get(hosts[0].place.remote()) if backend == "ipc" else {"num_gpus": 1}
    task = ray.remote(num_cpus=0, max_calls=1, **options)(push_weights)
    ray.get(task.remote(new, 5, BUCKET_BYTES, hosts, backend, 1))
    reference = ray.get(maker.reference.remote(new, SEQUENCES))
    for host in hosts:
        check_parity(reference, ray.get(host.logprobs.remote(SEQUENCES)), 0.01, "pushed", 5)
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
