"""The reward-weighted loss of packed rows (RISE, arXiv 2407.18219, section 3).

A step's loss is sum(w / mean_w * nll) over the loss tokens of the whole global batch, divided by
their number: known from the packing plan, so no rank has to ask another. Dividing by the batch's
sum of weights instead would cancel the weights wherever a batch holds mostly one kind of example.
"""

from __future__ import annotations

import inspect

import torch
import torch.nn.functional as F
from torch import nn

from rise_ray.errors import ModelError


class WeightedLoss(nn.Module):
    """A causal language model with the loss inside, as DeepSpeed's engine calls it."""

    def __init__(self, model: nn.Module) -> None:
        """Wrap a Hugging Face causal language model.

        Raises:
            ModelError: its `forward` cannot compute the logits of chosen positions only.
        """
        super().__init__()
        if "logits_to_keep" not in inspect.signature(model.forward).parameters:
            raise ModelError(f"{type(model).__name__}: its forward() has no `logits_to_keep`")
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """The sum of weight x negative log-likelihood (nats) over the rows' loss tokens.

        Args:
            input_ids: int64 [rows, row_tokens].
            position_ids: int64 [rows, row_tokens]; a restart at 0 begins another example.
            weights: float32 [rows, row_tokens], the weight of predicting each token; 0: no loss.

        Returns:
            A float32 scalar; 0, with gradients of 0, where no token carries loss.
        """
        # The token at t is predicted at t - 1. Logits are computed at those positions only: on
        # a vocabulary of 100,000 they are what memory goes to.
        at = torch.nonzero((weights[:, 1:] != 0).any(dim=0)).squeeze(1)
        if not len(at):  # padding only: the pass still has to touch every partitioned weight
            at = torch.zeros(1, dtype=torch.int64, device=weights.device)
        output = self.model(
            input_ids=input_ids, position_ids=position_ids, use_cache=False, logits_to_keep=at
        )
        logits = output.logits.float()
        nll = F.cross_entropy(
            logits.flatten(0, 1), input_ids[:, at + 1].flatten(), reduction="none"
        )
        return (nll * weights[:, at + 1].flatten()).sum()
