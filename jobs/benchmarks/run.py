"""Runs benchmarks, each against a named baseline in the same run: one JSON line a record.

    python jobs/benchmarks/run.py [NAME ...] [--quick] [--json FILE]
    ray job submit --working-dir . -- python jobs/benchmarks/run.py --quick

Without names all but `end_to_end` are run. Each has a process of its own, so that none finds what
another left. `--quick` takes about two minutes each. The exit status is 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NAMES = sorted(f.stem for f in HERE.glob("[!_]*.py") if f.stem != "run")


def main() -> int:
    """Run what is asked for; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="smaller: about two minutes each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the records there")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"unknown: {', '.join(sorted(unknown))} (there are {', '.join(NAMES)})")
    records: list[dict[str, Any]] = []
    for name in arguments.names or [name for name in NAMES if name != "end_to_end"]:
        records += _records(name, arguments.quick)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(records, indent=1) + "\n")
    return int(not all(record["holds"] for record in records))


def _records(name: str, quick: bool) -> list[dict[str, Any]]:
    """Those of one benchmark, shown as they come."""
    command = [sys.executable, str(HERE / f"{name}.py"), *(["--quick"] if quick else [])]
    found = []
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # of each process, on both sides
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=one_thread) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                found.append(json.loads(line))
                print(line, end="", flush=True)
    if process.returncode or not found:
        raise SystemExit(f"{name}: ended with status {process.returncode}")
    return found


if __name__ == "__main__":
    sys.exit(main())
