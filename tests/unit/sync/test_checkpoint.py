"""A Hugging Face safetensors folder is read whole, byte for byte, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from rise_ray.errors import ModelError
from rise_ray.sync.buckets import TensorSpec
from rise_ray.sync.source import Checkpoint

TENSORS = {
    "model.embed_tokens.weight": np.arange(12, dtype=np.float32).reshape(4, 3),
    "model.norm.weight": np.arange(3, dtype=np.float16),
    "step": np.array(7, dtype=np.int64),
}


def write_index(folder: Path, weight_map: dict[str, str]) -> None:
    content = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(content)


def contents(checkpoint: Checkpoint) -> dict[str, bytes]:
    return {t.name: checkpoint.read(t.name).tobytes() for t in checkpoint.tensors}


def test_a_single_file_is_read_byte_for_byte(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    checkpoint = Checkpoint(tmp_path)
    assert contents(checkpoint) == {name: array.tobytes() for name, array in TENSORS.items()}
    specs = {t.name: t for t in checkpoint.tensors}
    assert specs["model.norm.weight"] == TensorSpec("model.norm.weight", "float16", (3,))
    assert specs["step"] == TensorSpec("step", "int64", ())


def test_bfloat16_is_read_without_torch(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    data = len(header).to_bytes(8, "little") + header + b"\x80\x3f\x00\x40"
    (tmp_path / "model.safetensors").write_bytes(data)
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.tensors == (TensorSpec("w", "bfloat16", (2,)),)
    assert checkpoint.read("w").tobytes() == b"\x80\x3f\x00\x40"


def test_a_sharded_checkpoint_is_the_union_its_index_names(tmp_path: Path) -> None:
    embedding, norm = "model.embed_tokens.weight", "model.norm.weight"
    stale = {**{embedding: TENSORS[embedding]}, "stale": TENSORS["step"]}
    save_file(stale, tmp_path / "model-00001-of-00002.safetensors")
    save_file({norm: TENSORS[norm]}, tmp_path / "model-00002-of-00002.safetensors")
    write_index(
        tmp_path,
        {
            norm: "model-00002-of-00002.safetensors",
            embedding: "model-00001-of-00002.safetensors",
        },
    )
    checkpoint = Checkpoint(tmp_path)
    assert contents(checkpoint) == {n: TENSORS[n].tobytes() for n in (embedding, norm)}


def test_a_tensor_that_only_the_index_has_is_named(tmp_path: Path) -> None:
    save_file({"a": TENSORS["step"]}, tmp_path / "one.safetensors")
    write_index(tmp_path, {"a": "one.safetensors", "b": "one.safetensors"})
    with pytest.raises(ModelError, match=r"one\.safetensors: lacks `b`"):
        Checkpoint(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.safetensors: cannot be read"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("length", [0, 4, 40, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, length: int) -> None:
    (tmp_path / "model.safetensors").write_bytes(save(TENSORS)[:length])
    with pytest.raises(ModelError, match="not a safetensors file"):
        Checkpoint(tmp_path)


def test_an_index_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ModelError, match="not a safetensors index"):
        Checkpoint(tmp_path)
