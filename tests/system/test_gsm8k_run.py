"""A whole run over word problems as they come: `jobs/gsm8k_cpu.yaml`, with a dozen of them.

Real text is what the quick start's closed vocabulary hides: byte-level tokens, answers cut off at
the limit, solutions that do not fit the context, a checker that reads `\\boxed{}`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rise_ray.config.loading import load_config
from rise_ray.config.settings import RunConfig
from rise_ray.mdp import Example, FinishReason
from rise_ray.report.console import Console
from rise_ray.run.journal import REPORT, Run
from rise_ray.run.stages import Stages
from rise_ray.store.examples import examples_from_table, read_manifest, read_part
from tests.system.miniature import COLLECT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

JOB = Path(__file__).parents[2] / "jobs" / "gsm8k_cpu.yaml"
THINGS = ["apples", "coins", "books", "eggs", "tickets", "pencils"]
TURNS = 2
SHORT = 10  # training problems whose solution fits the context; one more does not


@pytest.fixture(scope="module")
def run(ray_runtime: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The finished run."""
    config = _config(tmp_path_factory.mktemp("gsm8k"))
    finished = Run(config, resume=False)
    with Stages(finished, Console()) as stages:
        stages.do_all()
    return finished


def test_the_loop_ends_with_a_checkpoint_and_a_report(run: Run) -> None:
    assert list(run.stages) == [
        "warm-start/train",
        "base/eval",
        "iteration-1/collect",
        "iteration-1/relabel",
        "iteration-1/train",
        "iteration-1/eval",
        "run/report",
    ]
    for iteration in (0, 1):
        assert (run.folder / "checkpoints" / f"iteration={iteration}").exists("config.json")
    assert "gsm8k-cpu" in run.folder.read(REPORT).decode()


def test_what_does_not_fit_the_context_is_counted_and_left_out(run: Run) -> None:
    warm_start, relabel = run.stages["warm-start/train"], run.stages["iteration-1/relabel"]
    assert (warm_start["examples"], warm_start["too_long"]) == (2 * SHORT, 2)
    assert relabel["examples"] == TURNS * SHORT
    assert relabel["dropped"] == {"too_long": TURNS}


def test_answers_that_were_cut_off_are_counted_and_never_data(run: Run) -> None:
    attempts = [
        turn.attempt for trajectory in run.trajectories.read(COLLECT) for turn in trajectory.turns
    ]
    cut_off = [a for a in attempts if a.finish_reason is FinishReason.LENGTH]
    assert cut_off  # a model that saw 20 examples writes to the limit
    assert run.stages["iteration-1/collect"]["truncated"] == len(cut_off)
    assert {e.provenance.source for e in _examples(run)} == {"teacher"}


def test_every_example_is_a_worked_solution_that_was_checked(run: Run) -> None:
    for example in _examples(run):
        origin = example.provenance
        assert (origin.rule, origin.reward, origin.weight_version) == ("teacher", 1.0, -1)
        assert origin.verifier_version.startswith("gsm8k/")
    states = {(e.provenance.problem_id, e.provenance.turn) for e in _examples(run)}
    assert len(states) == TURNS * SHORT


def test_no_check_failed_and_an_untrained_models_accuracy_is_reported_as_it_is(run: Run) -> None:
    for stage in ("base/eval", "iteration-1/collect", "iteration-1/eval"):
        counts = run.stages[stage]
        assert (counts["verdict_errors"], counts["episode_errors"]) == (0, 0)
    metric = run.stages["iteration-1/eval"]["metrics"]["m1@t1"]
    assert metric["value"] == 0.0
    assert metric["low"] == 0.0
    assert metric["high"] > 0.5  # three problems say little


def _config(folder: Path) -> RunConfig:
    _write(folder / "train.jsonl", [*map(_row, range(SHORT)), _row(SHORT, steps=40)])
    _write(folder / "test.jsonl", [_row(number) for number in range(20, 23)])
    small = ["batch_tokens=1024", "row_tokens=512", "workers=1"]
    return load_config(
        JOB,
        [
            f"storage={folder / 'runs'}",
            f"task.options.paths.train={folder / 'train.jsonl'}",
            f"task.options.paths.test={folder / 'test.jsonl'}",
            "task.options.dev_share=0.0001",  # every problem is in `train`
            "model.max_model_len=512",
            "model.scratch.vocab_size=400",
            "model.scratch.architecture.hidden_size=64",
            "model.scratch.architecture.intermediate_size=128",
            "model.scratch.architecture.num_hidden_layers=2",
            "model.scratch.architecture.num_attention_heads=2",
            "model.scratch.architecture.num_key_value_heads=2",
            f"warm_start.examples={2 * (SHORT + 1)}",
            *(f"warm_start.train.{setting}" for setting in small),
            *(f"train.{setting}" for setting in small),
            "verify.deadline_s=25",  # no check fails, also on a machine that is busy for seconds
            "problems=null",
            f"recipe.turns={TURNS}",
            "rollout.sampling.max_tokens=48",
            "rollout.workers.min_workers=1",
            "rollout.workers.max_workers=1",
            "evaluation.sampling.max_tokens=48",
            "evaluation.problems=null",
        ],
    )


def _row(number: int, steps: int = 1) -> dict[str, str]:
    """A problem of GSM8K's form, with calculator annotations; `steps` lengthen its solution."""
    thing, first, more = THINGS[number % len(THINGS)], 3 + number, 7 + 2 * number
    sums = [
        f"She has {first}+{more * step} = <<{first}+{more * step}={first + more * step}>>"
        f"{first + more * step} {thing} after {step} days."
        for step in range(1, steps + 1)
    ]
    question = f"Ada has {first} {thing} and gets {more} every day. How many after {steps} days?"
    return {"question": question, "answer": "\n".join([*sums, f"#### {first + more * steps}"])}


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _examples(run: Run) -> list[Example]:
    folder = run.folder / "examples" / "iteration-1"
    parts = read_manifest(folder).parts
    return [example for part in parts for example in examples_from_table(read_part(folder, part))]
