"""The attack: a real run, the planned kills, and the run again until it has finished."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from rise_ray.config.settings import RunConfig
from rise_ray.run.journal import run_folder
from rise_ray.run.order import needs
from rise_ray.run.tracks import stages_of
from rise_ray.store.trajectories import TrajectoryStore
from tests.chaos.audit import Episodes
from tests.chaos.nodes import Nodes
from tests.chaos.plan import Kind, PlannedKill
from tests.chaos.processes import kill, lives
from tests.chaos.victims import Victim, take_census, victims
from tests.chaos.watch import Watch

_LOOK_EVERY_S = 0.25


@dataclass
class Kill:
    """One kill that was done. Times are seconds since the attack began."""

    kind: Kind
    label: str
    stage: str
    at_s: float
    recovered_s: float | None = None
    """Seconds from the kill to the next sign of progress (`Watch`); None: there was none.

    How long nothing was committed, not how long the victim's own work took to come back: others go
    on, and except for the driver's, a commit may have been under way at the kill.
    """
    unfinished: int = 0
    """Of a driver: the episodes of its stage that were not stored."""


@dataclass
class Outcome:
    """What came of an attack."""

    kills: list[Kill] = field(default_factory=list)
    not_done: list[PlannedKill] = field(default_factory=list)
    """Kills that found no victim before the run ended."""
    status: int | None = None
    """The last driver's exit status; None: the deadline ended it."""
    seconds: float = 0.0


class Attack:
    """One run under planned kills.

    Args:
        command: the arguments of `rise-ray`; with `--resume`, since every driver gets the same.
        config: what they resolve to.
        planned: its episodes, by stage.
        kills: from `plan_kills`.
        nodes: the cluster, running.
        log: file that the drivers' output is appended to.
        deadline_s: of the whole attack.
        say: told what happens, as it happens.
    """

    def __init__(
        self,
        command: Sequence[str],
        config: RunConfig,
        planned: Mapping[str, Episodes],
        kills: Sequence[PlannedKill],
        nodes: Nodes,
        log: Path,
        deadline_s: float,
        say: Callable[[str], None],
    ) -> None:
        self._command = [sys.executable, "-m", "rise_ray.cli.main", *command]
        self._specs = stages_of(config)
        self._stages = [spec.key for spec in self._specs]
        folder = run_folder(config)
        self._watch = Watch(Path(folder.path), self._stages)
        self._store = TrajectoryStore(folder / "trajectories")
        self._planned = planned
        self._pending = list(kills)
        self._ripe_at: dict[PlannedKill, float] = {}
        self._nodes = nodes
        self._log = log
        self._deadline_s = deadline_s
        self._say = say
        self._outcome = Outcome()
        self._started = time.monotonic()

    def run(self) -> Outcome:
        """Start the run, kill as planned, wait for its end. A driver that fails ends the attack."""
        self._driver = self._start_driver()
        try:
            while self._driver.poll() is None and self._now() < self._deadline_s:
                self._note_progress()
                for name in self._nodes.replace():
                    self._say(f"{name} joins")
                self._kill_what_is_due()
                time.sleep(_LOOK_EVERY_S)
        finally:
            self._outcome.status = self._driver.poll()
            self._driver.kill()
            self._driver.wait()
        self._note_progress()
        self._outcome.not_done = self._pending
        self._outcome.seconds = self._now()
        return self._outcome

    def _start_driver(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as output:
            return subprocess.Popen(
                self._command,
                stdout=output,
                stderr=output,
                env=self._nodes.environment,
                start_new_session=True,  # Ctrl-C is for the attack, which then ends the run
            )

    def _now(self) -> float:
        return time.monotonic() - self._started

    def _note_progress(self, besides: Kill | None = None) -> None:
        signs = self._watch.look()
        for done in self._outcome.kills if signs else ():
            if done.recovered_s is None and done is not besides:
                done.recovered_s = self._now() - done.at_s
                self._say(f"  {done.recovered_s:.1f} s after the {done.kind} kill: {signs[0][:40]}")

    def _unfinished(self) -> int:
        """Of the stages that may be under way, also because they are rolled ahead."""
        done = set(self._watch.done)
        rolling = [
            spec.key
            for spec in self._specs
            if spec.key in self._planned.keys() - done and needs(spec, self._specs) <= done
        ]
        return sum(self._planned[stage].missing(self._store) for stage in rolling)

    def _kill_what_is_due(self) -> None:
        """Do the first kill whose stage has come, whose victim is busy and whose delay is over."""
        reached = self._stages.index(self._watch.stage)
        due = [kill for kill in self._pending if self._stages.index(kill.stage) <= reached]
        if not due:
            return
        census = take_census(self._nodes, psutil.Process(self._driver.pid))
        for planned in due:
            found = victims(planned.kind, census)
            if not found:
                continue
            ripe_at = self._ripe_at.setdefault(planned, self._now() + planned.delay_s)
            victim = found[int(planned.choice * len(found))]
            if self._now() >= ripe_at and lives(victim.process):
                self._pending.remove(planned)
                self._kill(planned, victim)
                return

    def _kill(self, planned: PlannedKill, victim: Victim) -> None:
        done = Kill(planned.kind, victim.label, self._watch.stage, self._now())
        self._outcome.kills.append(done)
        number = len(self._outcome.kills)
        self._say(f"kill {number}: {done.kind}: {done.label}, in {done.stage}")
        if victim.node is not None:
            self._nodes.kill(victim.node)
        elif planned.kind is Kind.DRIVER:
            self._driver.kill()
            self._driver.wait()
            self._note_progress(besides=done)  # what it wrote until it died is no recovery
            done.unfinished = self._unfinished()
            self._driver = self._start_driver()
        else:
            kill([victim.process])
