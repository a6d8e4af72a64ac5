"""Weights of one checkpoint into N running engines, against one copy of the file and vLLM's load.

Baseline: the checkpoint's files are copied once (what any way of getting them to a node costs at
least), and each engine loads the copy with vLLM's own `reload_weights`. rise-ray's side starts at
the same checkpoint and ends with the last engine's commit: a server, buckets through Ray's object
store, checksums on both sides, completeness. Neither side has the parity probe in it. Both use the
same engines in the same processes, in turns; the ratio is that of the medians.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from rise_ray.config.settings import ModelConfig, WorkersConfig
from rise_ray.rollout.engine import Engine
from rise_ray.sync.buckets import SyncReport, TensorSpec, plan_buckets
from rise_ray.sync.receiver import sync_engine
from rise_ray.sync.source import Checkpoint, start_weight_server

GOAL = 1.3
BUCKET_BYTES = 64 * 2**20
DEADLINE_S = 300.0
ROUNDS = 5
MAX_MODEL_LEN = 64
SMALL = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 10}
"""36 M parameters: 147 MB."""
LARGE = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
"""SmolLM2's shape with a vocabulary of 16,384: 125 M parameters, 500 MB."""


def run(quick: bool) -> list[dict[str, Any]]:
    """One record for each number of engines: 1 and 2, and 4 unless `quick`."""
    if not ray.is_initialized():
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    with tempfile.TemporaryDirectory() as path:
        model = Path(path) / "model"
        make = ray.remote(num_cpus=1, max_calls=1)(_make_model)
        ray.get(make.remote(model, SMALL if quick else LARGE))
        return [_measure(model, engines) for engines in ((1, 2) if quick else (1, 2, 4))]


def _measure(model: Path, engines: int) -> dict[str, Any]:
    one: Any = ray.remote(num_cpus=0.5, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})(_Host)
    hosts = [one.remote(str(model)) for _ in range(engines)]
    ray.get([host.reload.remote(str(model)) for host in hosts])  # up, and warm
    server = start_weight_server()  # as a pool keeps one
    _sync(server, model, 0, hosts)
    ours, baseline, reports = [], [], []
    for version in range(1, ROUNDS + 1):
        baseline.append(_seconds(lambda: _copy_and_reload(model, hosts)))
        ours.append(_seconds(lambda v=version: reports.append(_sync(server, model, v, hosts))))  # type: ignore[misc]
    for host in hosts:
        ray.kill(host)
    ratio = statistics.median(ours) / statistics.median(baseline)
    return {
        "name": f"weight_sync_{engines}",
        "ratio": round(ratio, 3),
        "seconds": round(statistics.median(ours), 3),
        "baseline": "one copy of the files, then vLLM's reload_weights in every engine",
        "baseline_seconds": round(statistics.median(baseline), 3),
        "goal": f"<= {GOAL}",
        "holds": ratio <= GOAL,
        "engines": engines,
        "mbytes": round(reports[-1].nbytes / 1e6),
        **_calls(model, reports[-1]),
    }


def _calls(model: Path, report: SyncReport) -> dict[str, int]:
    """Ray calls of one engine in a sync: the manifest, and each bucket."""
    rows = [
        TensorSpec(f"{tensor.name}.{number}", tensor.dtype, tensor.shape[1:])
        for tensor in Checkpoint(model).tensors
        if len(tensor.shape) > 1
        for number in range(tensor.shape[0])
    ]
    return {
        "tensors": report.tensors,
        "calls": 1 + report.buckets,
        "tensors_if_each_row_were_one": len(rows),
        "calls_then": 1 + len(plan_buckets(rows, BUCKET_BYTES)),
    }


def _sync(server: Any, model: Path, version: int, hosts: list[Any]) -> SyncReport:
    ray.get(server.serve.remote(str(model), version, BUCKET_BYTES))
    report: SyncReport = ray.get([host.sync.remote(server) for host in hosts])[0]
    return report


def _copy_and_reload(model: Path, hosts: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as path:
        copy = shutil.copytree(model, Path(path) / "copy")
        ray.get([host.reload.remote(str(copy)) for host in hosts])


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class _Host:
    """An engine in a process of its own, as a rollout worker has one."""

    def __init__(self, path: str) -> None:
        model = ModelConfig(path=path, max_model_len=MAX_MODEL_LEN, dtype="float32")
        workers = WorkersConfig(vllm={"enforce_eager": True, "skip_tokenizer_init": True})
        self._engine = Engine(path, model, workers, "object_store", seed=0).llm

    def sync(self, server: Any) -> SyncReport:
        return sync_engine(self._engine, server, DEADLINE_S)

    def reload(self, path: str) -> None:
        self._engine.collective_rpc("reload_weights", kwargs={"weights_path": path})


def _make_model(folder: Path, shape: dict[str, int]) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **shape,
        vocab_size=16_384,
        num_attention_heads=shape["hidden_size"] // 64,
        num_key_value_heads=shape["hidden_size"] // 64,
        max_position_embeddings=MAX_MODEL_LEN,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


if __name__ == "__main__":
    import json
    import sys

    for record in run(quick="--quick" in sys.argv):
        print(json.dumps(record))
