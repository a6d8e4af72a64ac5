"""Weights on their way: what will come (manifest), pieces of it (buckets), what came (ledger).

Pure numpy. The trainer's side cuts a checkpoint into buckets, the engine's side keeps a ledger
that accepts every tensor of the manifest exactly once, or names the one that is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from rise_ray.errors import SyncError

ALIGNMENT_BYTES = 64
"""Tensors start at multiples of this in a bucket: any dtype may view its bytes in place."""

DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
"""By safetensors' name of a dtype: torch's name, and the bytes of one element."""

ITEM_BYTES = dict(DTYPES.values())
"""Bytes of one element, by torch's name of the dtype."""

_NAMES_IN_ERRORS = 5


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A parameter's checkpoint name, its dtype (torch's name, `bfloat16`) and its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def padded_nbytes(self) -> int:
        """What it takes in a bucket: its size, rounded up to the alignment."""
        return -(-self.nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES

    def __str__(self) -> str:
        return f"`{self.name}` ({self.dtype}, shape {list(self.shape)})"


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything one weight version consists of, declared before the first bucket."""

    version: int
    tensors: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class Bucket:
    """Some of a version's tensors, one after the other in a uint8 array, each padded.

    `checksums[i]` is the `checksum` of the bytes of `tensors[i]`.
    """

    index: int
    tensors: tuple[TensorSpec, ...]
    checksums: tuple[str, ...]
    payload: NDArray[np.uint8]

    def contents(self) -> Iterator[tuple[TensorSpec, NDArray[np.uint8]]]:
        """Each tensor with its raw bytes, which are a view of the payload."""
        start = 0
        for tensor in self.tensors:
            yield tensor, self.payload[start : start + tensor.nbytes]
            start += tensor.padded_nbytes


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What one sync moved into one engine."""

    tensors: int
    buckets: int
    nbytes: int


def checksum(data: NDArray[np.uint8]) -> str:
    """XXH3 (128 bits, hexadecimal) of a tensor's bytes: it finds damage, and no hostile change.

    One thread makes 9 GB/s, more than a network brings; of BLAKE2b it made 0.5 (2.5 GHz Xeon).
    """
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(data).data)


def plan_buckets(tensors: Sequence[TensorSpec], bucket_bytes: int) -> list[list[TensorSpec]]:
    """Cut a list of tensors, in its order, into buckets of at most `bucket_bytes`.

    A single tensor that is larger travels alone. The order is kept because vLLM finishes a
    layer when its last tensor arrives: neighbours in a checkpoint are of one layer.
    """
    plan: list[list[TensorSpec]] = []
    room = 0
    for tensor in tensors:
        if not plan or tensor.padded_nbytes > room:
            plan.append([])
            room = bucket_bytes
        plan[-1].append(tensor)
        room -= tensor.padded_nbytes
    return plan


def fill_bucket(
    index: int, tensors: Sequence[TensorSpec], read: Callable[[str], NDArray[np.uint8]]
) -> Bucket:
    """Copy tensors, given by name as raw bytes by `read`, into one bucket."""
    checksums = tuple(checksum(read(tensor.name)) for tensor in tensors)
    payload = np.zeros(sum(tensor.padded_nbytes for tensor in tensors), dtype=np.uint8)
    bucket = Bucket(index, tuple(tensors), checksums, payload)
    for tensor, data in bucket.contents():
        data[:] = read(tensor.name)
    return bucket


class Ledger:
    """What of a manifest has arrived: each tensor is accepted once, as declared, intact."""

    def __init__(self, manifest: Manifest) -> None:
        self.version = manifest.version
        self._expected = {tensor.name: tensor for tensor in manifest.tensors}
        self._arrived: set[str] = set()

    def accept(self, bucket: Bucket) -> None:
        """Check a bucket before any of it is loaded.

        Raises:
            SyncError: a tensor is unknown, came before, has another shape or dtype than
                declared, or its bytes do not have its checksum.
        """
        where = f"weight version {self.version}, bucket {bucket.index}"
        for (tensor, data), digest in zip(bucket.contents(), bucket.checksums, strict=True):
            expected = self._expected.get(tensor.name)
            if expected is None:
                raise SyncError(f"{where}: {tensor} is not in the checkpoint")
            if tensor.name in self._arrived:
                raise SyncError(f"{where}: {tensor} arrived a second time")
            if tensor != expected:
                raise SyncError(f"{where}: {tensor} arrived, but the checkpoint has {expected}")
            if len(data) != tensor.nbytes or checksum(data) != digest:
                raise SyncError(f"{where}: {tensor} was damaged on its way (wrong checksum)")
            self._arrived.add(tensor.name)

    def close(self) -> None:
        """Check that everything arrived.

        Raises:
            SyncError: with the names of the tensors that did not.
        """
        missing = [name for name in self._expected if name not in self._arrived]
        if missing:
            raise SyncError(f"weight version {self.version}: never arrived: {name_some(missing)}")


def name_some(names: Sequence[str]) -> str:
    """The first few names in backticks, and how many more there are."""
    shown = ", ".join(f"`{name}`" for name in names[:_NAMES_IN_ERRORS])
    more = len(names) - _NAMES_IN_ERRORS
    return f"{shown} and {more} more" if more > 0 else shown
