"""Who could be killed now: the processes of each kind that are at work, found by their titles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import psutil

from tests.chaos.nodes import Node, Nodes
from tests.chaos.plan import Kind
from tests.chaos.processes import descendants, title

_ROLLING = "ray::RolloutWorker.exchange"
_PREFIX = {
    Kind.WORKER: _ROLLING,
    Kind.ENGINE: "VLLM::",
    Kind.VERIFIER: "ray::Verifier",
    Kind.TRAINER: "ray::RayTrainWorker",
}
_CHECK = "rise_ray.verify.child"
_PARTS_OF_A_RUN = ("ray::RolloutWorker", _PREFIX[Kind.VERIFIER], _PREFIX[Kind.TRAINER])


Titled = tuple[psutil.Process, str]


@dataclass(frozen=True, slots=True)
class Census:
    """All processes of a moment: looking them up is not cheap, so it is done once for all kinds."""

    driver: psutil.Process
    nodes: list[tuple[Node, list[Titled]]]
    complete: bool
    """Whether all worker nodes are there."""


@dataclass(frozen=True, slots=True)
class Victim:
    """A process, or a whole node where `node` is set."""

    process: psutil.Process
    label: str
    node: Node | None = None


def take_census(nodes: Nodes, driver: psutil.Process) -> Census:
    """Who is there now."""
    found = [(node, [(p, title(p)) for p in node.processes()]) for node in nodes.workers]
    return Census(driver, found, nodes.complete)


def victims(kind: Kind, census: Census) -> list[Victim]:
    """The busy ones of a kind; [] if none is.

    A node is spared while another is missing: there would be none left to go on with.
    """
    if kind is Kind.DRIVER:
        return [Victim(census.driver, f"driver {census.driver.pid}")]
    if kind is Kind.NODE:
        return _busy_nodes(census) if census.complete else []
    found = [titled for _, processes in census.nodes for titled in processes]
    if kind is Kind.TRAINER:
        return _labelled(found, lambda name: name.startswith(_PREFIX[kind]))
    workers = [process for process, name in found if name.startswith(_ROLLING)]
    if not workers:
        return []  # nothing rolls
    if kind is Kind.ENGINE:
        below = [(child, title(child)) for worker in workers for child in descendants(worker.pid)]
        return _labelled(below, lambda name: name.startswith(_PREFIX[kind]))
    if kind is Kind.CHECK:
        return _labelled(found, lambda name: _CHECK in name)
    return _labelled(found, lambda name: name.startswith(_PREFIX[kind]))


def _labelled(found: list[Titled], fits: Callable[[str], bool]) -> list[Victim]:
    return [Victim(process, f"{process.pid} {name}") for process, name in found if fits(name)]


def _busy_nodes(census: Census) -> list[Victim]:
    busy = []
    for node, processes in census.nodes:
        hosted = [name for _, name in processes if name.startswith(_PARTS_OF_A_RUN)]
        if hosted:
            label = f"{node.name} with {', '.join(hosted)}"
            busy.append(Victim(psutil.Process(node.process.pid), label, node))
    return busy
