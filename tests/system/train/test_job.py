"""`train` on real Ray Train and DeepSpeed: it takes the steps that plain PyTorch would take.

The same ranks do all of it, one training after another, of other models, lengths and precisions.
"""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rise_ray.errors import TrainError
from rise_ray.mdp import Example
from rise_ray.store.examples import read_manifest, read_part
from rise_ray.store.files import Folder
from rise_ray.train.fit import train
from rise_ray.train.job import TrainJob, TrainResult
from rise_ray.train.ray_train import Ranks
from tests.system.processes import named
from tests.system.train.jobs import CONFIG, WriteExamples, check_folder, load, logprobs_of, make_job
from tests.system.train.reference import plain_steps, plan_of

pytestmark = pytest.mark.timeout(600)


Trained = Callable[[TrainJob], TrainResult]


@pytest.fixture(scope="module")
def trained(ray_runtime: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """`train`, by the same ranks."""
    states = str(tmp_path_factory.mktemp("states"))
    with Ranks() as ranks:
        yield lambda job: train(replace(job, storage=states), ranks)
    assert Folder(states).folders() == []  # Ray Train's own files are gone
    assert named("ray::RayTrainWorker") == []


def test_a_non_finite_loss_names_step_and_examples_and_writes_nothing(
    tmp_path: Path,
    trained: Trained,
    tiny_model: Path,
    examples_folder: WriteExamples,
    make_examples: Callable[..., list[Example]],
) -> None:
    broken = tmp_path / "broken"
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    # Only a step that has this example sees the broken weight.
    examples = [
        replace(e, input_ids=tuple(3 + i % 100 for i in e.input_ids)) for e in make_examples(160)
    ]
    examples[42] = replace(examples[42], input_ids=(120, *examples[42].input_ids[1:]))
    model.get_input_embeddings().weight.data[120] = math.inf
    model.save_pretrained(broken)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(broken)
    job = make_job(tmp_path, broken, examples_folder(examples))
    with pytest.raises(TrainError, match=r"iteration=1: step \d+ of \d+: .*nan") as raised:
        trained(job)
    message = str(raised.value)
    step = int(message.split("step ")[1].split(" ")[0])
    folder, plan = Folder(job.examples), plan_of(job)
    table = read_part(folder, read_manifest(folder).parts[0])
    ids = [str(table["id"][index]) for _, index in plan.step_examples(step)]
    assert "e42" in ids
    assert all(name in message for name in ids[:16])
    assert not Folder(job.output).exists()


def test_steps_whose_gradient_is_not_finite_change_nothing_and_are_counted(
    tmp_path: Path,
    trained: Trained,
    tiny_model: Path,
    examples_folder: WriteExamples,
    make_examples: Callable[..., list[Example]],
) -> None:
    broken = tmp_path / "broken"
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    # So large that its norm overflows: the loss is finite, and its gradient is not.
    model.get_input_embeddings().weight.data[120] = 3e38
    model.save_pretrained(broken)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(broken)
    examples = [
        replace(e, input_ids=tuple(3 + i % 100 for i in e.input_ids)) for e in make_examples(160)
    ]
    examples[42] = replace(examples[42], input_ids=(120, *examples[42].input_ids[1:]))
    config = CONFIG.model_copy(update={"epochs": 1})
    job = make_job(tmp_path, broken, examples_folder(examples), config=config)
    result = trained(job)
    assert result.skipped_steps == 1
    assert all(weight.isfinite().all() for weight in load(job).state_dict().values())


def test_tied_embeddings_are_trained_and_written_as_one_weight(
    tmp_path: Path,
    trained: Trained,
    write_model: Callable[..., Path],
    examples_folder: WriteExamples,
    make_examples: Callable[..., list[Example]],
) -> None:
    base = write_model(tmp_path / "tied", tie_word_embeddings=True)
    config = CONFIG.model_copy(update={"epochs": 1, "gradient_checkpointing": True})
    job = make_job(tmp_path, base, examples_folder(make_examples(60)), config=config)
    result = trained(job)
    losses, weights = plain_steps(job)
    assert result.last_loss == pytest.approx(losses[-1], rel=1e-3)
    model = load(job)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    name = "model.embed_tokens.weight"
    torch.testing.assert_close(model.state_dict()[name], weights[name], rtol=0, atol=2e-4)
    check_folder(job)


def test_a_bfloat16_checkpoint_holds_bfloat16_and_its_parity(
    tmp_path: Path,
    trained: Trained,
    tiny_model: Path,
    examples_folder: WriteExamples,
    make_examples: Callable[..., list[Example]],
) -> None:
    config = CONFIG
    job = make_job(
        tmp_path,
        tiny_model,
        examples_folder(make_examples(60)),
        config=config,
        dtype="bfloat16",
        token_budget=600,
    )
    result = trained(job)
    assert abs(result.tokens - 600) <= config.batch_tokens / 2
    model = AutoModelForCausalLM.from_pretrained(job.output, dtype="auto")
    assert {weight.dtype for weight in model.state_dict().values()} == {torch.bfloat16}
    parity = json.loads(Folder(job.output).read("parity.json"))
    for found, expected in zip(parity["logprobs"], logprobs_of(model), strict=True):
        assert found == pytest.approx(expected, abs=0.05)


def test_packed_zero3_steps_of_two_workers_equal_plain_single_process_steps(
    tmp_path: Path,
    trained: Trained,
    tiny_model: Path,
    examples_folder: WriteExamples,
    make_examples: Callable[..., list[Example]],
    branch: Callable[..., list[Example]],
) -> None:
    logged = tmp_path / "log.jsonl"

    def log(row: dict[str, object]) -> None:
        with logged.open("a") as file:
            file.write(json.dumps(row) + "\n")

    made = [b for example in make_examples(60) for b in branch(example, 3)]
    job = make_job(tmp_path, tiny_model, examples_folder(made), log=log)
    result = trained(job)
    losses, weights = plain_steps(job)

    plan = plan_of(job)
    assert result.steps == plan.steps == len(losses)
    assert result.tokens == 2 * sum(len(e.input_ids) for e in made)
    assert plan.computed_tokens.sum() == result.computed_tokens < 0.8 * result.tokens
    assert result.loss_tokens == plan.loss_tokens.sum()
    assert result.first_loss == pytest.approx(losses[0], rel=1e-4)
    assert result.last_loss == pytest.approx(losses[-1], rel=1e-3)
    rows = [json.loads(line) for line in logged.read_text().splitlines()]
    steps = [0, *(row["step"] for row in rows)]
    for row, start, end in zip(rows, steps, steps[1:], strict=False):
        assert row["loss"] == pytest.approx(sum(losses[start:end]) / (end - start), rel=1e-3)
        assert 0 < row["lr"] <= job.config.lr
        assert row["grad_norm"] > 0
    assert steps[-1] == result.steps

    trained = load(job).state_dict()
    base = AutoModelForCausalLM.from_pretrained(job.base).state_dict()
    for name, weight in weights.items():
        moved = (weight - base[name]).norm()
        assert (trained[name] - weight).norm() < 0.01 * moved, name
    check_folder(job)


@pytest.mark.slow
def test_the_same_ranks_train_again_and_one_that_was_lost_meanwhile_is_replaced(
    tmp_path: Path,
    trained: Trained,
    tiny_model: Path,
    examples_folder: WriteExamples,
    make_examples: Callable[..., list[Example]],
) -> None:
    job = make_job(tmp_path, tiny_model, examples_folder(make_examples(60)))
    once = trained(job)
    ranks = named("ray::RayTrainWorker")
    again = trained(replace(job, name="iteration=2"))
    assert named("ray::RayTrainWorker") == ranks
    os.kill(named("ray::TrainController")[0].pid, signal.SIGKILL)
    anew = trained(replace(job, name="iteration=3"))
    os.kill(named("ray::RayTrainWorker")[-1].pid, signal.SIGKILL)  # of the new ones
    after = trained(replace(job, name="iteration=4"))  # gives the controller back, too
    for other in (again, anew, after):
        assert (other.steps, other.resumed_at) == (once.steps, 0)
        assert other.first_loss == pytest.approx(once.first_loss, rel=1e-5)
        assert other.last_loss == pytest.approx(once.last_loss, rel=1e-5)
    assert 0 < again.start_seconds < again.total_seconds


def test_what_went_wrong_on_a_worker_is_told_in_one_line(
    tmp_path: Path, examples_folder: WriteExamples, make_examples: Callable[..., list[Example]]
) -> None:
    config = CONFIG.model_copy(update={"max_failures": 0, "workers": 1})
    missing = tmp_path / "no-model-here"
    missing.mkdir()
    job = make_job(tmp_path, missing, examples_folder(make_examples(20)), config=config)
    with pytest.raises(TrainError, match="no-model-here") as raised:
        train(job)
    assert "\n" not in str(raised.value)
