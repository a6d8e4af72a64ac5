"""Relabeling and packing of more and more stored responses: the time of each, and the memory.

    python jobs/benchmarks/run.py relabel [--quick]

Trajectories of 5 turns and 8 candidates (45 responses of 24 tokens, the quick start's) on local
storage, relabeled by RISE's rule into an examples folder and packed for one epoch. The baseline is
the smaller number of responses: the ratio is of seconds per response, 1 where the time is linear.
Two processes do it, as in a run: one relabels, and the driver, which only packs, reads no response.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

import pyarrow as pa
import ray
from _synthetic import problem, trajectory

from rise_ray.mdp import Place
from rise_ray.relabel.job import write_relabeled
from rise_ray.relabel.rules.improved import Improved
from rise_ray.store.examples import read_lengths, read_manifest
from rise_ray.store.files import Folder
from rise_ray.store.trajectories import PART_ROWS, TrajectoryStore, trajectories_to_table
from rise_ray.train.packing import choose_layout, plan_epochs

SIZES = (100_000, 1_000_000)
QUICK_SIZES = (10_000, 100_000)
GOAL = 1.2
TURNS, CANDIDATES, TOKENS = 5, 8, 24
RESPONSES = TURNS * (1 + CANDIDATES)
PLACE = Place("iteration", 1, "collect")


def run(quick: bool) -> list[dict[str, Any]]:
    """One record."""
    small, large = (_measure(size) for size in (QUICK_SIZES if quick else SIZES))
    ratio = large["us_per_response"] / small["us_per_response"]
    return [
        {
            "name": "relabel",
            "ratio": round(ratio, 3),
            **large,
            "baseline": f"{small['responses']:,} responses",
            **{f"baseline_{name}": value for name, value in small.items() if name != "responses"},
            "goal": f"<= {GOAL}",
            "holds": ratio <= GOAL,
        }
    ]


def _measure(responses: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        stored = _store(Folder(folder), responses)
        found = {work: _in_a_process(work, folder) for work in ("relabel", "pack")}
    seconds = sum(of["seconds"] for of in found.values())
    return {
        "responses": stored,
        "us_per_response": round(1e6 * seconds / stored, 1),
        "relabel_seconds": found["relabel"]["seconds"],
        "relabel_mbytes": found["relabel"]["mbytes"],
        "pack_seconds": found["pack"]["seconds"],
        "driver_mbytes": found["pack"]["mbytes"],
        "examples": found["pack"]["examples"],
    }


def _store(folder: Folder, responses: int) -> int:
    """Whole parts of trajectories that differ in their problems; the number of responses."""
    rng = random.Random(0)
    sizes: dict[str, Any] = {"turns": TURNS, "candidates": CANDIDATES, "tokens": TOKENS, "rng": rng}
    one = [trajectory(problem(n), PLACE, **sizes) for n in range(PART_ROWS)]
    table, store = trajectories_to_table(one), TrajectoryStore(folder / "trajectories")
    parts = max(1, responses // (PART_ROWS * RESPONSES))
    for part in range(parts):
        ids = pa.array([f"{name}/{part}" for name in table["id"].to_pylist()])
        names = pa.array([f"{name}-{part}" for name in table["problem_id"].to_pylist()])
        prompts = [[part, row, *range(58)] for row in range(PART_ROWS)]  # no example comes twice
        problems = table["problem"].combine_chunks()
        fields = {field.name: problems.field(field.name) for field in problems.type} | {"id": names}
        renamed = {
            "id": ids,
            "problem_id": names,
            "prompt_ids": pa.array(prompts, pa.list_(pa.int32())),
            "problem": pa.StructArray.from_arrays(fields.values(), fields=list(problems.type)),
        }
        columns = [renamed.get(name, table[name]) for name in table.column_names]
        store.write_table(PLACE, pa.table(columns, schema=table.schema))
    return parts * PART_ROWS * RESPONSES


def _in_a_process(work: str, folder: str) -> dict[str, Any]:
    command = [sys.executable, __file__, work, folder]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(said.splitlines()[-1]))


def _relabel(folder: Folder) -> dict[str, Any]:
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    store = TrajectoryStore(folder / "trajectories")
    sealed = {PLACE: store.seal(PLACE)}
    started = time.perf_counter()
    write_relabeled(store, sealed, Improved(), 2048, 0, folder / "examples")
    return {"seconds": round(time.perf_counter() - started, 2)}


def _pack(folder: Folder) -> dict[str, Any]:
    started = time.perf_counter()
    manifest = read_manifest(folder / "examples")
    lengths = read_lengths(folder / "examples", manifest)
    layout = choose_layout(
        lengths, batch_tokens=32_768, row_tokens=2048, workers=1, shared_prefixes=True
    )
    plan_epochs(lengths, layout, epochs=1, seed=0)
    seconds = time.perf_counter() - started
    return {"seconds": round(seconds, 2), "examples": manifest.examples}


if __name__ == "__main__":
    if sys.argv[1:2] in (["relabel"], ["pack"]):
        measured = (_relabel if sys.argv[1] == "relabel" else _pack)(Folder(sys.argv[2]))
        measured["mbytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps(measured))
    else:
        for record in run(quick="--quick" in sys.argv):
            print(json.dumps(record))
