"""Shared prefixes trained once: the same loss and gradients as those of separate examples."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from rise_ray.errors import ModelError
from rise_ray.mdp import Example, Place, Provenance, Span
from rise_ray.store.examples import PartLengths, examples_to_table
from rise_ray.train.loss import WeightedLoss, check_trees
from rise_ray.train.packing import Layout, PackingPlan, choose_layout, plan_epochs
from rise_ray.train.rows import RowBatch, empty_rows, fill_rows

ROW = 96
VOCABULARY = 61
MEAN_WEIGHT = 1.7
SHAPES = ("chain", "star", "window", "holes", "cancelled")


def model(attention: str = "sdpa", checkpointing: bool = False, device: str = "cpu") -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        initializer_range=0.2,  # large enough for what a token sees to matter
        attn_implementation=attention,
    )
    made = LlamaForCausalLM(config)
    if checkpointing:
        made.gradient_checkpointing_enable({"use_reentrant": False})
    return made.train().to(device)


def trajectory(shape: str, number: int = 0) -> list[Example]:
    """Examples as relabeling makes them: of one trajectory, in the order of their tokens."""
    rng = random.Random(f"{shape}/{number}")

    def draw(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(VOCABULARY) for _ in range(count))

    prompt = draw(5)
    turns = [draw(8) for _ in range(4)]
    rows: list[tuple[tuple[int, ...], tuple[Span, ...]]] = []

    def add(state: tuple[int, ...], response: tuple[int, ...], *more: Span) -> None:
        span = Span(len(state), len(state) + len(response), rng.uniform(-0.5, 3))
        rows.append((state + response, (*more, span)))

    if shape == "star":
        for _ in range(5):
            add(prompt, draw(6))
        add(prompt, rows[-1][0][5:8] + draw(4))  # shares a part of a response
    for turn in range(4) if shape != "star" else ():
        first = max(0, turn - 1) if shape == "window" else 0
        state = prompt + sum(turns[first:turn], ())
        if shape == "holes":  # trains on shared tokens, too, each with a weight of its own
            add(state, draw(5), Span(0, 2, 1.25), Span(3, 5, rng.uniform(0, 2)))
            continue
        add(state, draw(6))
        if shape == "cancelled":
            ids, (span,) = rows[-1]
            rows.append((ids, (dataclasses.replace(span, weight=-span.weight),)))
    place = Place("iteration", 1, "collect")
    origin = Provenance("candidate", "all", f"{shape}{number}", "p", place, 0, 0, 1.0, 0, 0, "")
    rows.sort(key=lambda row: row[0])
    return [Example(f"{shape}{number}/{i}", *row, origin) for i, row in enumerate(rows)]


def lengths_of(made: Sequence[Example]) -> PartLengths:
    table = examples_to_table(made)
    names = (field.name for field in dataclasses.fields(PartLengths))
    return PartLengths(*(table[name].to_numpy().astype(np.int64) for name in names))


def planned(made: Sequence[Example], row_tokens: int = ROW, longest: int = ROW) -> PackingPlan:
    layout = Layout(row_tokens, 1, fill=row_tokens - 16, longest_tree=longest)
    return plan_epochs([lengths_of(made)], layout, epochs=1, seed=0)


def laid_out(made: Sequence[Example], plan: PackingPlan) -> RowBatch:
    (rows,) = plan.parts
    wanted, table = range(rows.rows), examples_to_table(made)
    return fill_rows(table, rows, wanted, plan.row_tokens, MEAN_WEIGHT, plan.trees)


def loss_of(module: WeightedLoss, batch: RowBatch) -> torch.Tensor:
    if module.takes_joined:
        batch = batch.joined()
    names = ("input_ids", "position_ids", "parents", "ends")
    columns = (*(getattr(batch, name).astype(np.int64) for name in names), batch.weights)
    device = next(module.parameters()).device
    return module(*(torch.from_numpy(column).to(device) for column in columns))


def separate(model: nn.Module, made: Sequence[Example]) -> torch.Tensor:
    """The loss written down from its definition, one example at a time."""
    device = next(model.parameters()).device
    total = torch.zeros((), device=device)
    for example in made:
        ids = torch.tensor([example.input_ids], device=device)
        logprobs = torch.log_softmax(model(input_ids=ids).logits[0].float(), dim=-1)
        for span in example.spans:
            at = torch.arange(max(span.start, 1), span.end, device=device)
            total = total - span.weight / MEAN_WEIGHT * logprobs[at - 1, ids[0, at]].sum()
    return total


def check_equal(found: nn.Module, expected: nn.Module, tolerance: float = 1e-4) -> None:
    wanted = dict(expected.named_parameters())
    for name, parameter in found.named_parameters():
        torch.testing.assert_close(
            parameter.grad, wanted[name].grad, rtol=tolerance, atol=tolerance, msg=name
        )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_tree_has_the_loss_and_gradients_of_its_examples(shape: str, attention: str) -> None:
    made = trajectory(shape)
    plan = planned(made)
    assert plan.computed_tokens.sum() < plan.tokens.sum()
    one, other = model(attention), model(attention)
    loss, expected = loss_of(WeightedLoss(one, True), laid_out(made, plan)), separate(other, made)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-4)
    (loss.backward(), expected.backward())
    check_equal(one, other)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_so_have_several_trees_in_rows_of_several_passes(checkpointing: bool) -> None:
    made = [e for n in range(3) for shape in SHAPES for e in trajectory(shape, n)]
    plan = planned(made, row_tokens=200)
    batch, (rows,) = laid_out(made, plan), plan.parts
    assert 1 < rows.rows < 3 * len(SHAPES)  # rows hold several
    one, other = model(checkpointing=checkpointing), model()
    module = WeightedLoss(one, True)
    for at in range(0, rows.rows, 2):  # gradients add up over the passes
        columns = (getattr(batch, f.name)[at : at + 2] for f in dataclasses.fields(batch))
        loss_of(module, RowBatch(*columns)).backward()
    separate(other, made).backward()
    check_equal(one, other, 2e-4)


def test_a_tree_that_is_longer_than_a_row_is_cut_between_examples() -> None:
    made = trajectory("star")
    plan = planned(made, row_tokens=24, longest=24)
    batch = laid_out(made, plan)
    assert batch.ends.shape[0] > 1
    one, other = model(), model()
    (loss_of(WeightedLoss(one, True), batch).backward(), separate(other, made).backward())
    check_equal(one, other)


def test_padding_alone_gives_no_loss_and_touches_every_weight() -> None:
    one = model()
    loss = loss_of(WeightedLoss(one, True), empty_rows(2, ROW))
    loss.backward()
    assert loss.item() == 0
    assert all((parameter.grad == 0).all() for parameter in one.parameters())


def test_a_tree_is_laid_out_token_by_token() -> None:
    origin = trajectory("star")[0].provenance
    made = [
        Example("a", (1, 2, 3, 4), (Span(2, 4, 1.0),), origin),
        Example("b", (1, 2, 3, 5), (Span(2, 4, 2.0),), origin),
        Example("c", (1, 2, 6), (Span(2, 3, 4.0),), origin),
    ]
    plan = plan_epochs([lengths_of(made)], Layout(8, 1, 8, 8), epochs=1, seed=0)
    (rows,) = plan.parts
    batch = fill_rows(examples_to_table(made), rows, [0], 8, 1.0, True)
    assert (plan.tokens.sum(), plan.computed_tokens.sum(), plan.loss_tokens.sum()) == (11, 6, 5)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 3, 2, 0, 1]]
    assert batch.parents.tolist() == [[-1, 0, 1, 2, 2, 1, -1, 6]]
    assert batch.ends.tolist() == [[6, 6, 5, 4, 5, 6, 0, 0]]
    assert batch.weights.tolist() == [[0, 0, 3, 1, 2, 4, 0, 0]]
    assert batch.predicted.tolist() == [[0, 0, 2, 1, 1, 1, 0, 0]]
    joined = batch.joined()
    assert joined.ends.tolist() == [[6, 6, 5, 4, 5, 6]]


parts = st.lists(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=8), min_size=1, max_size=3)


@given(parts, st.sampled_from([1, 2]), st.integers(0, 3))
@settings(deadline=None, max_examples=40)
def test_a_plan_of_trees_takes_every_example_once_and_counts_what_rows_hold(
    shapes: list[list[str]], epochs: int, seed: int
) -> None:
    made = [[e for n, s in enumerate(part) for e in trajectory(s, n)] for part in shapes]
    lengths = [lengths_of(part) for part in made]
    layout = Layout(ROW, 2, fill=60, longest_tree=64)
    plan = plan_epochs(lengths, layout, epochs=epochs, seed=seed)
    taken = sorted(example for step in range(plan.steps) for example in plan.step_examples(step))
    everything = [(part, i) for part, of in enumerate(made) for i in range(len(of))]
    assert taken == sorted(everything * epochs)
    held = loss_tokens = 0
    for rows in plan.parts:
        table = examples_to_table(made[rows.part])
        batch = fill_rows(table, rows, range(rows.rows), plan.row_tokens, 1.0, True)
        held += np.count_nonzero(batch.ends)
        loss_tokens += batch.predicted.sum()
    assert plan.row_tokens <= ROW
    assert held == plan.computed_tokens.sum()
    assert loss_tokens == plan.loss_tokens.sum()


def test_a_step_of_trees_trains_on_as_many_tokens_as_one_of_rows() -> None:
    made = [e for n in range(60) for shape in ("chain", "star") for e in trajectory(shape, n)]
    lengths = [lengths_of(made)]
    shape = {"batch_tokens": 1024, "row_tokens": 128, "workers": 2}
    trees = choose_layout(lengths, **shape, shared_prefixes=True)
    rows = choose_layout(lengths, **shape, shared_prefixes=False)
    assert (trees.fill is None, rows.fill is None) == (False, True)
    plan = plan_epochs(lengths, trees, epochs=1, seed=0)
    assert plan.tokens[:-1].mean() == pytest.approx(1024, rel=0.1)
    assert plan.computed_tokens.sum() < 0.7 * plan.tokens.sum()


def test_nothing_in_common_is_no_tree() -> None:
    alone = [dataclasses.replace(trajectory("star", n)[0], id=f"{n}") for n in range(20)]
    layout = choose_layout(
        [lengths_of(alone)], batch_tokens=64, row_tokens=32, workers=1, shared_prefixes=True
    )
    assert layout == Layout(32, 2)


class _LooksBack(nn.Module):
    """Stands for a layer that mixes neighbours without asking attention."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.inner(hidden) + hidden.roll(1, dims=1)


def test_a_model_whose_layers_see_hidden_neighbours_is_refused() -> None:
    good, bad = model(), model()
    check_trees(WeightedLoss(good, True), ROW)
    bad.model.layers[0].mlp = _LooksBack(bad.model.layers[0].mlp)
    with pytest.raises(ModelError, match=r"LlamaForCausalLM: .*shared_prefixes=false"):
        check_trees(WeightedLoss(bad, True), ROW)


def test_without_trees_the_model_attends_as_ever() -> None:
    one, other = model(), model()
    WeightedLoss(one, True)
    ids = torch.arange(1, 20)[None]
    torch.testing.assert_close(one(input_ids=ids).logits, other(input_ids=ids).logits)


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["sdpa", "flex_attention"])
def test_a_gpu_s_kernels_give_the_loss_and_gradients_of_separate_examples(attention: str) -> None:
    made = [e for n in range(3) for shape in SHAPES for e in trajectory(shape, n)]
    plan = planned(made, row_tokens=256, longest=256)
    one, other = model(attention, device="cuda"), model("eager", device="cuda")
    loss_of(WeightedLoss(one, True), laid_out(made, plan)).backward()
    separate(other, made).backward()
    check_equal(one, other, 2e-3)


@pytest.mark.gpu
def test_flex_attention_is_compiled_for_one_length_only() -> None:
    made = [e for n in range(6) for shape in SHAPES for e in trajectory(shape, n)]
    plan = planned(made, row_tokens=256, longest=256)
    batch, module = laid_out(made, plan), WeightedLoss(model("flex_attention", device="cuda"), True)
    torch._dynamo.reset()
    compiled = []
    for row in range(batch.ends.shape[0]):
        columns = (getattr(batch, f.name)[row : row + 1] for f in dataclasses.fields(batch))
        loss_of(module, RowBatch(*columns)).backward()
        compiled.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert len(compiled) > 2
    assert compiled[-1] == compiled[0]
