"""The quick start, controls included, of two commits on one machine: seconds from first to last.

    python jobs/benchmarks/run.py end_to_end

Both run once, one after the other with all cores, each as its README says and with its own
environment; the baseline is commit db45497, before this benchmark was made. `RISE_RAY_BASELINE`
names a checkout of it, or of another commit, whose `make install` is done; without it one is made
in a temporary folder, which needs git's history, a package index and some minutes. In all it takes
about an hour, so it is run by its name only.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

COMMIT = "db45497"
GOAL = 0.35
HERE = Path(__file__).parents[2]


def run() -> list[dict[str, Any]]:
    """One record."""
    with tempfile.TemporaryDirectory() as temporary:
        given = os.environ.get("RISE_RAY_BASELINE")
        baseline = Path(given) if given else _checkout(Path(temporary) / "baseline")
        before = _seconds(baseline / ".venv" / "bin" / "rise-ray", baseline)
        now = _seconds(Path(sys.executable).with_name("rise-ray"), HERE)
    return [
        {
            "name": "end_to_end",
            "ratio": round(now / before, 3),
            "seconds": round(now),
            "baseline": given or COMMIT,
            "baseline_seconds": round(before),
            "goal": f"<= {GOAL}",
            "holds": now / before <= GOAL,
        }
    ]


def _checkout(folder: Path) -> Path:
    subprocess.run(["git", "clone", "--quiet", str(HERE), str(folder)], check=True)
    subprocess.run(["git", "checkout", "--quiet", COMMIT], cwd=folder, check=True)
    subprocess.run(["make", "install"], cwd=folder, check=True, stdout=sys.stderr)
    return folder


def _seconds(rise_ray: Path, root: Path) -> float:
    with tempfile.TemporaryDirectory() as storage:
        command = [str(rise_ray), "run", "jobs/quickstart.yaml", f"storage={storage}"]
        started = time.monotonic()
        subprocess.run(command, cwd=root, check=True, stdout=sys.stderr)
        return time.monotonic() - started


if __name__ == "__main__":
    import json

    for record in run():
        print(json.dumps(record))
