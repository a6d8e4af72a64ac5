"""What lives in a Ray cluster: `python -m tests.chaos.living` prints it as one line of JSON.

A process of its own, since Ray takes the cluster's token from the environment when it is imported.
"""

from __future__ import annotations

import json
import time

import ray
from ray._private.state import actors
from ray.util import placement_group_table

_DEADLINE_S = 60.0


def main() -> None:
    """Wait until the cluster of `RAY_ADDRESS` is empty, a minute at most; print what is not."""
    ray.init(log_to_driver=False, logging_level="ERROR")
    deadline = time.monotonic() + _DEADLINE_S
    while (left := living()) and time.monotonic() < deadline:
        time.sleep(0.5)
    ray.shutdown()
    print(json.dumps(left))


def living() -> list[str]:
    """Actors and placement groups that are not dead.

    Ray's libraries keep a few detached actors of their own per cluster (statistics, autoscaling
    requests): they are no part of a run.
    """
    left = [
        f"actor {actor['ActorClassName']} ({actor['State']})"
        for actor in actors().values()
        if actor["State"] != "DEAD" and not actor["IsDetached"]
    ]
    return left + [
        f"placement group {name} ({group['state']})"
        for name, group in placement_group_table().items()
        if group["state"] != "REMOVED"
    ]


if __name__ == "__main__":
    main()
