"""`ray start` for the chaos job's nodes: `python -m tests.chaos.start --head ...`.

On Linux Ray takes the network's address for a node that is told 127.0.0.1, and binds its services
to every interface. Here 127.0.0.1 stays what it is, and all of them are on loopback.
"""

from __future__ import annotations

import sys

from ray._private import ray_constants, services
from ray.scripts.scripts import cli


def main() -> None:
    """The command line is that of `ray start`."""
    # Off for whoever connects (`tests.chaos.nodes`), but then no second node may join.
    ray_constants.ENABLE_RAY_CLUSTER = True
    services.resolve_ip_for_localhost = str
    cli(["start", *sys.argv[1:]], prog_name="ray")


if __name__ == "__main__":
    main()
