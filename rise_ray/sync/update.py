"""One engine's weight sync: the calls on vLLM's engine, in order, with one kind of error."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rise_ray.errors import SyncError
from rise_ray.sync.buckets import Bucket, Manifest
from rise_ray.sync.source import pull

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What one sync moved into one engine, and in how many seconds."""

    version: int
    tensors: int
    buckets: int
    nbytes: int
    seconds: float


def sync_engine(engine: LLMEngine, server: Any, deadline_s: float) -> SyncReport:
    """Bring an engine to the version that a `WeightServerActor` serves.

    Raises:
        SyncError: see `update_engine` and `pull`.
    """
    manifest, buckets = pull(server, deadline_s)
    return update_engine(engine, manifest, buckets)


def update_engine(engine: LLMEngine, manifest: Manifest, buckets: Iterable[Bucket]) -> SyncReport:
    """Load a weight version into a running engine that has no request under way.

    The engine was made with `WeightTransferConfig(backend="object_store")`. Afterwards its
    outputs carry `str(manifest.version)` and its prefix cache is empty.

    Raises:
        SyncError: requests are under way (the engine is unchanged); or something did not
            arrive, arrived twice or damaged, or vLLM refused it: the engine then answers
            nothing any more and its process has to be replaced.
    """
    if engine.has_unfinished_requests():
        raise SyncError(
            f"weight version {manifest.version}: the engine still has requests under way"
        )
    started = time.monotonic()
    count = nbytes = 0
    _call(engine, manifest.version, "init_weight_transfer_engine", init_info=manifest.to_info())
    _call(engine, manifest.version, "start_weight_update")
    for bucket in buckets:
        _call(engine, manifest.version, "update_weights", update_info=bucket.to_info())
        count += 1
        nbytes += bucket.payload.nbytes
    _call(engine, manifest.version, "finish_weight_update")
    commit_version(engine, manifest.version)
    seconds = time.monotonic() - started
    return SyncReport(manifest.version, len(manifest.tensors), count, nbytes, seconds)


def commit_version(engine: LLMEngine, version: int) -> None:
    """Note which weights an engine holds, and forget keys and values of earlier ones.

    Raises:
        SyncError: the prefix cache is in use.
    """
    engine.set_weight_version(str(version))
    if not engine.reset_prefix_cache():
        raise SyncError(
            f"weight version {version}: the engine's prefix cache is in use and still holds "
            "keys and values of the weights before"
        )


def _call(engine: LLMEngine, version: int, method: str, **kwargs: Any) -> None:
    try:
        engine.collective_rpc(method, kwargs=kwargs)
    except SyncError:
        raise
    except Exception as error:  # a worker process hands on its error as a RuntimeError
        raise SyncError(f"weight version {version}: {method} failed: {error}") from error
