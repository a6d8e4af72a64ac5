"""A Ray cluster of several nodes on this machine, any of which can be killed and replaced.

Each node is a `ray start --block` of its own: real raylets, agents and workers, no container. All
of them listen on the loopback interface only.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

from rise_ray.cluster.connection import LOOPBACK, LOOPBACK_ENVIRONMENT, required_resources
from rise_ray.config.settings import RunConfig
from rise_ray.errors import ClusterError, ConfigError
from rise_ray.run.plans import teacher_workers
from rise_ray.run.tracks import stages_of
from tests.chaos.processes import descendants, kill

_START_DEADLINE_S = 120.0
_STARTS = 3  # of a node, before it is given up
_STOP_DEADLINE_S = 30.0
_REPLACE_AFTER_S = 4.0  # as long as the cloud were to give a new machine at once
_OBJECT_STORE_MIB = 100
_UP = "Ray runtime started."


@dataclass
class Node:
    """One node: the process that started it, and where it says so."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def up(self) -> bool:
        """Whether it has joined the cluster."""
        return _UP in self.log.read_text(errors="replace")

    def processes(self) -> list[psutil.Process]:
        """Its raylet and everything under it."""
        return descendants(self.process.pid)


class Nodes:
    """A head that runs no work but the driver's own, and worker nodes. A context manager.

    Args:
        config: each worker node gets what the whole run needs, so that any one is enough.
        count: of worker nodes.

    `address` is the head's, `environment` that of a process which connects to it.

    Raises:
        ConfigError: the config needs GPUs, or names a cluster of its own.
        ClusterError: on entry: a node does not start.
    """

    def __init__(self, config: RunConfig, count: int) -> None:
        needed = required_resources(config, teacher_workers(stages_of(config)))
        if needed.pop("GPU", 0):
            raise ConfigError("chaos needs a config for CPUs: its nodes would share the GPUs")
        if config.ray.address is not None:
            raise ConfigError("chaos starts a cluster of its own: leave `ray.address` null")
        cpus = math.ceil(needed.pop("CPU"))
        memory = (config.ray.object_store_mib or _OBJECT_STORE_MIB) * 2**20
        self._common = [
            "--block",
            f"--node-ip-address={LOOPBACK}",
            f"--object-store-memory={memory}",
        ]
        self._worker = [f"--num-cpus={cpus}", f"--resources={json.dumps(needed)}"]
        self._count = count
        self._started = 0
        self._head: Node | None = None
        self._workers: list[Node] = []
        self._replace_at: list[float] = []
        port, client_port, agent_port = free_ports(3)
        self.address = f"{LOOPBACK}:{port}"
        # Other users of this machine reach its services: none of them may send this cluster work.
        self.environment = _environment(self.address, secrets.token_hex(32))
        self._ports = [f"--port={port}", f"--ray-client-server-port={client_port}"]
        self._ports += [f"--dashboard-agent-listen-port={agent_port}"]

    def __enter__(self) -> Self:
        # Ray's sockets lie in here, and their paths may have 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="chaos-"))
        try:
            head = ["--head", "--num-cpus=0", "--include-dashboard=false", *self._ports]
            head.append(f"--temp-dir={self.folder / 'ray'}")
            self._head = self._up(lambda: self._start(head))
            for _ in range(self._count):
                self._up(self._add)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop every node as `ray stop` does; what that leaves is for the caller to find."""
        nodes = [*self._workers, *([self._head] if self._head else [])]
        for node in nodes:
            node.process.terminate()
        for node in nodes:
            try:
                node.process.wait(_STOP_DEADLINE_S)
            except subprocess.TimeoutExpired:
                node.process.kill()
                node.process.wait()
        self._workers, self._head = [], None

    @property
    def workers(self) -> list[Node]:
        """The worker nodes that live, oldest first."""
        return list(self._workers)

    @property
    def complete(self) -> bool:
        """Whether all worker nodes are there."""
        return len(self._workers) == self._count and all(node.up for node in self._workers)

    def kill(self, node: Node) -> None:
        """SIGKILL a worker node as a whole; a few seconds later a new one may `replace` it."""
        self._end(node)
        self._replace_at.append(time.monotonic() + _REPLACE_AFTER_S)

    def replace(self) -> list[str]:
        """Start the nodes whose time has come; their names. Does not wait until they are up."""
        now = time.monotonic()
        due = [moment for moment in self._replace_at if moment <= now]
        self._replace_at = [moment for moment in self._replace_at if moment > now]
        return [self._add().name for _ in due]

    def remove_files(self) -> None:
        """Delete the nodes' logs."""
        shutil.rmtree(self.folder)

    def _up(self, start: Callable[[], Node]) -> Node:
        """Start a node and wait for it, again where a busy machine misses Ray's own deadlines.

        A raylet gives its agent 15 s and dies (ray-project/ray#65983); a node has 30 s in all.

        Raises:
            ClusterError: it does not start, several times.
        """
        for left in reversed(range(_STARTS)):
            node = start()
            try:
                self._await(node)
                break
            except ClusterError:
                self._end(node)
                if not left:
                    raise
        return node

    def _end(self, node: Node) -> None:
        processes = node.processes()
        node.process.kill()
        kill(processes)
        node.process.wait()
        if node in self._workers:
            self._workers.remove(node)

    def _add(self) -> Node:
        agent_port = free_ports(1)[0]
        ports = [f"--address={self.address}", f"--dashboard-agent-listen-port={agent_port}"]
        node = self._start([*self._worker, *ports])
        self._workers.append(node)
        return node

    def _start(self, arguments: list[str]) -> Node:
        name = f"node-{self._started}"
        self._started += 1
        log = self.folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.start", *arguments, *self._common],
                stdout=output,
                stderr=output,
                env=self.environment,
                start_new_session=True,  # Ctrl-C is the caller's to handle
            )
        return Node(name, process, log)

    def _await(self, node: Node) -> None:
        deadline = time.monotonic() + _START_DEADLINE_S
        while not node.up:
            if node.process.poll() is not None or time.monotonic() > deadline:
                raise ClusterError(f"{node.name} does not start: {node.log.read_text()[-2000:]}")
            time.sleep(0.1)


def _environment(address: str, token: str) -> dict[str, str]:
    """Of the nodes, and of whoever connects to them."""
    return {
        **os.environ,
        "RAY_ADDRESS": address,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # they are stopped after the run
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # Who connects stays on loopback too, and does not ask at the network's address.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        **LOOPBACK_ENVIRONMENT,
    }


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody has, outside those that are given out by itself.

    So none is taken between this and the start of the service that it is for.
    """
    ports = random.sample(range(20_000, 32_000), 100)
    with ExitStack() as stack:
        bound: list[int] = []
        for port in ports:
            with contextlib.suppress(OSError):
                stack.enter_context(socket.socket()).bind((LOOPBACK, port))
                bound.append(port)
            if len(bound) == count:
                return bound
    raise ClusterError(f"no {count} free ports among {min(ports)} to {max(ports)}")
