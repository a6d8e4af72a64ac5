"""The quick start in miniature: the real job file, the packaged model, a few problems."""

from __future__ import annotations

from pathlib import Path

from rise_ray.mdp import Attempt, Place, Trajectory
from rise_ray.run.journal import Run

REPOSITORY = Path(__file__).parents[2]
JOB = REPOSITORY / "jobs" / "quickstart.yaml"
PROBLEMS, TURNS, CANDIDATES, ITERATIONS = 24, 2, 2, 2
EVAL_PROBLEMS, EVAL_TURNS, EVAL_PARALLEL = 8, 3, 3
CONTROL, VARIANT = "rejection_sampling", "boosted"
BASE_EVAL, COLLECT = Place("iteration", 0, "eval"), Place("iteration", 1, "collect")
MODELS = {
    "base": BASE_EVAL,
    "iteration-1": Place("iteration", 1, "eval"),
    "iteration-2": Place("iteration", 2, "eval"),
    f"{CONTROL}-2": Place(CONTROL, 2, "eval"),
    f"{VARIANT}-2": Place(VARIANT, 2, "eval"),
}
SETTINGS = [
    "name=miniature",
    f"iterations={ITERATIONS}",
    f"problems={PROBLEMS}",
    f"recipe.turns={TURNS}",
    f"recipe.candidates={CANDIDATES}",
    "recipe.rule={name: revision, wrong_weight: 1.5, tau: 0.5, centering: state}",
    "recipe.last=null",
    "controls=[{name: rejection_sampling, epochs: equal_tokens}]",
    "rollout.workers.min_workers=1",
    "rollout.workers.max_workers=1",
    "train.workers=1",  # two train in test_job and test_chaos
    "train.epochs=1",
    "train.batch_tokens=1024",
    "train.row_tokens=256",
    "train.rows_per_pass=2",
    f"evaluation.problems={EVAL_PROBLEMS}",
    "evaluation.samples=1",
    f"evaluation.turns={EVAL_TURNS}",
    f"evaluation.parallel={EVAL_PARALLEL}",
    "evaluation.bootstrap=100",
    "ray.num_cpus=4",
    "ray.object_store_mib=200",
]
# A second line of weights of the whole run alone: two trainings, on what the first has rolled.
WHOLE = [
    *SETTINGS,
    "controls=[{name: rejection_sampling, epochs: equal_tokens}, {name: variant, track: "
    f"{VARIANT}, rule: {{name: revision, tau: null}}, boost: {{epochs: 2, lr: 2.0e-3}}}}]",
]


def responses(trajectory: Trajectory) -> list[Attempt]:
    """All responses that were sampled in an episode."""
    return [r for turn in trajectory.turns for r in (turn.attempt, *turn.candidates)]


def places(run: Run) -> list[Place]:
    """Every place whose trajectories are stored."""
    folder = run.folder / "trajectories"
    return [
        Place(track, int(iteration), phase.partition("=")[2])
        for track, iteration in (stage.split("=") for stage in folder.folders())
        for phase in (folder / f"{track}={iteration}").folders()
    ]
