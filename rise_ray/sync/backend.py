"""vLLM's side of a weight sync: the transfer backend `object_store`.

vLLM loads `register` in every one of its processes (entry point `vllm.general_plugins`). An
engine made with `weight_transfer_config=WeightTransferConfig(backend="object_store")` then takes
buckets through vLLM's own weight-transfer calls; `rise_ray.sync.receiver` drives them. Executors
with worker processes (tensor parallelism) work as well: every worker gets the whole bucket, whose
numpy array can be pickled, and keeps its shard.

vLLM's own `reload_weights` reads a checkpoint from the disk of every engine's node, only warns of
parameters that it lacks, and leaves a CPU's tied head as it was: hence this one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.vocab_parallel_embedding import (
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader.mtp_validation import disable_mtp_completeness_check
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from rise_ray.errors import SyncError
from rise_ray.sync.buckets import Bucket, Ledger, Manifest, name_some

BACKEND = "object_store"


def register() -> None:
    """Make `object_store` known to vLLM in this process; calling it again changes nothing."""
    if BACKEND not in WeightTransferEngineFactory._registry:  # registering twice is an error
        WeightTransferEngineFactory.register_engine(BACKEND, ObjectStoreWeightTransferEngine)


@dataclass
class ManifestInfo(WeightTransferInitInfo):
    """Sent before every update, since each has its own version."""

    manifest: Manifest


@dataclass
class BucketInfo(WeightTransferUpdateInfo):
    """Sent for every bucket."""

    bucket: Bucket


class ObjectStoreWeightTransferEngine(WeightTransferEngine[ManifestInfo, BucketInfo]):
    """Loads buckets into a vLLM worker's model: every parameter exactly once, or an error.

    The order is vLLM's: `init_transfer_engine`, `start_weight_update`, `update_weights` for
    each bucket, `finish_weight_update`. After an error the model is part old, part new: it
    refuses every further forward pass, and its process has to be replaced.
    """

    init_info_cls = ManifestInfo
    update_info_cls = BucketInfo
    supports_draft_weight_update = False

    _manifest: Manifest | None = None

    def init_transfer_engine(self, init_info: ManifestInfo) -> None:
        self._manifest = init_info.manifest

    def start_weight_update(self) -> None:
        """Prepare the model to take its parameters anew, layer by layer."""
        if self._manifest is None:
            raise SyncError("a weight update was started without a manifest")
        self._ledger = Ledger(self._manifest)
        self._parameters = {name for name, _ in self.model.named_parameters()}
        self._loaded: set[str] = set()
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: BucketInfo) -> None:
        with self._refusing_to_answer_after_an_error():
            self._ledger.accept(update_info.bucket)
            self._load(update_info.bucket)

    def finish_weight_update(self) -> None:
        """Check that the model is complete and make it usable again."""
        with self._refusing_to_answer_after_an_error():
            self._ledger.close()
            self._check_model_is_covered()
            finalize_layerwise_reload(self.model, self.model_config)
            _repack_tied_heads(self.model)
            self._manifest = None

    def shutdown(self) -> None:
        """Nothing is held between updates."""

    def _load(self, bucket: Bucket) -> None:
        # A copy of its own: vLLM keeps the tensors of a layer until the layer is complete, and
        # must neither pin the object store's memory nor write to it.
        own = replace(bucket, payload=bucket.payload.copy())
        current = ""

        def named_tensors() -> Iterator[tuple[str, torch.Tensor]]:
            nonlocal current
            for spec, data in own.contents():
                current = spec.name
                typed = torch.from_numpy(data).view(getattr(torch, spec.dtype))
                yield spec.name, typed.view(spec.shape)

        try:
            with disable_mtp_completeness_check():  # a bucket is a part of the model by design
                loaded = self.model.load_weights(named_tensors())
        except Exception as error:
            raise SyncError(
                f"bucket {bucket.index}: vLLM cannot load `{current}`: {error!r}"
            ) from error
        self._loaded |= loaded or set()

    def _check_model_is_covered(self) -> None:
        """A checkpoint that lacks a parameter of the model is refused, as vLLM refuses to load it.

        Quantized models make parameters that no checkpoint holds: there, as in vLLM, only the
        manifest is checked.
        """
        if self.model_config.quantization is not None:
            return
        missing = sorted(self._parameters - self._loaded)
        for name, module in self.model.named_modules():
            info = get_layerwise_info(module)
            if isinstance(module, LinearBase) and info.can_load():
                total = info.load_numel_total
                if total is not None and 0 < info.load_numel < total:
                    missing.append(f"{name} (a part of it)")
        if missing:
            raise SyncError(f"the checkpoint lacks parameters of the model: {name_some(missing)}")

    @contextmanager
    def _refusing_to_answer_after_an_error(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # vLLM's CPU kernels would go on computing with the old packed weights.
            message = f"this engine's last weight update failed, its weights are mixed: {error}"

            def refuse(*_: Any) -> None:
                raise SyncError(message)

            self.model.register_forward_pre_hook(refuse)
            raise


def _repack_tied_heads(model: torch.nn.Module) -> None:
    """Give heads that are tied to the embedding the embedding's new weights.

    A tied head shares the embedding's parameter and gets no tensor of its own, so the layerwise
    reload leaves it out (vLLM warns "ParallelLMHead: Failed to load weights"). On a GPU that is
    enough. On a CPU the head computes with a packed copy, made when the model was first loaded:
    without this, every sample would come from the old head.
    """
    seen: set[int] = set()
    for module in model.modules():
        if not isinstance(module, VocabParallelEmbedding):
            continue
        is_tied = id(module.weight) in seen
        seen.add(id(module.weight))
        if is_tied and isinstance(module.quant_method, UnquantizedEmbeddingMethod):
            module.quant_method.process_weights_after_loading(module)
