"""The result of a chaos job: what must hold, and the table."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from statistics import median

from rich import box
from rich.table import Table
from rich.text import Text

from rise_ray.text import terminal_text
from tests.chaos.attack import Outcome
from tests.chaos.audit import Audit
from tests.chaos.plan import Kind


@dataclass(frozen=True)
class Result:
    """Everything that was measured.

    `requeued` are the leases of lost workers that went back to the queue, by the pool's own count.
    """

    outcome: Outcome
    audit: Audit
    requeued: int
    leftovers: list[str]

    @property
    def recoveries_s(self) -> list[float]:
        """Of the kills after which there was a sign of progress."""
        return [kill.recovered_s for kill in self.outcome.kills if kill.recovered_s is not None]

    @property
    def killed_checks(self) -> int:
        """Child processes that were killed: each takes the verdict of the one answer it was at.

        No other kill takes any: of a verifier, a node or a driver that dies nothing is stored, and
        its answers are checked again.
        """
        return sum(kill.kind is Kind.CHECK for kill in self.outcome.kills)


def broken(result: Result) -> list[str]:
    """What must hold and does not; empty where the run stood the attack."""
    outcome, audit = result.outcome, result.audit
    stuck = len(outcome.kills) - len(result.recoveries_s)
    status = "its deadline" if outcome.status is None else f"exit status {outcome.status}"
    found = {
        f"the run ended with {status}": outcome.status != 0,
        f"{len(outcome.not_done)} planned kills found nothing to kill": bool(outcome.not_done),
        f"no progress after {stuck} kills": stuck > 0,
        f"{audit.lost} episodes are lost": audit.lost > 0,
        f"{audit.unknown} stored episodes belong to no plan": audit.unknown > 0,
        f"{audit.doubled} episodes are doubled": audit.doubled > 0,
        f"{audit.doubled_examples} training examples are doubled": audit.doubled_examples > 0,
        f"{audit.errors} episodes ended as error": audit.errors > 0,
        f"{audit.false_verdicts} verdicts are false": audit.false_verdicts > 0,
        f"{audit.unchecked} verdicts could not be checked again": audit.unchecked > 0,
        f"{audit.verdict_errors} verdicts are lost, where {result.killed_checks} checking "
        "processes were killed": audit.verdict_errors > result.killed_checks,
        f"{len(result.leftovers)} things are left over": bool(result.leftovers),
    }
    return [sentence for sentence, is_broken in found.items() if is_broken]


def table(result: Result) -> Table:
    """One row for each thing that was counted."""
    outcome, audit = result.outcome, result.audit
    shown = Table("", "", box=box.SIMPLE, show_header=False, pad_edge=False)
    kinds = Counter(kill.kind.value for kill in outcome.kills)
    for kind, count in sorted(kinds.items()):
        shown.add_row(f"kills: {kind}", str(count))
    rows = {
        "episodes planned": f"{audit.episodes:,}",
        "episodes lost (must be 0)": f"{audit.lost:,}",
        "episodes doubled (must be 0)": f"{audit.doubled:,}",
        "examples doubled (must be 0)": f"{audit.doubled_examples:,}",
        "episodes ended as error (must be 0)": f"{audit.errors:,}",
        "recomputed share": _recomputed(result),
        "verdicts checked again": f"{audit.verdicts - audit.unchecked:,} of {audit.verdicts:,}",
        "verdicts lost (at most one per killed check)": (
            f"{audit.verdict_errors:,} of at most {result.killed_checks:,}"
        ),
        "false verdicts (must be 0)": f"{audit.false_verdicts:,}",
        "kill to next commit, median and worst": _recovery(result.recoveries_s),
        "leftovers (must be 0)": "\n".join([str(len(result.leftovers)), *result.leftovers]),
        "seconds": f"{outcome.seconds:.0f}",
    }
    for name, value in rows.items():
        shown.add_row(name, Text(terminal_text(value)))  # titles of processes may look like markup
    return shown


def _recomputed(result: Result) -> str:
    """A killed driver takes its book with it: what it had under way is known by its bounds."""
    least = result.requeued
    most = least + sum(kill.unfinished for kill in result.outcome.kills)
    total = result.audit.episodes
    if least == most:
        return f"{least / total:.1%} ({least:,} leases were lost)"
    return f"{least / total:.1%} to {most / total:.1%} ({least:,} leases lost with workers)"


def _recovery(seconds: list[float]) -> str:
    return f"{median(seconds):.1f} s, {max(seconds):.1f} s" if seconds else "none was seen"
