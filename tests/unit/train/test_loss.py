"""Packed rows train exactly what separate examples would: the same loss, the same gradients."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from rise_ray.errors import ModelError
from rise_ray.mdp import Example, Place, Provenance, Span
from rise_ray.store.examples import PartLengths, examples_to_table, loss_token_count
from rise_ray.train.data import RowBatch, empty_rows, fill_rows
from rise_ray.train.loss import WeightedLoss
from rise_ray.train.packing import plan_epochs

ROW = 48
MEAN_WEIGHT = 1.7


def model(attn_implementation: str = "sdpa") -> WeightedLoss:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=127,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=128,
        tie_word_embeddings=False,
        attn_implementation=attn_implementation,
    )
    return WeightedLoss(LlamaForCausalLM(config))


def examples(count: int = 12) -> list[Example]:
    rng = random.Random(0)
    provenance = Provenance(
        "candidate", "all", "t", "p", Place("iteration", 1, "collect"), 0, 0, 1.0, 0, 0, ""
    )
    made = []
    for number in range(count):
        length = rng.randint(6, 30)
        ids = tuple(rng.randrange(127) for _ in range(length))
        # The first span starts at a token without a prefix, which must carry no loss.
        spans = (Span(0, 3, rng.uniform(0, 3)), Span(4, length, rng.uniform(0, 3)))
        made.append(Example(f"e{number}", ids, spans, provenance))
    return made


def packed(made: list[Example]) -> RowBatch:
    lengths = PartLengths(
        np.array([len(e.input_ids) for e in made]),
        np.array([loss_token_count(e.spans) for e in made]),
    )
    (rows,) = plan_epochs([lengths], row_tokens=ROW, rows_per_step=1, epochs=1, seed=0).parts
    assert rows.rows < len(made)  # else nothing was packed
    return fill_rows(examples_to_table(made), rows, range(rows.rows), ROW, MEAN_WEIGHT)


def run(module: WeightedLoss, batch: RowBatch) -> torch.Tensor:
    return module(
        torch.from_numpy(batch.input_ids.astype(np.int64)),
        torch.from_numpy(batch.position_ids.astype(np.int64)),
        torch.from_numpy(batch.weights),
    )


def separate(module: WeightedLoss, made: list[Example]) -> torch.Tensor:
    """The loss written down from its definition, one unpacked example at a time."""
    total = torch.zeros(())
    for example in made:
        ids = torch.tensor([example.input_ids])
        logprobs = torch.log_softmax(module.model(input_ids=ids).logits[0].float(), dim=-1)
        for span in example.spans:
            for at in range(max(span.start, 1), span.end):
                nll = -logprobs[at - 1, example.input_ids[at]]
                total = total + span.weight / MEAN_WEIGHT * nll
    return total


def gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters()}


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_packed_and_unpacked_loss_and_gradients_agree(attn_implementation: str) -> None:
    made = examples()
    one, other = model(attn_implementation), model(attn_implementation)
    losses = run(one, packed(made)), separate(other, made)
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    for loss in losses:
        loss.backward()
    expected = gradients(other)
    for name, gradient in gradients(one).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-4)


def test_weights_scale_the_loss_and_are_not_normalised_away() -> None:
    made = examples()
    heavy = [
        Example(
            e.id,
            e.input_ids,
            tuple(Span(s.start, s.end, 3 * s.weight) for s in e.spans),
            e.provenance,
        )
        for e in made
    ]
    module = model()
    assert run(module, packed(heavy)).item() == pytest.approx(
        3 * run(module, packed(made)).item(), rel=1e-5
    )


def test_padding_gives_no_loss_and_no_gradient_but_touches_every_weight() -> None:
    module = model()
    loss = run(module, empty_rows(2, ROW))
    assert loss.item() == 0
    loss.backward()
    assert all((gradient == 0).all() for gradient in gradients(module).values())


def test_a_neighbour_in_the_row_does_not_change_an_example_s_loss() -> None:
    module, (first, *others) = model(), examples()
    alone = run(module, packed([first, *others])).item() - run(module, packed(others)).item()
    assert alone == pytest.approx(separate(module, [first]).item(), rel=1e-4)


def test_a_model_that_cannot_choose_positions_is_refused() -> None:
    with pytest.raises(ModelError, match="logits_to_keep"):
        WeightedLoss(nn.Linear(2, 2))
