"""The connection to Ray: the job's cluster, a given one, or an instance of this run's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from rise_ray.config import ModelTeacher, RunConfig, TrainConfig
from rise_ray.errors import ClusterError

_DATA_CPUS = 0.25  # what a Ray Data task asks for; without it the data pipeline would not start


@contextmanager
def connected(config: RunConfig, debug: bool) -> Iterator[None]:
    """Ray for the time of a run. An instance that this starts ends with it.

    Raises:
        ClusterError: there is no cluster at the address, or it has too little of a resource.
    """
    _connect(config, debug)
    try:
        if not config.ray.autoscaling:
            check_resources(config)
        yield
    finally:
        ray.shutdown()


def required_resources(config: RunConfig) -> dict[str, float]:
    """What a run needs at the same time at least, as Ray resources."""
    rollout, train = config.rollout.workers, _train_resources(config)
    pools = [rollout]
    if isinstance(config.teacher, ModelTeacher):
        pools.append(config.teacher.workers)
    workers: dict[str, float] = {}
    for pool in pools:
        each = {"CPU": pool.num_cpus, "GPU": pool.num_gpus, **pool.resources}
        for name, amount in each.items():
            workers[name] = workers.get(name, 0.0) + amount * pool.min_workers
    needed: dict[str, float] = {}
    for name in {*workers, *train}:
        together = (workers.get(name, 0.0), train.get(name, 0.0))
        at_once = max(together) if config.rollout.release_during_training else sum(together)
        needed[name] = at_once
    needed["CPU"] += config.verify.actors * config.verify.num_cpus + _DATA_CPUS
    return {name: round(amount, 3) for name, amount in sorted(needed.items()) if amount}


def check_resources(config: RunConfig) -> None:
    """Compare what a run needs with what the cluster has.

    Raises:
        ClusterError: naming each resource that is too small.
    """
    has = ray.cluster_resources()
    short = [
        f"{amount:g} {name} needed, {has.get(name, 0.0):g} there"
        for name, amount in required_resources(config).items()
        if amount > has.get(name, 0.0)
    ]
    if short:
        raise ClusterError(
            f"the Ray cluster is too small for this config: {'; '.join(short)}; lower `num_cpus`, "
            "`num_gpus` or the numbers of workers, or set `ray.autoscaling: true` if nodes join "
            "on demand"
        )


def _connect(config: RunConfig, debug: bool) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not debug:
        os.environ.setdefault("RAY_DATA_LOG_LEVEL", "WARNING")  # read when ray.data is first used
    address = config.ray.address or os.environ.get("RAY_ADDRESS") or "local"
    level = "INFO" if debug else "ERROR"
    if address == "local":
        store = config.ray.object_store_mib
        ray.init(
            address="local",
            num_cpus=config.ray.num_cpus,
            object_store_memory=store * 2**20 if store else None,
            include_dashboard=False,
            log_to_driver=debug,
            logging_level=level,
        )
        return
    try:
        ray.init(address=address, log_to_driver=debug, logging_level=level)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"no Ray cluster at `{address}` ({str(error).strip().splitlines()[0]}); start one "
            "with `ray start --head`, or set `ray.address: local`"
        ) from error


def _train_resources(config: RunConfig) -> dict[str, float]:
    jobs: list[TrainConfig] = [config.train] if config.iterations else []
    if config.warm_start:
        jobs.append(config.warm_start.train)
    needed: dict[str, float] = {}
    for job in jobs:
        each = {"CPU": job.num_cpus, "GPU": job.num_gpus, **job.resources}
        for name, amount in each.items():
            needed[name] = max(needed.get(name, 0.0), amount * job.workers)
    return needed
