"""The trainer's side of a weight sync: a checkpoint folder, streamed as buckets by a Ray actor.

    server = start_weight_server()
    ray.get(server.serve.remote(checkpoint, version, bucket_bytes))
    for bucket in pull(server, deadline_s):   # on any node, by any number of engines
        ...

Tensors are read as raw bytes straight from the safetensors files, so the server needs no torch and
no GPU and starts at once: the library's own reader has no bfloat16 without torch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import GetTimeoutError, RayError

from rise_ray.cluster.connection import this_node
from rise_ray.errors import ModelError, SyncError
from rise_ray.models.locate import model_folder
from rise_ray.sync.buckets import DTYPES, Bucket, Manifest, TensorSpec, fill_bucket, plan_buckets

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
RESIDENT_BUCKETS = 2
"""Buckets a server keeps in the object store: one being loaded, one ready."""


class Checkpoint:
    """The tensors of a Hugging Face folder with safetensors weights, one file or sharded.

    `tensors` lists them file by file in the order of their bytes.

    Raises:
        ModelError: there are no safetensors weights, or a file is missing or malformed.
    """

    def __init__(self, folder: Path) -> None:
        index = folder / INDEX_FILE
        file_of = _read_index(index) if index.exists() else None
        self._found: dict[str, tuple[TensorSpec, NDArray[np.uint8]]] = {}
        for file in [SINGLE_FILE] if file_of is None else sorted(set(file_of.values())):
            for tensor, data in _read_tensors(folder / file):
                if file_of is None or file_of.get(tensor.name) == file:
                    self._found[tensor.name] = tensor, data
        for name, file in (file_of or {}).items():
            if name not in self._found:
                raise ModelError(f"{folder / file}: lacks `{name}`, which the index names")
        self.tensors = tuple(tensor for tensor, _ in self._found.values())

    def read(self, name: str) -> NDArray[np.uint8]:
        """A tensor's raw bytes, memory-mapped."""
        return self._found[name][1]


def _read_index(path: Path) -> dict[str, str]:
    """The file of each tensor, by its name."""
    try:
        return dict(json.loads(path.read_text())["weight_map"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not a safetensors index: {error!r}") from error


def _read_tensors(path: Path) -> list[tuple[TensorSpec, NDArray[np.uint8]]]:
    """The tensors of one safetensors file, in the order of their bytes.

    The format: 8 bytes little-endian header length, a JSON header with each tensor's dtype,
    shape and byte range, then the bytes (https://github.com/huggingface/safetensors#format).
    """
    try:
        content = np.memmap(path, dtype=np.uint8, mode="r")
        start = 8 + int.from_bytes(content[:8].tobytes(), "little")
        header: dict[str, Any] = json.loads(content[8:start].tobytes())
        header.pop("__metadata__", None)
        entries = sorted(header.items(), key=lambda entry: entry[1]["data_offsets"])
        return [_locate(name, entry, content[start:]) for name, entry in entries]
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: not a safetensors file: {error!r}") from error


def _locate(
    name: str, entry: dict[str, Any], content: NDArray[np.uint8]
) -> tuple[TensorSpec, NDArray[np.uint8]]:
    begin, end = entry["data_offsets"]
    spec = TensorSpec(name, DTYPES[entry["dtype"]][0], tuple(entry["shape"]))
    if end - begin != spec.nbytes or not 0 <= begin <= end <= len(content):
        raise ValueError(f"the byte range of {spec} does not fit")
    return spec, content[begin:end]


class WeightServer:
    """Serves one weight version's buckets after another, to any number of engines.

    Buckets are read and put into the object store when first asked for; the last
    `RESIDENT_BUCKETS` stay there, so engines that pull side by side share one read and one put.
    A straggler or a late joiner makes older ones be read again: memory stays bounded, and no
    engine ever waits for another.
    """

    def __init__(self) -> None:
        self._served: int | None = None

    def serve(self, checkpoint: str, version: int, bucket_bytes: int) -> None:
        """Serve this version from now on.

        Raises:
            ModelError: see `Checkpoint`.
        """
        self._checkpoint = Checkpoint(model_folder(checkpoint))
        self._manifest = Manifest(version, self._checkpoint.tensors)
        self._plan = plan_buckets(self._checkpoint.tensors, bucket_bytes)
        self._resident: dict[int, ray.ObjectRef] = {}
        self._served = version

    def manifest(self) -> tuple[Manifest, int]:
        """What the version consists of, and in how many buckets it comes."""
        return self._manifest, len(self._plan)

    def bucket(self, version: int, index: int) -> list[ray.ObjectRef]:
        """The reference of a bucket, in a list so that Ray hands it on unresolved.

        Raises:
            SyncError: it is not what is served.
        """
        if version != self._served:
            raise SyncError(f"weight version {version} is not served, but {self._served}")
        if index not in self._resident:
            if len(self._resident) == RESIDENT_BUCKETS:
                del self._resident[next(iter(self._resident))]
            bucket = fill_bucket(index, self._plan[index], self._checkpoint.read)
            self._resident[index] = ray.put(bucket)
        return [self._resident[index]]


def start_weight_server() -> Any:
    """A `WeightServer` as an actor on the caller's node, which no other node's loss ends.

    It owns the buckets: keep its handle until every engine is done. One that was lost is started
    again, and serves what it is told to next.
    """
    options = {"num_cpus": 0, "max_restarts": -1, "scheduling_strategy": this_node()}
    return ray.remote(WeightServer).options(max_task_retries=1, **options).remote()


def pull(server: Any, deadline_s: float) -> tuple[Manifest, Iterator[Bucket]]:
    """A server's manifest and its buckets in order; the next is prepared while one is loaded.

    Everything together may take `deadline_s`, the caller's loading included.

    Raises:
        SyncError: the deadline passed or the server died (also while iterating).
    """
    deadline = time.monotonic() + deadline_s

    def wait_for(reference: Any) -> Any:
        try:
            return ray.get(reference, timeout=max(0.0, deadline - time.monotonic()))
        except GetTimeoutError as error:
            raise SyncError(
                f"the weights did not arrive within {deadline_s:g} s (`sync.deadline_s`)"
            ) from error
        except RayError as error:
            raise SyncError(f"the weight server failed: {error}") from error

    def buckets(version: int) -> Iterator[Bucket]:
        upcoming = [server.bucket.remote(version, index) for index in range(min(1, count))]
        for index in range(count):
            (reference,) = wait_for(upcoming.pop())
            if index + 1 < count:
                upcoming.append(server.bucket.remote(version, index + 1))
            yield wait_for(reference)

    manifest, count = wait_for(server.manifest.remote())
    return manifest, buckets(manifest.version)
