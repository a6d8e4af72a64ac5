"""A whole run in miniature: two iterations, the control and the report, by real parts."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rise_ray.cli.main import main
from rise_ray.mdp import Place, StopReason
from rise_ray.models.locate import locate_model
from rise_ray.relabel.rewards import reward_of
from rise_ray.run.journal import Run
from rise_ray.run.lineage import example_lineage, open_run, problem_lineage, trace, training_rows
from rise_ray.store.examples import examples_from_table, read_manifest, read_part
from rise_ray.store.files import Folder
from rise_ray.sync.parity import ParityReference, check_parity, reference_logprobs
from tests.chaos.audit import planned_episodes
from tests.chaos.plan import stage_keys
from tests.system.miniature import (
    CANDIDATES,
    CONTROL,
    EVAL_PARALLEL,
    EVAL_PROBLEMS,
    EVAL_TURNS,
    JOB,
    MODELS,
    PROBLEMS,
    TURNS,
    VARIANT,
    WHOLE,
    places,
    responses,
)

# The fixture's two iterations and control are four trainings, each of which starts processes.
pytestmark = pytest.mark.timeout(900)

STAGES = [
    "base/eval",
    "iteration-1/collect",
    "iteration-1/relabel",
    "iteration-1/train",
    "iteration-1/eval",
    "iteration-2/collect",
    "iteration-2/relabel",
    "iteration-2/train",
    "iteration-2/eval",
    *(f"{CONTROL}-{n}/{phase}" for n in (1, 2) for phase in ("collect", "relabel", "train")),
    f"{CONTROL}-2/eval",
    *(f"{VARIANT}-2/{p}" for p in ("relabel_boost", "train_boost", "relabel", "train", "eval")),
    "run/report",
]
ITERATIONS = ["iteration-1", "iteration-2", f"{CONTROL}-1", f"{CONTROL}-2"]
SETS = [f"{VARIANT}-2", f"{VARIANT}-2-relabel_boost", *ITERATIONS]
CHECKPOINTS = [
    *(f"{VARIANT}=2", f"{VARIANT}=2-train_boost"),
    *(name.replace("-", "=") for name in ITERATIONS),
]


def test_the_run_folder_has_the_promised_layout(miniature_run: Run) -> None:
    folder = miniature_run.folder
    files = ["config.yaml", "metrics.jsonl", "report.html", "state.json"]
    assert folder.names() == files
    assert {"checkpoints", "examples", "trajectories"} <= set(folder.folders())
    assert sorted(miniature_run.stages) == sorted(STAGES)
    assert (folder / "checkpoints").folders() == CHECKPOINTS
    assert (folder / "examples").folders() == SETS
    report = folder.read("report.html").decode()
    assert all(name in report for name in (*MODELS, "m1@t3", "p1@t3"))


def test_the_control_rolls_while_the_method_trains(miniature_run: Run) -> None:
    """The start of the ranks alone takes longer."""
    ended = list(miniature_run.stages)
    assert ended.index(f"{CONTROL}-1/relabel") < ended.index("iteration-1/train")


def test_what_is_planned_is_what_is_stored(miniature_run: Run) -> None:
    """The chaos job and the resumed runs are held against the plan."""
    assert stage_keys(miniature_run.config) == STAGES
    for planned in planned_episodes(miniature_run.config).values():
        stored = miniature_run.trajectories.ids(planned.place)
        assert stored == planned.ids


def test_every_episode_is_stored_once_under_its_phase(miniature_run: Run) -> None:
    expected = dict.fromkeys(MODELS.values(), EVAL_PROBLEMS)
    for track in ("iteration", CONTROL):
        expected |= {Place(track, n, "collect"): PROBLEMS for n in (1, 2)}
    assert set(places(miniature_run)) == set(expected)
    problems: dict[str, list[str]] = {"iteration": [], CONTROL: []}
    for place, count in expected.items():
        rolled = list(miniature_run.trajectories.read(place))
        assert len({t.id for t in rolled}) == len(rolled) == count
        assert {t.stop_reason for t in rolled} == {StopReason.MAX_TURNS}
        if place.phase == "collect":
            problems[place.track] += [t.problem.id for t in rolled]
    assert len(set(problems["iteration"])) == 2 * PROBLEMS  # no problem twice
    assert set(problems[CONTROL]) == set(problems["iteration"])


def test_rollouts_are_on_policy_and_the_control_samples_as_much(miniature_run: Run) -> None:
    read = miniature_run.trajectories.read
    for iteration in (1, 2):
        collect, control = (Place(t, iteration, "collect") for t in ("iteration", CONTROL))
        for place, version in (
            (collect, iteration - 1),
            (control, iteration - 1),
            (Place("iteration", iteration, "eval"), iteration),
        ):
            sampled = [r for t in read(place) for r in responses(t)]
            assert {r.weight_version for r in sampled} == {version}
        assert [len(responses(t)) for t in read(collect)] == [TURNS * (1 + CANDIDATES)] * PROBLEMS
        (answers,) = {len(responses(t)) for t in read(control)}
        stages = miniature_run.stages
        own, its = (stages[str(place)] for place in (collect, control))
        first_answer = own["first_tokens"] / own["first_responses"]
        assert (answers - 1) * first_answer < own["tokens"] / PROBLEMS <= answers * first_answer
        assert its["tokens"] == pytest.approx(own["tokens"], rel=0.2)
        rise, compared = (stages[f"{who}-{iteration}/train"] for who in ("iteration", CONTROL))
        assert compared["tokens"] == pytest.approx(rise["tokens"], abs=1024)  # one step's


def test_every_example_is_a_stored_response_in_a_stored_state(miniature_run: Run) -> None:
    for name in ("iteration-1", "iteration-2", f"{CONTROL}-2"):
        track = name[:-2]
        sources = [Place(track, n, "collect") for n in range(1, int(name[-1]) + 1)]
        stored = {t.id: t for place in sources for t in miniature_run.trajectories.read(place)}
        folder = miniature_run.folder / "examples" / name
        parts = [read_part(folder, part) for part in read_manifest(folder).parts]
        examples = [example for part in parts for example in examples_from_table(part)]
        assert len(examples) == miniature_run.stages[f"{name}/relabel"]["examples"] > 0
        for example in examples:
            origin = example.provenance
            turn = stored[origin.trajectory_id].turns[origin.turn]
            response = turn.attempt if origin.candidate < 0 else turn.candidates[origin.candidate]
            assert example.input_ids[example.spans[0].start :] == response.token_ids
            assert origin.reward == reward_of(response, 0.0)
            assert origin.weight_version == response.weight_version
        assert {e.provenance.place for e in examples} == set(sources)  # pooled
        if track == CONTROL:
            assert {e.provenance.reward for e in examples} == {1.0}


def test_a_variant_trains_twice_on_what_the_method_has_rolled(miniature_run: Run) -> None:
    record = open_run(miniature_run.folder)
    rows = [row for row in training_rows(record) if row.stage.startswith(VARIANT)]
    collected = {Place("iteration", n, "collect") for n in (1, 2)}
    assert {row.example.provenance.place for row in rows} == collected
    prompts = {t.prompt_ids for p in collected for t in miniature_run.trajectories.read(p)}
    boost = [row.example for row in rows if row.stage == f"{VARIANT}-2-relabel_boost"]
    assert {e.input_ids[: e.spans[0].start] for e in boost} <= prompts
    assert any(e.provenance.turn > 0 for e in boost)  # right at the second turn
    stage = {p: miniature_run.stages[f"{VARIANT}-2/{p}"] for p in ("relabel_boost", "train_boost")}
    assert stage["train_boost"]["tokens"] == 2 * stage["relabel_boost"]["data_tokens"]  # epochs
    records = [json.loads(x) for x in miniature_run.folder.read("metrics.jsonl").splitlines()]
    last_lr = {r["phase"]: r["lr"] for r in records if r["stage"] == f"{VARIANT}-2" and "lr" in r}
    ends = {"train_boost": 2e-4, "train": 1e-4}  # a tenth of its own, and of `train.lr`
    assert last_lr == {phase: pytest.approx(lr) for phase, lr in ends.items()}


def test_every_training_row_leads_to_its_stored_response_and_back(miniature_run: Run) -> None:
    record = open_run(miniature_run.folder)
    stored = {
        t.id: t for place in places(miniature_run) for t in miniature_run.trajectories.read(place)
    }
    rows = list(training_rows(record))
    assert {row.stage for row in rows} == set(SETS)
    came_from = defaultdict(set)
    for row in rows:
        found = trace(record, row, stored[row.example.provenance.trajectory_id])  # tokens agree
        checkpoint = Folder(locate_model(str(found["checkpoint"])))
        assert checkpoint.exists("config.json")
        assert found["text"]
        assert found["verdict"]["verifier_version"] == found["verifier_version"] != ""
        came_from[found["problem"]].add((row.stage, row.part, row.example.id))
    back = {
        problem: {(r["stage"], r["part"], r["example"]) for r in problem_lineage(record, problem)}
        for problem in came_from
    }
    assert back == came_from
    assert sum(map(len, back.values())) == len(rows)
    row = rows[-1]
    (looked_up,) = [r for r in example_lineage(record, row.example.id) if r["stage"] == row.stage]
    assert looked_up == trace(record, row, stored[row.example.provenance.trajectory_id])


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_is_a_hugging_face_folder_that_says_what_it_is(
    miniature_run: Run, name: str
) -> None:
    folder = miniature_run.folder / "checkpoints" / name
    model, start = (
        AutoModelForCausalLM.from_pretrained(path).state_dict()
        for path in (folder.path, locate_model(miniature_run.config.model.path or ""))
    )
    assert model.keys() == start.keys()
    assert not any(torch.equal(model[key], start[key]) for key in model)
    tokenizer = AutoTokenizer.from_pretrained(folder.path)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Use 5"}], tokenize=False)
    card = folder.read("README.md").decode()
    assert miniature_run.config.name in card
    assert name.replace("=", "-") in card
    reference = ParityReference.load(folder)
    again = reference_logprobs(folder.path, reference.sequences, "float32", False)
    check_parity(reference, again.logprobs, 1e-4, name, 0)


def test_metrics_hold_an_evaluation_of_every_model_in_the_promised_form(
    miniature_run: Run,
) -> None:
    lines = miniature_run.folder.read("metrics.jsonl").decode().splitlines()
    records = [json.loads(line) for line in lines]
    evaluations = {r["model"]: r for r in records if r["phase"] == "eval"}
    assert list(evaluations) == list(MODELS)
    assert sum(r["phase"] == "eval" for r in records) == len(evaluations)
    for record in evaluations.values():
        check_evaluation(record)
    stages = {(r["stage"], r["phase"]) for r in records}
    assert {tuple(stage.split("/")) for stage in STAGES} == stages
    losses = [r["loss"] for r in records if r["phase"] == "train" and "loss" in r]
    assert len(losses) >= 4
    assert all(loss > 0 for loss in losses)


def check_evaluation(record: dict[str, Any]) -> None:
    assert (record["split"], record["n"], record["samples"]) == ("test", EVAL_PROBLEMS, 1)
    assert (record["feedback"], record["window"]) == ("constant", None)
    assert record["sampling"] == {"temperature": 0.7, "top_p": 1.0, "max_tokens": 28}
    assert record["counts"] == {
        "trajectories": EVAL_PROBLEMS,
        "excluded_sequential": 0,
        "excluded_parallel": 0,
        "context_overflow": 0,
        "errors": {},
    }
    named = {"m1@t1", "m3@t1", "m1@t3", "p1@t3", "pass@3", "delta(t1,t3)", "i->c", "c->i"}
    turns = {f"acc@t{turn}" for turn in range(1, EVAL_TURNS + 1)}
    assert named | turns <= set(record["metrics"])
    assert not any(f"@t{EVAL_TURNS + 1}" in name for name in record["metrics"])
    assert f"m{EVAL_PARALLEL + 1}@t1" not in record["metrics"]
    for name, metric in record["metrics"].items():
        assert set(metric) == {"value", "low", "high"}, name
        if metric["value"] is not None:
            assert metric["low"] <= metric["value"] <= metric["high"], name


def test_a_finished_run_shows_its_results_again_and_changes_nothing(
    miniature_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = miniature_run.folder
    before = {name: folder.read(name) for name in folder.names()}
    storage = f"storage={miniature_run.config.storage}"
    assert main(["run", str(JOB), *WHOLE, storage]) == 0
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("iteration-2", CONTROL, "m1@t3", "report.html"))
    assert {name: folder.read(name) for name in folder.names()} == before


def test_another_config_does_not_touch_the_folder(
    miniature_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = f"storage={miniature_run.config.storage}"
    before = miniature_run.folder.read("state.json")
    assert main(["run", str(JOB), *WHOLE, storage, "train.lr=0.5"]) == 1
    assert "holds another run" in capsys.readouterr().err
    assert miniature_run.folder.read("state.json") == before
