"""The chaos job's audit sees what is lost, doubled, unplanned, failed or wrongly judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rise_ray.config.loading import parse_config
from rise_ray.config.settings import RunConfig, TaskConfig
from rise_ray.mdp import (
    Attempt,
    Example,
    FinishReason,
    Outcome,
    Place,
    Problem,
    Provenance,
    Span,
    StopReason,
    Trajectory,
    Turn,
    Verdict,
    trajectory_id,
)
from rise_ray.run.journal import Run
from rise_ray.run.plans import evaluation_problems
from rise_ray.store.examples import examples_to_table, write_manifest, write_part
from rise_ray.tasks import load_task
from rise_ray.verify.checker import Checker
from tests.chaos.audit import Audit, Episodes, audit, planned_episodes

WHERE = Place("iteration", 0, "eval")
PROVENANCE = Provenance("candidate", "all", "t", "p", WHERE, 0, 0, 1.0, 0, 0, "")
EXAMPLES = [Example(f"e{n}", (1, 2, 3), (Span(1, 3, 1.0),), PROVENANCE) for n in range(2)]
Write = Callable[..., None]


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    test = load_task(TaskConfig(name="countdown")).load("test")
    return evaluation_problems(config(Path("unused")), test)


@pytest.fixture(scope="module")
def judged(problems: list[Problem]) -> list[Trajectory]:
    """One right answer and one unreadable one on each problem, as the verifier judges them."""
    task = load_task(TaskConfig(name="countdown"))
    checker = Checker(TaskConfig(name="countdown"), processes=1, deadline_s=60.0, memory_mib=1024)
    try:
        return [
            trajectory(
                problem,
                *(
                    attempt(text, *checker.check([(problem, text)]))
                    for text in (task.reference_response(problem), "no idea")
                ),
            )
            for problem in problems
        ]
    finally:
        checker.close()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(config(tmp_path), resume=False)


def config(tmp_path: Path, *overrides: str) -> RunConfig:
    text = (
        f"{{name: demo, storage: {tmp_path}, task: {{name: countdown}}, model: {{path: m}}, "
        "iterations: 0, evaluation: {problems: 4}}"
    )
    return parse_config(text, list(overrides), source="test")


def attempt(text: str, verdict: Verdict) -> Attempt:
    return Attempt(text, (1, 2), FinishReason.STOP, verdict, 0, 0)


def trajectory(problem: Problem, *attempts: Attempt) -> Trajectory:
    return Trajectory(
        id=trajectory_id("demo", WHERE, problem.id, 0),
        run="demo",
        place=WHERE,
        problem=problem,
        sample=0,
        prompt_ids=(0,),
        turns=(Turn(attempts[0], attempts[1:]),),
        stop_reason=StopReason.MAX_TURNS,
        window=None,
    )


def audited(run: Run) -> Audit:
    return audit(run, planned_episodes(run.config))


def finish(run: Run) -> None:
    """Journal the stage whose episodes are here."""
    run.stage("base/eval", lambda: {"parts_sha256": run.trajectories.seal(WHERE)})


def write_examples(run: Run, name: str, examples: list[Example], whole: bool = True) -> None:
    """A data set in parts of one row each; with its manifest if it is whole."""
    folder = run.folder / "examples" / name
    tables = [examples_to_table([example]) for example in examples]
    parts = [write_part(folder, index, table) for index, table in enumerate(tables)]
    if whole:
        write_manifest(folder, parts, 1.0)


def test_a_whole_store_has_nothing_lost_doubled_or_false(
    run: Run, judged: list[Trajectory]
) -> None:
    run.trajectories.write(WHERE, judged[:2])
    run.trajectories.write(WHERE, judged[1:])  # as a kill may leave it: one episode twice
    finish(run)
    write_examples(run, "iteration-1", EXAMPLES)
    write_examples(run, "iteration-2", EXAMPLES)  # as with `data: pooled`
    assert audited(run) == Audit(episodes=4, verdicts=8)


def test_a_missing_episode_is_lost(run: Run, judged: list[Trajectory]) -> None:
    run.trajectories.write(WHERE, judged[1:])
    assert audited(run).lost == 1


def test_an_empty_store_has_lost_everything(run: Run) -> None:
    assert audited(run) == Audit(episodes=4, lost=4)


def test_an_id_with_two_contents_is_doubled(run: Run, judged: list[Trajectory]) -> None:
    run.trajectories.write(WHERE, judged)
    other = replace(judged[0], prompt_ids=(9,))
    run.trajectories.write(WHERE, [other])
    assert audited(run).doubled == 1


def test_a_second_row_in_a_sealed_phase_is_doubled_though_it_is_equal(
    run: Run, judged: list[Trajectory]
) -> None:
    run.trajectories.write(WHERE, judged)
    finish(run)
    for again in (judged[:2], judged[1:2]):
        run.trajectories.write(WHERE, again)
    assert audited(run).doubled == 3


def test_before_its_phase_is_sealed_an_equal_second_row_is_none(
    run: Run, judged: list[Trajectory]
) -> None:
    run.trajectories.write(WHERE, judged)
    run.trajectories.write(WHERE, judged[:2])
    assert audited(run).doubled == 0


def test_an_example_that_is_trained_on_twice_is_doubled(run: Run, judged: list[Trajectory]) -> None:
    run.trajectories.write(WHERE, judged)
    write_examples(run, "iteration-1", [*EXAMPLES, EXAMPLES[0]], whole=False)
    assert audited(run).doubled_examples == 0  # it is made again before anything trains on it
    write_examples(run, "iteration-1", [*EXAMPLES, EXAMPLES[0]])
    assert (audited(run).doubled_examples, audited(run).doubled) == (1, 0)


def test_an_episode_that_no_plan_asked_for_is_unknown(run: Run, judged: list[Trajectory]) -> None:
    run.trajectories.write(WHERE, judged)
    run.trajectories.write(Place("iteration", 3, "collect"), [judged[0]])
    assert audited(run).unknown == 1


def test_a_verdict_that_a_new_check_contradicts_is_false(
    run: Run, judged: list[Trajectory]
) -> None:
    said = judged[0].turns[0].attempt
    lie = replace(said, verdict=replace(said.verdict, outcome=Outcome.INCORRECT))
    forged = replace(judged[0], turns=(Turn(lie),))
    run.trajectories.write(WHERE, [forged, *judged[1:]])
    assert (audited(run).false_verdicts, audited(run).lost) == (1, 0)


def test_what_failed_is_counted_and_never_called_false(run: Run, judged: list[Trajectory]) -> None:
    error = Verdict(Outcome.ERROR, None, "the checking process died")
    unchecked = replace(judged[0], turns=(Turn(attempt("7", error)),))
    failed = replace(judged[1], turns=(), stop_reason=StopReason.ERROR, error="lost")
    run.trajectories.write(WHERE, [unchecked, failed, *judged[2:]])
    found = audited(run)
    assert (found.errors, found.verdict_errors, found.false_verdicts) == (1, 1, 0)
    assert found.lost == 0


def test_what_was_no_answer_is_not_checked_again(run: Run, judged: list[Trajectory]) -> None:
    step = attempt("6 + 5 = 11 ,", Verdict(Outcome.PARTIAL, None, "was not to be checked"))
    run.trajectories.write(WHERE, [replace(judged[0], turns=(Turn(step),)), *judged[1:]])
    found = audited(run)
    assert (found.verdicts, found.verdict_errors, found.unchecked) == (6, 0, 0)


def test_a_new_check_that_fails_calls_nothing_false(run: Run, judged: list[Trajectory]) -> None:
    without_numbers = replace(judged[0].problem, data={})
    stored = [replace(judged[0], problem=without_numbers), *judged[1:]]
    run.trajectories.write(WHERE, stored)
    assert audited(run) == Audit(episodes=4, verdicts=8, unchecked=2)


def test_the_plan_has_every_episode_of_every_stage_that_rolls(tmp_path: Path) -> None:
    overrides = [
        "iterations=2",
        "problems=3",
        "controls=[{name: rejection_sampling}]",
        "evaluation.samples=2",
    ]
    planned = planned_episodes(config(tmp_path, *overrides))
    assert {key: len(episodes.ids) for key, episodes in planned.items()} == {
        **{f"iteration-{n}/collect": 3 for n in (1, 2)},
        **{f"rejection_sampling-{n}/collect": 3 for n in (1, 2)},
        **{
            f"{model}/eval": 8
            for model in ("base", "iteration-1", "iteration-2", "rejection_sampling-2")
        },
    }


def test_missing_counts_what_a_stage_still_has_to_roll(run: Run, judged: list[Trajectory]) -> None:
    episodes = Episodes(WHERE, frozenset(one.id for one in judged))
    run.trajectories.write(WHERE, judged[:3])
    assert episodes.missing(run.trajectories) == 1
