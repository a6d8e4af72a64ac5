"""A finished run folder made by hand: every kind of file that a run writes, without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rise_ray.config.loading import parse_config
from rise_ray.config.settings import RunConfig
from rise_ray.mdp import Place, Trajectory, derive_seed, trajectory_id
from rise_ray.relabel.examples import relabel as relabel_trajectories
from rise_ray.relabel.rule import RuleContext
from rise_ray.report.tracking import new_record, write_metrics
from rise_ray.run.journal import REPORT, Run
from rise_ray.run.plans import of_kind, rolling
from rise_ray.run.specs import Rows
from rise_ray.run.tracks import stages_of
from rise_ray.store.commit import Committer
from rise_ray.store.examples import write_example_parts
from rise_ray.store.files import Folder
from rise_ray.sync.parity import ParityReference
from tests.unit.relabel.builders import rolled

PROBLEMS = 5
_HEADER = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
WEIGHTS = len(_HEADER).to_bytes(8, "little") + _HEADER + bytes(8)  # a safetensors file


def config_of(storage: str, *overrides: str) -> RunConfig:
    text = (
        f"{{name: demo, storage: '{storage}', iterations: 2, task: {{name: countdown}}, "
        "model: {path: some/model}, controls: [{name: rejection_sampling}]}"
    )
    return parse_config(text, list(overrides), source="test")


def make_run(storage: str) -> Run:
    """Five problems, two iterations on pooled data, the control."""
    run = Run(config_of(storage), resume=False)
    for spec in rolling(stages_of(run.config)):
        if spec.key.endswith("/collect"):
            _iteration(run, spec.place)
        else:
            roll(run, spec.key, spec.place)
    run.folder.write(REPORT, b"<html>")
    run.stage("run/report", lambda: {"comparisons": [], "seconds": 1.0})
    records = [new_record(*key.split("/"), result) for key, result in run.stages.items()]
    write_metrics(run.folder, records)
    return run


def episodes(place: Place, problems: int = PROBLEMS) -> list[Trajectory]:
    """Two turns on each problem, with two candidates at both."""
    return [
        _placed(rolled("3 | 7 4", f"{n} | 7 7", place=place, problem=f"p{n}"))
        for n in range(problems)
    ]


def roll(run: Run, key: str, place: Place) -> None:
    """A rollout stage: store what is missing, seal, journal."""
    stored = run.trajectories.ids(place)
    with Committer(run.trajectories) as committer:
        for trajectory in episodes(place):
            if trajectory.id not in stored:
                committer.add(trajectory)
    sealed = run.trajectories.seal(place)
    run.stage(key, lambda: {"parts_sha256": sealed, "trajectories": PROBLEMS, "seconds": 1.0})


def relabel(run: Run, stage: str, trajectories: Sequence[Trajectory]) -> None:
    """A relabel stage."""
    seed = derive_seed(run.config.seed, "relabel", stage)
    (rule,) = {s.rule for s in of_kind(Rows, stages_of(run.config)) if s.place.stage == stage}
    examples = relabel_trajectories(trajectories, rule, 100, RuleContext(seed)).examples
    write_example_parts(run.folder / "examples" / stage, examples, seed)
    run.stage(f"{stage}/relabel", lambda: {"examples": len(examples), "seconds": 1.0})


def _iteration(run: Run, place: Place) -> None:
    stage = place.stage
    roll(run, str(place), place)
    pooled = [
        trajectory
        for iteration in range(1, place.iteration + 1)
        for trajectory in run.trajectories.read(replace(place, iteration=iteration))
    ]
    relabel(run, stage, pooled)
    with TemporaryDirectory() as path:
        (Path(path) / "config.json").write_text("{}")
        (Path(path) / "model.safetensors").write_bytes(WEIGHTS)
        ParityReference(((1, 2),), ((-0.5,),)).save(Folder(path))
        (run.folder / "checkpoints" / stage.replace("-", "=")).upload(Path(path))
    run.stage(f"{stage}/train", lambda: {"seconds": 1.0})


def _placed(trajectory: Trajectory) -> Trajectory:
    """Sampled by the weights of the iteration before its own."""
    version = max(0, trajectory.place.iteration - 1)
    turns = tuple(
        replace(
            turn,
            attempt=replace(turn.attempt, weight_version=version),
            candidates=tuple(replace(c, weight_version=version) for c in turn.candidates),
        )
        for turn in trajectory.turns
    )
    name = trajectory_id("demo", trajectory.place, trajectory.problem.id, 0)
    return replace(trajectory, id=name, run="demo", turns=turns)
