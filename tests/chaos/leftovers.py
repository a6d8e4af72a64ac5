"""What a run leaves behind: actors, placement groups, processes, files of shared memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping

from rise_ray.errors import ClusterError
from tests.chaos.processes import descendants, still_alive, title, wait_freed

_DEADLINE_S = 30.0


def left_in_cluster(environment: Mapping[str, str]) -> list[str]:
    """Actors and placement groups that live a minute after the last driver of a cluster ended.

    Raises:
        ClusterError: the cluster cannot be asked.
    """
    asked = subprocess.run(
        [sys.executable, "-m", "tests.chaos.living"],
        env=dict(environment),
        capture_output=True,
        text=True,
    )
    if asked.returncode != 0:
        raise ClusterError(f"the cluster does not say what lives in it: {asked.stderr[-2000:]}")
    return list(json.loads(asked.stdout.splitlines()[-1]))


def left_on_machine(before: Iterable[str]) -> list[str]:
    """Processes below this one, and files of shared memory that no process uses, half a minute on.

    To be called when the cluster is down, in a process that adopts orphans.

    Args:
        before: the files of shared memory that were there before the cluster.
    """
    processes = still_alive(descendants(os.getpid()), _DEADLINE_S)
    files = wait_freed(before, _DEADLINE_S)
    return [f"process {p.pid} {title(p)}" for p in processes] + [f"file {path}" for path in files]
