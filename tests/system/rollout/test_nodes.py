"""Nodes that are taken away while their workers generate, with a notice and without one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import ray
from ray._common.utils import reset_ray_address
from ray._raylet import GcsClient
from ray.core.generated import autoscaler_pb2

from rise_ray.mdp import StopReason
from rise_ray.rollout.pool import RolloutPool
from tests.chaos.processes import kill
from tests.system.conftest import MakePool
from tests.system.processes import LOOK_S, beside, descendants, named, wait_gone
from tests.system.rollout.conftest import make_specs
from tests.system.rollout.test_pool import LONG, ids, sampled

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

START = ["start", "--block", "--num-cpus=1", "--object-store-memory=100000000"]
STARTS = 3  # Ray gives a node 30 s, which a busy machine misses


@dataclass(frozen=True)
class SpotNode:
    """A node of the tests' cluster with room for one worker."""

    id: str
    pid: int

    def generates(self) -> bool:
        return bool(named("ray::RolloutWorker.exchange", self.pid))

    def notice(self) -> None:
        """What a cloud's notice becomes: no new work, and the node goes in a minute."""
        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        gcs = GcsClient(address=ray.get_runtime_context().gcs_address)
        deadline_ms = int((time.time() + 60) * 1000)
        accepted, why = gcs.drain_node(self.id, reason, "spot", deadline_ms)
        assert accepted, why

    def kill(self) -> None:
        processes = [psutil.Process(self.pid), *descendants(self.pid)]
        kill(processes)
        assert wait_gone(processes[1:]) == []


@contextmanager
def spot_node() -> Iterator[SpotNode]:
    before = {node["NodeID"] for node in ray.nodes()}
    command = str(Path(sys.executable).with_name("ray"))
    address = f"--address={ray.get_runtime_context().gcs_address}"
    resources = f"--resources={json.dumps({'spot': 1})}"
    # Nothing to drain where it is stopped: what had to happen on it has happened.
    environment = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
    starts: list[subprocess.Popen[bytes]] = []
    try:
        deadline = time.monotonic() + 240
        while not (new := {n["NodeID"] for n in ray.nodes() if n["Alive"]} - before):
            if not starts or starts[-1].poll() is not None:
                assert len(starts) < STARTS, "the node did not start"
                starts.append(
                    subprocess.Popen(
                        [command, *START, address, resources],
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                        env=os.environ | environment,
                    )
                )
            assert time.monotonic() < deadline, "the node did not join"
            time.sleep(0.1)
        yield SpotNode(new.pop(), starts[-1].pid)
    finally:
        for process in starts:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        # `ray start` leaves the cluster's address to whatever starts on this machine next.
        reset_ray_address()


def roll_through(pool: RolloutPool, node: SpotNode, event: str) -> None:
    """Roll; in the middle of generation the event comes over the node. Nothing is lost by it."""
    specs = make_specs(24, **LONG)

    def strike(over: threading.Event) -> None:
        while not over.wait(LOOK_S):
            if node.generates():
                getattr(node, event)()
                return

    with beside(strike):
        rolled = list(pool.roll(specs))
    assert {t.stop_reason for t in rolled} == {StopReason.MAX_TURNS}
    assert sampled(rolled).keys() == ids(specs)


def test_a_node_that_goes_costs_no_episode_and_one_with_a_notice_no_worker(
    make_pool: MakePool,
) -> None:
    pool = make_pool("spot", resources={"spot": 1.0}, episodes_in_flight=4)
    with ExitStack() as nodes:
        first = nodes.enter_context(spot_node())
        pool.wait_ready()
        second = nodes.enter_context(spot_node())
        roll_through(pool, first, "kill")
        assert (pool.lost_workers, pool.requeued) == (1, 4)

        third = nodes.enter_context(spot_node())
        roll_through(pool, second, "notice")
        assert pool.lost_workers == 1
        assert not second.generates()
        assert [member.node for member in pool._members.values()] == [third.id]
        pool.release()
