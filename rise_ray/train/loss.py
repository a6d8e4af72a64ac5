"""The reward-weighted loss of packed rows (RISE, arXiv 2407.18219, section 3).

A step's loss is sum(w / mean_w * nll) over the loss tokens of the whole global batch, divided by
their number: known from the packing plan, so no rank has to ask another. Dividing by the batch's
sum of weights instead would cancel the weights wherever a batch holds mostly one kind of example.

Attention over trees is torch's, tree by tree, so that nothing is computed between trees. Of the
layers of a model it asks only that they hand their arguments on to transformers' attention.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from rise_ray.errors import ModelError

TREE_ATTENTION = "rise_ray_trees"
_LEAST_AT_ONCE = 128  # tokens: more than one small tree, since a call has its own price
_SAME = {torch.float32: 1e-4, torch.bfloat16: 0.05}  # nats, of a token
_Group = tuple[int, int, torch.Tensor]
"""First token of some trees, end, and an additive mask [1, 1, tokens, tokens]."""


class WeightedLoss(nn.Module):
    """A causal language model with the loss inside, as DeepSpeed's engine calls it.

    The model is of Hugging Face, with "sdpa", "eager" or "flex_attention"; its rows may be trees.

    Raises:
        ModelError: the model's `forward` cannot compute the logits of chosen positions only.
    """

    def __init__(self, model: nn.Module, trees: bool = False) -> None:
        from transformers import AttentionInterface

        super().__init__()
        if "logits_to_keep" not in inspect.signature(model.forward).parameters:
            raise ModelError(f"{type(model).__name__}: its forward() has no `logits_to_keep`")
        self.model = model
        self.trees = trees
        if trees and model.config._attn_implementation == "sdpa":
            AttentionInterface.register(TREE_ATTENTION, _tree_attention)
            model.set_attn_implementation(TREE_ATTENTION)

    @property
    def takes_joined(self) -> bool:
        """Whether rows come as a single one without padding; flex_attention compiles one shape."""
        return self.trees and self.model.config._attn_implementation != "flex_attention"

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        parents: torch.Tensor,
        ends: torch.Tensor,
        weights: torch.Tensor,
    ) -> torch.Tensor:
        """The sum of weight x negative log-likelihood (nats) over the rows' loss tokens.

        Args:
            input_ids, position_ids, parents, ends: int64 [rows, row_tokens], as in `RowBatch`.
            weights: float32 [rows, row_tokens], the weight of predicting each token; 0: no loss.

        Returns:
            A float32 scalar; 0, with gradients of 0, where no token carries loss.
        """
        # Logits are computed where a loss token is predicted from, and there once: on a vocabulary
        # of 100,000 they are what memory goes to.
        row, token = torch.nonzero(weights, as_tuple=True)
        at, which = torch.unique(parents[row, token], return_inverse=True)
        if not len(at):  # padding only: the pass still has to touch every partitioned weight
            at = torch.zeros(1, dtype=torch.int64, device=weights.device)
        output = self.model(
            input_ids=input_ids,
            position_ids=position_ids,
            use_cache=False,
            logits_to_keep=at,
            **(self._attention(position_ids, ends) if self.trees else {}),
        )
        logits = output.logits.float()
        nll = -torch.log_softmax(logits, dim=-1)[row, which, input_ids[row, token]]
        return (nll * weights[row, token]).sum()

    def _attention(self, position_ids: torch.Tensor, ends: torch.Tensor) -> dict[str, Any]:
        """What the model's attention needs to know of the trees."""
        kind = self.model.config._attn_implementation
        if kind == "flex_attention":
            return {"attention_mask": _block_mask(ends)}
        if kind == TREE_ATTENTION:
            return {"trees": tuple(_groups(position_ids, ends, self.model.dtype))}
        return {"attention_mask": _mask(ends[0], self.model.dtype)}


@torch.no_grad()
def check_trees(module: WeightedLoss, row_tokens: int) -> None:
    """Compare the loss of a small tree with that of its branches, each on its own.

    Under ZeRO-3 every rank has to call this.

    Raises:
        ModelError: the model's layers look at neighbours in another way than by attention.
    """
    device = next(module.parameters()).device
    padding = 0 if module.takes_joined else max(0, row_tokens - 6)

    def loss(ids: list[int], parents: list[int], ends: list[int], depths: list[int]) -> float:
        columns = [[*c, *[0] * padding] for c in (ids, depths, [p + 1 for p in parents], ends)]
        tensors = [torch.tensor([column], device=device) for column in columns]
        tensors[2] -= 1
        return float(module(*tensors, (tensors[2] >= 0).float()))

    whole = loss([1, 2, 3, 4, 5, 6], [-1, 0, 1, 2, 1, 4], [6, 6, 4, 4, 6, 6], [0, 1, 2, 3, 2, 3])
    chain = [-1, 0, 1, 2], [4] * 4, [0, 1, 2, 3]
    stem = loss([1, 2], [-1, 0], [2] * 2, [0, 1])
    apart = loss([1, 2, 3, 4], *chain) + loss([1, 2, 5, 6], *chain) - stem
    if not abs(whole - apart) <= 5 * _SAME.get(module.model.dtype, 0.05):
        raise ModelError(
            f"{type(module.model).__name__}: what it computes of a token depends on neighbours "
            "that attention hides; set `train.shared_prefixes=false`"
        )


def _mask(ends: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """An additive mask [1, 1, tokens, tokens]: a token sees itself and those it follows from."""
    at = torch.arange(len(ends), device=ends.device)
    seen = (at <= at[:, None]) & (at[:, None] < ends) | (at == at[:, None])
    mask = torch.zeros(seen.shape, dtype=dtype, device=ends.device)
    return mask.masked_fill_(~seen, float("-inf"))[None, None]


def _groups(position_ids: torch.Tensor, ends: torch.Tensor, dtype: torch.dtype) -> Iterator[_Group]:
    """The trees of a single row, small ones together."""
    roots = torch.nonzero(position_ids[0] == 0).flatten().tolist()
    start = 0
    for end in (*roots[1:], len(ends[0])):
        if end - start >= _LEAST_AT_ONCE or end == len(ends[0]):
            yield start, end, _mask(ends[0, start:end] - start, dtype)
            start = end


def _block_mask(ends: torch.Tensor) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    rows, tokens = ends.shape

    def seen(row: Any, head: Any, query: Any, key: Any) -> Any:
        return (key <= query) & (query < ends[row, key]) | (key == query)

    return create_block_mask(seen, rows, None, tokens, tokens, device=ends.device)


def _tree_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    trees: tuple[_Group, ...] | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' "sdpa", on each group of trees of a row; without trees, on the whole row."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if trees is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    sizes = [end - start for start, end, _ in trees]
    split = zip(*(tensor.split(sizes, dim=2) for tensor in (query, key, value)), strict=True)
    outputs = [
        sdpa_attention_forward(module, *part, mask, **settings)[0]
        for part, (_, _, mask) in zip(split, trees, strict=True)
    ]
    return torch.cat(outputs, dim=1), None
