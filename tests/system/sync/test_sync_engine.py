"""Weight syncs of real vLLM engines in Ray actors, on the CPU."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayTaskError
from safetensors.numpy import load_file, save_file

from rise_ray.errors import SyncError
from rise_ray.sync.buckets import plan_buckets
from rise_ray.sync.source import Checkpoint
from tests.system.sync.sync_harness import BUCKET_BYTES, serve

SEQUENCES = tuple(
    tuple(random.Random(seed).choices(range(127), k=length))
    for seed, length in enumerate((40, 17, 2))
)
PROMPT = SEQUENCES[0][:20]


def largest_difference(left: Any, right: Any) -> float:
    return max(
        abs(x - y) for xs, ys in zip(left, right, strict=True) for x, y in zip(xs, ys, strict=True)
    )


def test_a_synced_engine_equals_one_that_loaded_the_checkpoint(
    models: dict[str, str], maker: Any, engine: Any
) -> None:
    """Log-probabilities are Hugging Face's, and a sync gives what a fresh load gives."""
    of_a = ray.get(maker.reference.remote(models["a"], SEQUENCES))
    of_b = ray.get(maker.reference.remote(models["b"], SEQUENCES))
    fresh = ray.get(engine.logprobs.remote(SEQUENCES))
    assert largest_difference(fresh, of_a.logprobs) < 1e-4
    before = ray.get(engine.greedy.remote(PROMPT, "before"))

    busy = ray.get(engine.sync_while_busy.remote(serve(models["b"], 7)))
    assert "requests under way" in busy

    report = ray.get(engine.sync.remote(serve(models["b"], 7)))
    tensors = Checkpoint(Path(models["b"])).tensors
    assert report.tensors == len(tensors)
    assert report.buckets == len(plan_buckets(tensors, BUCKET_BYTES)) > 2

    synced = ray.get(engine.logprobs.remote(SEQUENCES))
    assert largest_difference(synced, of_b.logprobs) < 1e-4
    ids, version = ray.get(engine.greedy.remote(PROMPT, "after"))
    assert ids != before[0]
    assert version == "7"

    assert ray.get(engine.parity.remote(of_b, 7)).mean < 1e-4
    with pytest.raises(SyncError, match=r"host-0 does not hold weight version 7.*worst is token"):
        ray.get(engine.parity.remote(of_a, 7))  # the reference of other weights

    ray.get(engine.sync.remote(serve(models["a"], 8)))  # back again: nothing of b is left
    assert largest_difference(ray.get(engine.logprobs.remote(SEQUENCES)), fresh) < 1e-6
    assert ray.get(engine.greedy.remote(PROMPT, "back")) == (before[0], "8")


def test_tied_embeddings_reach_the_packed_head(
    models: dict[str, str], maker: Any, tied_engine: Any
) -> None:
    """vLLM's CPU build keeps the old packed head of a tied model; our backend renews it."""
    assert "lm_head.weight" not in {t.name for t in Checkpoint(Path(models["tied-b"])).tensors}
    reference = ray.get(maker.reference.remote(models["tied-b"], SEQUENCES))
    with pytest.raises(SyncError, match="does not hold weight version 0"):
        ray.get(tied_engine.parity.remote(reference, 0))
    for version in (1, 2):
        ray.get(tied_engine.sync.remote(serve(models["tied-b"], version)))
        assert ray.get(tied_engine.parity.remote(reference, version)).max < 1e-4


def test_what_does_not_arrive_whole_is_refused_by_name_and_the_engine_stops_answering(
    models: dict[str, str], tied_engine: Any, tmp_path: Path
) -> None:
    """Nothing brings the engine back, but each damage is told; no test uses it after this one.

    What never arrives is dropped in `test_pool.py`.
    """
    damaged, tied_b = tied_engine, models["tied-b"]
    bucket = plan_buckets(Checkpoint(Path(tied_b)).tensors, BUCKET_BYTES)[1]
    message = ray.get(damaged.sync_corrupted.remote(serve(tied_b, 3)))
    assert "wrong checksum" in message
    assert "version 3" in message
    assert f"`{bucket[0].name}`" in message
    # Without the check, vLLM would compute with an uninitialised key projection.
    lacking = without(tied_b, "model.layers.1.self_attn.k_proj.weight", tmp_path)
    with pytest.raises(SyncError) as raised:
        ray.get(damaged.sync.remote(serve(lacking, 3)))
    message = str(raised.value)
    assert "lacks parameters of the model: " in message
    assert "`model.layers.1.self_attn.qkv_proj" in message
    with pytest.raises(RayTaskError, match=r"weights are mixed: .*wrong checksum"):  # the first
        ray.get(damaged.logprobs.remote(SEQUENCES))


def without(model: str, tensor: str, folder: Path) -> str:
    """A copy of a checkpoint that lacks a tensor."""
    tensors = load_file(Path(model) / "model.safetensors")
    del tensors[tensor]
    save_file(tensors, folder / "model.safetensors")
    shutil.copyfile(Path(model) / "config.json", folder / "config.json")
    return str(folder)


def test_engines_side_by_side_share_each_bucket_and_a_late_one_gets_them_all(
    models: dict[str, str],
) -> None:
    """A bucket is read once for engines in step, and again for one that comes later."""

    def requested(index: int) -> ray.ObjectRef:
        return ray.get(server.bucket.remote(1, index))[0]

    server = serve(models["a"], 1)
    manifest, count = ray.get(server.manifest.remote())
    shared = []
    for index in range(count):
        one, other = requested(index), requested(index)
        assert one == other
        shared.append(one)
    late = [requested(index) for index in range(count)]
    assert not set(shared) & set(late)
    tensors = [tensor for bucket in ray.get(late) for tensor in bucket.tensors]
    assert tensors == list(manifest.tensors)
