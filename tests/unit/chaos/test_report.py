"""The chaos job's result: every must that is broken is named, and nothing else is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import rich.console

from tests.chaos.attack import Kill, Outcome
from tests.chaos.audit import Audit
from tests.chaos.plan import Kind, PlannedKill
from tests.chaos.report import Result, broken, table

KILLS = [
    Kill(Kind.WORKER, "1 ray::RolloutWorker", "base/eval", 1.0, recovered_s=4.0),
    Kill(Kind.NODE, "node-1", "base/eval", 2.0, recovered_s=30.0),
    Kill(Kind.DRIVER, "driver 7", "iteration-1/collect", 50.0, recovered_s=20.0, unfinished=5),
]
FINE = Result(Outcome(KILLS, [], 0, 90.0), Audit(episodes=100, verdicts=900), 3, [])
CHECK = Kill(Kind.CHECK, "3 rise_ray.verify.child", "base/eval", 3.0, recovered_s=1.0)
LOST_KILL = PlannedKill(Kind.TRAINER, "iteration-1/train", 1.0, 0.5)
STUCK = replace(KILLS[0], recovered_s=None)


def text(result: Result) -> str:
    console = rich.console.Console(width=100)
    with console.capture() as shown:
        console.print(table(result))
    return shown.get()


def test_a_run_that_stood_the_attack_breaks_nothing() -> None:
    assert broken(FINE) == []


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        (replace(FINE, audit=Audit(lost=2)), "2 episodes are lost"),
        (replace(FINE, audit=Audit(unknown=2)), "2 stored episodes belong to no plan"),
        (replace(FINE, audit=Audit(doubled=1)), "1 episodes are doubled"),
        (replace(FINE, audit=Audit(doubled_examples=1)), "1 training examples are doubled"),
        (replace(FINE, audit=Audit(errors=3)), "3 episodes ended as error"),
        (replace(FINE, audit=Audit(false_verdicts=4)), "4 verdicts are false"),
        (replace(FINE, audit=Audit(unchecked=1)), "1 verdicts could not be checked again"),
        (
            replace(FINE, audit=Audit(verdict_errors=1)),
            "1 verdicts are lost, where 0 checking processes were killed",
        ),
        (
            replace(FINE, outcome=Outcome([*KILLS, CHECK], [], 0), audit=Audit(verdict_errors=2)),
            "2 verdicts are lost, where 1 checking processes were killed",
        ),
        (replace(FINE, leftovers=["process 3 x"]), "1 things are left over"),
        (replace(FINE, outcome=Outcome(KILLS, [], 1)), "the run ended with exit status 1"),
        (replace(FINE, outcome=Outcome(KILLS, [], None)), "the run ended with its deadline"),
        (
            replace(FINE, outcome=Outcome(KILLS, [LOST_KILL], 0)),
            "1 planned kills found nothing to kill",
        ),
        (replace(FINE, outcome=Outcome([STUCK], [], 0)), "no progress after 1 kills"),
    ],
)
def test_each_broken_promise_is_named(result: Result, sentence: str) -> None:
    assert broken(result) == [sentence]


def test_a_killed_check_may_cost_the_verdict_of_the_answer_it_was_at() -> None:
    audit = Audit(episodes=100, verdicts=900, verdict_errors=2)
    failed = replace(FINE, outcome=Outcome([*KILLS, CHECK, CHECK], [], 0), audit=audit)
    assert broken(failed) == []
    shown = text(failed)
    assert "verdicts lost (at most one per killed check)" in shown
    assert "2 of at most 2" in shown


def test_what_must_be_zero_says_so() -> None:
    shown = text(FINE)
    for name in ("episodes lost", "examples doubled", "episodes ended as error", "leftovers"):
        assert f"{name} (must be 0)" in shown


def test_what_is_left_over_is_shown_as_it_is_called_and_steers_no_terminal() -> None:
    shown = text(replace(FINE, leftovers=["process 3 foo[/bar] [bold] \x1b[31m"]))
    assert "process 3 foo[/bar] [bold] \\x1b[31m" in shown


def test_the_table_shows_what_was_measured() -> None:
    shown = text(FINE)
    for kind in ("worker", "node", "driver"):
        assert f"kills: {kind}" in shown
    assert "kill to next commit, median and worst" in shown
    assert "20.0 s, 30.0 s" in shown
    assert "3.0% to 8.0%" in shown  # leases lost, and what a killed driver may have had open
