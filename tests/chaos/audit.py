"""What a run's store holds, row by row, against what its config planned; every verdict again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rise_ray.config.settings import RunConfig
from rise_ray.mdp import Outcome, Place, Problem, StopReason, Trajectory, Verdict, trajectory_id
from rise_ray.run.journal import Run
from rise_ray.run.plans import evaluation_problems, iteration_problems
from rise_ray.run.specs import Evaluate, Roll
from rise_ray.run.tracks import stages_of
from rise_ray.store.examples import MANIFEST, read_manifest
from rise_ray.store.examples import read_part as read_example_part
from rise_ray.store.files import Folder
from rise_ray.store.trajectories import TrajectoryStore, read_part, trajectory_from_row
from rise_ray.tasks import load_task
from rise_ray.verify.checker import Checker

_CHECKED_AT_ONCE = 1024
_PATIENCE = 10  # times `verify.deadline_s`: a new check is to contradict, not to be late


@dataclass(frozen=True)
class Episodes:
    """The episodes that a stage rolls: where they are stored, and the ids that belong there."""

    place: Place
    ids: frozenset[str]

    def missing(self, store: TrajectoryStore) -> int:
        """How many are not stored."""
        return len(self.ids - store.ids(self.place))


@dataclass
class Audit:
    """Counts over a whole store."""

    episodes: int = 0
    """That the config plans."""
    lost: int = 0
    """Planned and not stored."""
    unknown: int = 0
    """Stored and not planned."""
    doubled: int = 0
    """Stored rows beyond the first of their id.

    In a phase that is not sealed yet only those that differ from the first: equal ones in two
    parts are what a kill leaves there, and sealing removes them.
    """
    doubled_examples: int = 0
    """Training examples beyond the first of their id in their data set."""
    errors: int = 0
    """Episodes that ended as `error`."""
    verdicts: int = 0
    """Stored verdicts of a check that was made and did not fail: each was checked again."""
    verdict_errors: int = 0
    """Stored verdicts that are `error`: lost, since their check failed."""
    unchecked: int = 0
    """Of `verdicts`, those whose new check failed: neither confirmed nor false."""
    false_verdicts: int = 0
    """Stored verdicts that differ from the new check."""


def planned_episodes(config: RunConfig) -> dict[str, Episodes]:
    """By stage of the journal, from the config alone (no journal, no store)."""
    task = load_task(config.task)
    trained = task.load(config.split) if config.iterations else []
    held_out = evaluation_problems(config, task.load(config.evaluation.split))
    planned = {}
    for spec in stages_of(config):
        if isinstance(spec, Roll):
            problems = iteration_problems(config, trained, spec.place.iteration)
            planned[spec.key] = _episodes(config, spec.place, problems, samples=1)
        elif isinstance(spec, Evaluate):
            samples = config.evaluation.samples
            planned[spec.key] = _episodes(config, spec.place, held_out, samples)
    return planned


def audit(run: Run, planned: dict[str, Episodes]) -> Audit:
    """Compare a run's store with its plan, and check every stored verdict with new processes."""
    config, store = run.config, run.trajectories
    sealed = {episodes.place for key, episodes in planned.items() if key in run.stages}
    found = Audit(episodes=sum(len(episodes.ids) for episodes in planned.values()))
    verify = config.verify
    deadline_s = _PATIENCE * verify.deadline_s
    checker = Checker(config.task, verify.processes, deadline_s, verify.memory_mib)
    try:
        for place in _stored_places(store):
            stored = _read(store, place, place in sealed, found)
            ids = {
                name
                for episodes in planned.values()
                if episodes.place == place
                for name in episodes.ids
            }
            found.unknown += len(set(stored) - ids)
            for trajectory in stored.values():
                found.errors += trajectory.stop_reason is StopReason.ERROR
            _check_again(checker, list(stored.values()), found)
    finally:
        checker.close()
    found.lost = sum(episodes.missing(store) for episodes in planned.values())
    found.doubled_examples = _doubled_examples(run.folder / "examples")
    return found


def _episodes(config: RunConfig, place: Place, problems: list[Problem], samples: int) -> Episodes:
    ids = [
        trajectory_id(config.name, place, problem.id, sample)
        for problem in problems
        for sample in range(samples)
    ]
    return Episodes(place, frozenset(ids))


def _stored_places(store: TrajectoryStore) -> Iterator[Place]:
    """From the folders, so that what no plan asks for is seen too."""
    for stage in store.folder.folders():
        track, _, iteration = stage.partition("=")
        for phase in (store.folder / stage).folders():
            yield Place(track, int(iteration), phase.partition("=")[2])


def _read(
    store: TrajectoryStore, place: Place, sealed: bool, found: Audit
) -> dict[str, Trajectory]:
    """Every trajectory by id, as it is first met; relabeling would read every row."""
    stored: dict[str, Trajectory] = {}
    for name in store.parts(place):
        for row in read_part(store.folder_of(place), name).to_pylist():
            trajectory = trajectory_from_row(row)
            first = stored.setdefault(trajectory.id, trajectory)
            if first is not trajectory:
                found.doubled += sealed or first != trajectory
    return stored


def _doubled_examples(data_sets: Folder) -> int:
    """One data set may repeat another's. One without a manifest is unfinished: made again."""
    doubled = 0
    for folder in (data_sets / name for name in data_sets.folders()):
        if folder.exists(MANIFEST):
            ids = [
                name
                for part in read_manifest(folder).parts
                for name in read_example_part(folder, part)["id"].to_pylist()
            ]
            doubled += len(ids) - len(set(ids))
    return doubled


def _check_again(checker: Checker, trajectories: list[Trajectory], found: Audit) -> None:
    stored: list[tuple[tuple[Problem, str], Verdict]] = []
    for trajectory in trajectories:
        for turn in trajectory.turns:
            for response in (turn.attempt, *turn.candidates):
                if response.verdict.outcome is Outcome.ERROR:
                    found.verdict_errors += 1
                elif response.verdict.outcome is not Outcome.PARTIAL:
                    stored.append(((trajectory.problem, response.text), response.verdict))
    found.verdicts += len(stored)
    for start in range(0, len(stored), _CHECKED_AT_ONCE):
        part = stored[start : start + _CHECKED_AT_ONCE]
        again = checker.check([item for item, _ in part])
        for (_, old), new in zip(part, again, strict=True):
            if new.outcome is Outcome.ERROR:
                found.unchecked += 1
            else:
                found.false_verdicts += (new.outcome, new.answer) != (old.outcome, old.answer)
