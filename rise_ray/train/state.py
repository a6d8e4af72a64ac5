"""A training's state, as a restarted training reads it: tensors and numbers, never code.

DeepSpeed writes its states by `torch.save` and reads them as pickles that may run anything. They
lie in the run folder, so torch is told to refuse all but the types that such a state consists of.
"""

from __future__ import annotations

import os
from typing import Any

import torch

TAG = "state"


def load_state(engine: Any, path: str) -> dict[str, Any]:
    """Bring `engine` to the state that it saved under `path`; returns the caller's part of it.

    Raises:
        pickle.UnpicklingError: the file holds anything but a state.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum

    # For the rest of this process: it overrides the `weights_only=False` of DeepSpeed's reader.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    torch.serialization.add_safe_globals([DynamicLossScaler, LossScaler, ZeroStageEnum])
    _, state = engine.load_checkpoint(path, tag=TAG)
    return dict(state)
