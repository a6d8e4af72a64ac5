"""The connection to Ray: the job's cluster, a given one, or an instance of this run's own."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rise_ray.cluster.machine import connection_failure
from rise_ray.config.settings import ReferenceConfig, RunConfig, TrainConfig, WorkersConfig
from rise_ray.errors import ClusterError

# What a sort task of Ray Data asks for, and cannot be told otherwise.
_TASK_CPUS = 1.0

LOOPBACK = "127.0.0.1"
LOOPBACK_ENVIRONMENT = {
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
    "VLLM_HOST_IP": LOOPBACK,
}
"""What keeps a training's and vLLM's own services on it."""

TRAINER = "training worker"

# Ray gives its processes 30 s, which a machine that is busy for a while misses.
_START_DEADLINE_S = 180
_STARTS = 3  # a raylet gives its agent 15 s, which cannot be set, and dies (ray-project/ray#65983)
_PATIENCE = {
    "RAY_gcs_server_port_wait_time_s": str(_START_DEADLINE_S),
    "RAY_agent_register_timeout_ms": str(1000 * _START_DEADLINE_S),
}

# Ray warns once there are four processes to each that it starts at a time, by default one per CPU;
# a run has some twelve, most of which only wait.
_STARTS_AT_ONCE = 4


@contextmanager
def connected(config: RunConfig, teacher: WorkersConfig | None, debug: bool) -> Iterator[None]:
    """Ray for the time of a run. An instance that this starts ends with it.

    `teacher` are the workers of its model teacher; `debug` shows what all processes log.

    Raises:
        ClusterError: there is no cluster at the address, or it has too little of a resource.
    """
    _connect(config, debug)
    try:
        if not config.ray.autoscaling:
            check_resources(config, teacher)
        yield
    finally:
        ray.shutdown()


def draining_nodes() -> set[str]:
    """Ids of nodes that are about to be taken away: a spot node's notice, or a scale-down."""
    from ray._private.state import state  # there is no public way; Ray Data and Train use this one

    return set(state.get_draining_nodes())


def this_node() -> NodeAffinitySchedulingStrategy:
    """Scheduling beside the caller, for what uses its disk or is to end with its node."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def in_job_copy(path: str) -> bool:
    """Whether a path is in the copy of a job's working directory that Ray deletes in the end."""
    return "working_dir_files" in Path(path).parts


def required_resources(config: RunConfig, teacher: WorkersConfig | None) -> dict[str, float]:
    """What a run needs at the same time at least, as Ray resources.

    Tasks of the run itself (relabeling, a parity reference) run beside the rollout workers, but for
    a reference on GPUs, which is made before there are any; trainings run beside them only where
    either is not released for the other.
    """
    rolling: dict[str, float] = defaultdict(float)
    training: dict[str, float] = defaultdict(float)
    for who, each, count in _workers(config, teacher):
        for name, amount in each.items():
            if who == TRAINER:  # trainings come one after another
                training[name] = max(training[name], amount * count)
            else:
                rolling[name] += amount * count
    rollout, train = config.rollout, config.train
    turns = rollout.release_during_training and train.release_during_rollouts
    reference = _resources(config.sync.reference)
    # A teacher's is made beside the students that have rolled before.
    tasks = reference if teacher or not reference["GPU"] else {}
    needed = {}
    for name in {*rolling, *training, *reference}:
        staying = 0.0 if turns else rolling[name]
        task = max(tasks.get(name, 0.0), _TASK_CPUS if name == "CPU" else 0.0)
        alone = reference.get(name, 0.0)
        needed[name] = max(rolling[name] + task, staying + training[name], alone)
    needed["CPU"] += config.verify.actors * config.verify.num_cpus
    return {name: round(amount, 3) for name, amount in sorted(needed.items()) if amount}


def check_resources(config: RunConfig, teacher: WorkersConfig | None) -> None:
    """Compare what a run needs with what the cluster has, in all and on one node.

    Raises:
        ClusterError: naming each resource that is too small.
    """
    has = ray.cluster_resources()
    short = [
        f"{amount:g} {name} needed, {has.get(name, 0.0):g} there"
        for name, amount in required_resources(config, teacher).items()
        if amount > has.get(name, 0.0)
    ]
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    short += [
        f"no node has the {_amounts(each)} of one {who}"
        for who, each, _ in _workers(config, teacher)
        if not any(all(node.get(n, 0.0) >= a for n, a in each.items()) for node in nodes)
    ]
    if short:
        raise ClusterError(
            f"the Ray cluster is too small for this config: {'; '.join(short)}; lower `num_cpus`, "
            "`num_gpus` or the numbers of workers, or set `ray.autoscaling: true` if nodes join "
            "on demand"
        )


def _amounts(resources: dict[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items() if amount)


def _connect(config: RunConfig, debug: bool) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not debug:
        os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")  # read when ray.data is first used
    address = config.ray.address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        _start_local(config, debug)
        return
    try:
        if address != "auto":  # Ray tries one that nothing answers at for many minutes
            url = address if "://" in address else f"ray-gcs://{address}"
            if (failure := connection_failure(url)) is not None:
                raise ConnectionError(failure)
        ray.init(address=address, log_to_driver=debug, logging_level=_level(debug))
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"no Ray cluster at `{address}` ({str(error).strip().splitlines()[0]}); start one "
            "with `ray start --head`, or set `ray.address: local`"
        ) from error


def _start_local(config: RunConfig, debug: bool) -> None:
    """A Ray of this run's own, that only this machine can reach."""
    from ray._private import ray_constants

    # What makes Ray take 127.0.0.1 as its node's address and bind every service to it; on Linux
    # it would take the address of the network instead, also where it is told 127.0.0.1.
    ray_constants.ENABLE_RAY_CLUSTER = False
    for variable, value in LOOPBACK_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    store, cpus = config.ray.object_store_mib, config.ray.num_cpus
    starts_at_once = max(_STARTS_AT_ONCE, cpus or os.cpu_count() or 1)
    start_local_ray(
        num_cpus=cpus,
        object_store_memory=store * 2**20 if store else None,
        _node_ip_address=LOOPBACK,
        _system_config={"worker_maximum_startup_concurrency": starts_at_once},
        log_to_driver=debug,
        logging_level=_level(debug),
    )


def start_local_ray(**options: Any) -> None:
    """`ray.init` of a Ray of this process's own, also on a machine that is busy for a while.

    Raises:
        ClusterError: it does not start.
    """
    for variable, value in _PATIENCE.items():
        os.environ.setdefault(variable, value)
    for starts_left in reversed(range(_STARTS)):
        before = psutil.Process().children()
        try:
            with _patient():
                ray.init(address="local", include_dashboard=False, **options)
            return
        except Exception as error:  # Ray raises a bare Exception for processes that are not up
            if starts_left and "timed out" in str(error):
                for child in set(psutil.Process().children()) - set(before):
                    child.kill()
                    child.wait()
                continue
            raise ClusterError(
                f"a local Ray instance does not start: {str(error).strip().splitlines()[0]}; is "
                "the machine overloaded, or out of memory or disk?"
            ) from error


def _level(debug: bool) -> str:
    return "INFO" if debug else "ERROR"


@contextmanager
def _patient() -> Iterator[None]:
    """Wait for the node itself as long as its raylet lives; Ray's 30 s cannot be set."""
    from ray._private import services

    get_node, deadline = services.get_node, time.monotonic() + _START_DEADLINE_S

    def wait_for_node(*arguments: Any) -> Any:
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:  # it has not registered yet
                if time.monotonic() > deadline or not _raylet_lives():
                    raise
                time.sleep(0.1)

    services.get_node = wait_for_node
    try:
        yield
    finally:
        services.get_node = get_node


def _raylet_lives() -> bool:
    children = psutil.Process().children()
    return any(c.name() == "raylet" and c.status() != psutil.STATUS_ZOMBIE for c in children)


def _workers(
    config: RunConfig, teacher: WorkersConfig | None
) -> Iterator[tuple[str, dict[str, float], int]]:
    """Every kind of worker that a run starts: what it is, the resources of one, how many."""
    pool = config.rollout.workers
    yield "rollout worker", _resources(pool), pool.min_workers
    if teacher is not None:
        yield "teacher worker", _resources(teacher), teacher.min_workers
    if config.iterations:
        yield TRAINER, _resources(config.train), config.train.workers
    if config.warm_start:
        yield TRAINER, _resources(config.warm_start.train), config.warm_start.train.workers


def _resources(one: WorkersConfig | TrainConfig | ReferenceConfig) -> dict[str, float]:
    return {"CPU": one.num_cpus, "GPU": one.num_gpus, **one.resources}
