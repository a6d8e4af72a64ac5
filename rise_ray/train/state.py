"""A training's state, as a restarted training reads it: tensors and numbers, never code.

DeepSpeed writes its states by `torch.save` and reads them as pickles that may run anything. They
lie in the run folder, so torch is told to refuse all but the types that such a state consists of.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from rise_ray.errors import StoreError

TAG = "state"
SCHEMA_VERSION = "1"
"""Of the state and of what its step number counts: another packing plan is another version."""


def load_state(engine: Any, path: str) -> dict[str, Any]:
    """Bring `engine` to the state that it saved under `path`; returns the caller's part of it.

    Raises:
        pickle.UnpicklingError: the file holds anything but a state.
        StoreError: the state is of another schema version.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum

    # For the rest of this process: it overrides the `weights_only=False` of DeepSpeed's reader.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    torch.serialization.add_safe_globals([DynamicLossScaler, LossScaler, ZeroStageEnum])
    _, state = engine.load_checkpoint(path, tag=TAG)
    if state.get("schema_version") != SCHEMA_VERSION:
        raise StoreError(
            f"{path}: a training's state of schema version {state.get('schema_version')}; this "
            f"rise-ray reads {SCHEMA_VERSION}; delete it to train from the start"
        )
    return dict(state)
