"""`train` on real Ray Train and DeepSpeed: it takes the steps that plain PyTorch would take."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ray.util import placement_group_table
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from rise_ray.config.settings import TrainConfig
from rise_ray.errors import TrainError
from rise_ray.mdp import Example
from rise_ray.store.examples import read_manifest, read_part
from rise_ray.store.files import Folder
from rise_ray.train import ray_train
from rise_ray.train.fit import train
from rise_ray.train.job import TrainJob, TrainResult
from tests.system.processes import losing, named
from tests.system.train.reference import plain_steps, plan_of
from tests.system.train.slow_meeting import SlowRendezvous

pytestmark = pytest.mark.usefixtures("ray_runtime")

CONFIG = TrainConfig(
    workers=2,
    epochs=2,
    lr=2e-3,
    min_lr_ratio=0.1,
    warmup_ratio=0.1,
    weight_decay=0.01,
    batch_tokens=512,
    row_tokens=64,
    rows_per_pass=2,  # two accumulated passes of each rank in a step
    grad_clip=0.5,
)
CHAT_TEMPLATE = "{% for m in messages %}({{ m.content }}){% endfor %}"
PARITY = ((5, 9, 30, 77, 12), (100, 101, 3))


def make_job(tmp_path: Path, base: Path, examples: Folder, **changes: object) -> TrainJob:
    job = TrainJob(
        name="iteration=1",
        config=CONFIG,
        base=str(base),
        examples=examples.uri,
        output=str(tmp_path / "output"),
        storage=str(tmp_path / "storage"),
        seed=3,
        token_budget=None,
        dtype="auto",
        trust_remote_code=False,
        parity_sequences=PARITY,
        chat_template=CHAT_TEMPLATE,
        card={"Rule": "better"},
        log=None,
    )
    return replace(job, **changes)


def load(job: TrainJob) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(job.output)


def logprobs_of(model: torch.nn.Module) -> list[list[float]]:
    found = []
    for sequence in PARITY:
        ids = torch.tensor([sequence])
        with torch.no_grad():
            logprobs = torch.log_softmax(model(input_ids=ids).logits[0, :-1].float(), dim=-1)
        found.append(logprobs.gather(1, ids[0, 1:, None]).squeeze(1).tolist())
    return found


WriteExamples = Callable[[list[Example]], Folder]


def test_packed_zero3_steps_of_two_workers_equal_plain_single_process_steps(
    tmp_path: Path,
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
    result = train(job)
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


def check_folder(job: TrainJob) -> None:
    """A complete Hugging Face folder whose parity file tells the truth about its weights."""
    parity = json.loads(Folder(job.output).read("parity.json"))
    assert parity["sequences"] == [list(sequence) for sequence in PARITY]
    for found, expected in zip(parity["logprobs"], logprobs_of(load(job)), strict=True):
        assert found == pytest.approx(expected, abs=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(job.output)
    said = tokenizer.apply_chat_template([{"role": "user", "content": "w5"}], tokenize=False)
    assert said == "(w5)"  # the job's template, not the base's
    assert GenerationConfig.from_pretrained(job.output).eos_token_id == 1
    card = Folder(job.output).read("README.md").decode()
    assert "| Rule | better |" in card
    assert Folder(job.storage).folders() == []  # Ray Train's own files are gone


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_whose_worker_dies_or_hangs_goes_on_and_ends_with_the_same_weights(
    tmp_path: Path,
    tiny_model: Path,
    examples_folder: WriteExamples,
    make_examples: Callable[..., list[Example]],
) -> None:
    config = CONFIG.model_copy(update={"epochs": 4, "max_failures": 1, "checkpoint_every_s": 0.0})
    examples = examples_folder(make_examples(400))
    whole = make_job(tmp_path, tiny_model, examples, config=config)
    expected = train(whole)

    for number, deadline_s in ((signal.SIGKILL, 1800.0), (signal.SIGSTOP, 20.0)):
        folder = tmp_path / number.name
        job = make_job(
            folder,
            tiny_model,
            examples,
            config=config.model_copy(update={"step_deadline_s": deadline_s}),
            log=striking(folder, number),
        )
        result = train(job)
        assert 0 < result.resumed_at < result.steps
        assert result.steps == expected.steps
        assert result.first_loss == expected.first_loss
        assert result.last_loss == pytest.approx(expected.last_loss, rel=1e-5)
        for name, weight in load(whole).state_dict().items():
            torch.testing.assert_close(load(job).state_dict()[name], weight, rtol=0, atol=1e-5)


def striking(folder: Path, number: signal.Signals) -> Callable[[dict[str, object]], None]:
    """A job's `log` that signals its rank once, when Ray Train knows of a saved state.

    A state is saved every time that the ranks meet, with `checkpoint_every_s` = 0.
    """

    def log(row: dict[str, object]) -> None:
        struck = folder / "struck"
        if not struck.exists() and list(folder.rglob("checkpoint_manager_snapshot.json")):
            struck.touch()
            os.kill(os.getpid(), number)

    return log


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("title", "number", "progress_deadline_s"),
    [
        ("ray::RayTrainWorker.run_train_fn", signal.SIGKILL, 3600.0),
        ("ray::execute._setup_torch_process_group", signal.SIGKILL, 3600.0),
        # Nobody but its silence tells of it; a start on a busy machine is silent, too.
        ("ray::execute._setup_torch_process_group", signal.SIGSTOP, 40.0),
    ],
)
def test_a_worker_that_is_lost_while_it_starts_is_started_again(
    title: str,
    number: signal.Signals,
    progress_deadline_s: float,
    tmp_path: Path,
    tiny_model: Path,
    examples_folder: WriteExamples,
    make_examples: Callable[..., list[Example]],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_train, "Rendezvous", SlowRendezvous)
    update = {"max_failures": 1, "progress_deadline_s": progress_deadline_s}
    config = CONFIG.model_copy(update=update)
    job = make_job(tmp_path, tiny_model, examples_folder(make_examples(60)), config=config)
    with losing(title, number, others=named("ray::RayTrainWorker")):
        result = train(job)
    assert "are started again" in caplog.text
    groups = placement_group_table().values()
    assert {group["state"] for group in groups} <= {"REMOVED"}, "a lost start holds resources"
    assert len(load(job).state_dict()) > 0
    assert result.resumed_at == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_failed_for_good_goes_on_when_it_is_called_again(
    tmp_path: Path,
    tiny_model: Path,
    examples_folder: WriteExamples,
    make_examples: Callable[..., list[Example]],
) -> None:
    config = CONFIG.model_copy(update={"epochs": 4, "max_failures": 0, "checkpoint_every_s": 0.0})
    examples = examples_folder(make_examples(400))
    job = make_job(
        tmp_path, tiny_model, examples, config=config, log=striking(tmp_path, signal.SIGKILL)
    )
    with pytest.raises(TrainError, match="iteration=1: training failed"):
        train(job)
    assert not Folder(job.output).exists()
    # Where it was, also with other settings of those that say how a training is done only.
    config = config.model_copy(update={"max_failures": 1, "rows_per_pass": 4})
    assert 0 < train(replace(job, config=config)).resumed_at < plan_of(job).steps
    check_folder(job)


def test_a_non_finite_loss_names_step_and_examples_and_writes_nothing(
    tmp_path: Path,
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
        train(job)
    message = str(raised.value)
    step = int(message.split("step ")[1].split(" ")[0])
    folder, plan = Folder(job.examples), plan_of(job)
    table = read_part(folder, read_manifest(folder).parts[0])
    ids = [str(table["id"][index]) for _, index in plan.step_examples(step)]
    assert "e42" in ids
    assert all(name in message for name in ids[:16])
    assert not Folder(job.output).exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_steps_whose_gradient_is_not_finite_change_nothing_and_are_counted(
    tmp_path: Path,
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
    result = train(job)
    assert result.skipped_steps == 1
    assert all(weight.isfinite().all() for weight in load(job).state_dict().values())


def test_tied_embeddings_are_trained_and_written_as_one_weight(
    tmp_path: Path,
    write_model: Callable[..., Path],
    examples_folder: WriteExamples,
    make_examples: Callable[..., list[Example]],
) -> None:
    base = write_model(tmp_path / "tied", tie_word_embeddings=True)
    config = CONFIG.model_copy(update={"epochs": 1, "gradient_checkpointing": True})
    job = make_job(tmp_path, base, examples_folder(make_examples(60)), config=config)
    result = train(job)
    losses, weights = plain_steps(job)
    assert result.last_loss == pytest.approx(losses[-1], rel=1e-3)
    model = load(job)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    name = "model.embed_tokens.weight"
    torch.testing.assert_close(model.state_dict()[name], weights[name], rtol=0, atol=2e-4)
    check_folder(job)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_bfloat16_checkpoint_holds_bfloat16_and_its_parity(
    tmp_path: Path,
    tiny_model: Path,
    examples_folder: WriteExamples,
    make_examples: Callable[..., list[Example]],
) -> None:
    config = CONFIG.model_copy(update={"workers": 1})
    job = make_job(
        tmp_path,
        tiny_model,
        examples_folder(make_examples(60)),
        config=config,
        dtype="bfloat16",
        token_budget=600,
    )
    result: TrainResult = train(job)
    assert abs(result.tokens - 600) <= config.batch_tokens / 2
    model = AutoModelForCausalLM.from_pretrained(job.output, dtype="auto")
    assert {weight.dtype for weight in model.state_dict().values()} == {torch.bfloat16}
    parity = json.loads(Folder(job.output).read("parity.json"))
    for found, expected in zip(parity["logprobs"], logprobs_of(model), strict=True):
        assert found == pytest.approx(expected, abs=0.05)


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
