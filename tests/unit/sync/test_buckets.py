"""Buckets carry every tensor once and intact; the ledger names whatever goes wrong."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rise_ray.errors import SyncError
from rise_ray.sync.buckets import (
    ALIGNMENT_BYTES,
    ITEM_BYTES,
    Bucket,
    Ledger,
    Manifest,
    TensorSpec,
    fill_bucket,
    name_some,
    plan_buckets,
)

shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)
tensor_lists = st.lists(st.tuples(st.sampled_from(sorted(ITEM_BYTES)), shapes), max_size=12).map(
    lambda drawn: tuple(
        TensorSpec(f"layer.{i}.weight", dtype, shape) for i, (dtype, shape) in enumerate(drawn)
    )
)

A = TensorSpec("a", "bfloat16", (3, 5))
B = TensorSpec("b", "float32", (7,))
MANIFEST = Manifest(4, (A, B))


def content(tensor: TensorSpec) -> NDArray[np.uint8]:
    """Bytes that differ from tensor to tensor."""
    seed = sum(tensor.name.encode())
    return np.random.default_rng(seed).integers(0, 256, tensor.nbytes, dtype=np.uint8)


def bucket_of(*tensors: TensorSpec, index: int = 0) -> Bucket:
    contents = {tensor.name: content(tensor) for tensor in tensors}
    return fill_bucket(index, tensors, contents.__getitem__)


@given(tensor_lists, st.integers(64, 2000))
def test_a_plan_holds_each_tensor_once_in_order_within_the_limit(
    tensors: tuple[TensorSpec, ...], bucket_bytes: int
) -> None:
    plan = plan_buckets(tensors, bucket_bytes)
    assert tuple(tensor for bucket in plan for tensor in bucket) == tensors
    for bucket in plan:
        assert len(bucket) == 1 or sum(t.padded_nbytes for t in bucket) <= bucket_bytes
    for left, right in itertools.pairwise(plan):  # no bucket ends before it must
        assert sum(t.padded_nbytes for t in (*left, right[0])) > bucket_bytes


def test_the_number_of_buckets_is_that_of_the_bytes_whatever_the_tensors() -> None:
    """One call an engine fetches a bucket: a model of many tensors costs no more of them."""
    few = [TensorSpec(f"few.{i}", "float32", (2**12, 2**8)) for i in range(16)]
    many = [TensorSpec(f"many.{i}", "float32", (2**10,)) for i in range(16 * 2**10)]
    assert len(plan_buckets(few, 2**24)) == len(plan_buckets(many, 2**24)) == 4


@given(tensor_lists, st.integers(64, 2000))
def test_buckets_reassemble_to_the_same_bytes_and_satisfy_the_ledger(
    tensors: tuple[TensorSpec, ...], bucket_bytes: int
) -> None:
    ledger = Ledger(Manifest(1, tensors))
    arrived = {}
    for index, planned in enumerate(plan_buckets(tensors, bucket_bytes)):
        bucket = bucket_of(*planned, index=index)
        ledger.accept(bucket)
        start = bucket.payload.ctypes.data
        for spec, data in bucket.contents():
            assert not data.size or (data.ctypes.data - start) % ALIGNMENT_BYTES == 0
            arrived[spec] = data.tobytes()
    ledger.close()
    assert arrived == {tensor: content(tensor).tobytes() for tensor in tensors}


@given(st.integers(0, A.nbytes - 1), st.integers(0, 7))
def test_any_flipped_bit_is_found_and_named(position: int, bit: int) -> None:
    bucket = bucket_of(B, A)
    bucket.payload[B.padded_nbytes + position] ^= 1 << bit
    with pytest.raises(SyncError, match=r"version 4, bucket 0: `a` .*damaged"):
        Ledger(MANIFEST).accept(bucket)


def test_a_truncated_payload_is_found() -> None:
    bucket = bucket_of(A, B)
    short = dataclasses.replace(bucket, payload=bucket.payload[: A.padded_nbytes + 3])
    with pytest.raises(SyncError, match=r"`b` .*damaged"):
        Ledger(MANIFEST).accept(short)


def test_a_missing_tensor_is_named_at_the_end() -> None:
    ledger = Ledger(MANIFEST)
    ledger.accept(bucket_of(B))
    with pytest.raises(SyncError, match=r"version 4: never arrived: `a`$"):
        ledger.close()


def test_a_doubled_tensor_is_named() -> None:
    ledger = Ledger(MANIFEST)
    ledger.accept(bucket_of(A, B))
    with pytest.raises(SyncError, match=r"bucket 1: `b` .*second time"):
        ledger.accept(bucket_of(B, index=1))


def test_an_unknown_tensor_is_named() -> None:
    with pytest.raises(SyncError, match=r"`c` .*not in the checkpoint"):
        Ledger(MANIFEST).accept(bucket_of(TensorSpec("c", "float32", (1,))))


@pytest.mark.parametrize(
    "other", [TensorSpec("a", "bfloat16", (5, 3)), TensorSpec("a", "float16", (3, 5))]
)
def test_another_shape_or_dtype_is_named_even_if_its_bytes_are_as_many(other: TensorSpec) -> None:
    with pytest.raises(SyncError, match=r"`a` .*arrived, but the checkpoint has `a` \(bfloat16"):
        Ledger(MANIFEST).accept(bucket_of(other))


def test_errors_name_a_few_and_count_the_rest() -> None:
    assert name_some(["a", "b"]) == "`a`, `b`"
    assert name_some(list("abcdefgh")) == "`a`, `b`, `c`, `d`, `e` and 3 more"
