"""R-Tuning in miniature by real parts, killed while it rolls its second phase, and resumed."""

from __future__ import annotations

import json
import math
import subprocess

import pytest

from rise_ray.config.loading import load_config
from rise_ray.evaluate.confidence import SURE
from rise_ray.mdp import Example, Message, Outcome, Place, Trajectory
from rise_ray.models.locate import locate_tokenizer
from rise_ray.relabel.rule import response_at
from rise_ray.rollout.chat import load_chat
from rise_ray.run.journal import Run
from rise_ray.run.lineage import open_run, training_rows
from tests.chaos.audit import audit, planned_episodes
from tests.chaos.plan import stage_keys
from tests.system.driver import (
    COMMAND,
    environment,
    journal,
    parts_of,
    started,
    stored_ids,
    wait_for,
)
from tests.system.miniature import BASE_EVAL, JOB, SETTINGS, responses

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROBLEMS, SAMPLES = 12, 3
RECIPE = [
    f"recipe={{name: r_tuning, samples: {SAMPLES}}}",
    "controls=[{name: r_tuning, track: paper, labels_on: reference, of: iteration}]",
    "iterations=1",
    f"problems={PROBLEMS}",
    "evaluation.question={text: Please check ., right: correct, wrong: again}",
]
LASTING = ["rollout.workers.episodes_in_flight=1"]  # one episode at a time, so that rolling lasts
REFERENCE, ANSWERS = (Place("iteration", 1, phase) for phase in ("reference", "answers"))
MODELS = {
    "base": BASE_EVAL,
    "iteration-1": Place("iteration", 1, "eval"),
    "paper-1": Place("paper", 1, "eval"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    storage = tmp_path_factory.mktemp("runs")
    command = [*COMMAND, *RECIPE, *LASTING, f"storage={storage}"]
    folder, log = storage / "miniature", storage / "run.log"
    with started(command, log) as driver:
        wait_for(driver, log, lambda pid: bool(parts_of(folder, ANSWERS)))
    assert str(REFERENCE) in journal(folder)
    assert 0 < len(stored_ids(folder, ANSWERS)) < PROBLEMS
    subprocess.run([*command, "--resume"], check=True, capture_output=True, env=environment())
    return Run(load_config(JOB, [*SETTINGS, *RECIPE, f"storage={storage}"]), resume=False)


def read(run: Run, place: Place) -> list[Trajectory]:
    return list(run.trajectories.read(place))


def test_it_is_whole_after_a_kill(run: Run) -> None:
    assert sorted(run.stages) == sorted(stage_keys(run.config))
    found = audit(run, planned_episodes(run.config))
    assert (found.lost, found.unknown, found.doubled, found.doubled_examples) == (0, 0, 0, 0)
    taught = [t for t in read(run, REFERENCE) for t in t.turns[0].candidates]
    assert {(c.role, c.verdict.outcome) for c in taught} == {("teacher", Outcome.CORRECT)}
    assert {len(responses(t)) for t in read(run, ANSWERS)} == {SAMPLES}


def test_every_label_is_what_the_verifier_found(run: Run) -> None:
    """Of the model's own answers, and of its attempt beside a reference answer."""
    chat = load_chat(locate_tokenizer("package:countdown-base"), run.config.model, "base")
    right, wrong = chat.label_ids(("correct", "again"))
    stored = {t.id: t for place in (REFERENCE, ANSWERS) for t in read(run, place)}
    record = open_run(run.folder)
    rows = list(training_rows(record))
    assert {row.stage for row in rows} == {"iteration-1", "paper-1"}

    def label_of(example: Example) -> bool | None:
        """What it says last, None where nothing was asked."""
        return {right: True, wrong: False}.get(example.input_ids[-1])

    asked = 0
    for row in rows:
        origin = row.example.provenance
        trajectory = stored[origin.trajectory_id]
        response = response_at(trajectory, origin.turn, origin.candidate)
        reference = response.role == "teacher"
        assert origin.rule == "certainty"
        if row.stage == "iteration-1" and reference:
            assert label_of(row.example) is None
            continue
        judged = trajectory.turns[0].attempt if reference else response
        assert label_of(row.example) is (judged.verdict.outcome is Outcome.CORRECT)
        prompt = [Message("user", trajectory.problem.question)]
        question = chat.feedback_ids(prompt, "Please check .", response.token_ids)
        assert row.example.input_ids[-1 - len(question) : -1] == question
        asked += 1
    assert asked == PROBLEMS * (1 + SAMPLES + 1)


def test_every_model_says_of_every_answer_how_sure_it_is(run: Run) -> None:
    for place in MODELS.values():
        said = [r.scores[SURE] for t in read(run, place) for r in responses(t)]
        assert said
        assert all(0 < math.exp(score) < 1 for score in said)
    records = [json.loads(line) for line in run.folder.read("metrics.jsonl").splitlines()]
    evaluations = {r["model"]: r["metrics"] for r in records if r["phase"] == "eval"}
    assert set(evaluations) == set(MODELS)
    wanted = {"ap(sure)", "ap(likelihood)", "ap(claim)", "ece", "answered", "best3@t1(sure)"}
    assert all(wanted <= set(metrics) for metrics in evaluations.values())
    page = run.folder.read("report.html").decode()
    assert "How sure it is" in page
    compared = run.stages["run/report"]["comparisons"]
    assert compared[0]["left"]["metric"] == "ap(sure)"
