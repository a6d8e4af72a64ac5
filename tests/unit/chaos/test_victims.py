"""Whom the chaos job kills: only what is at work, and never the last node."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.chaos.nodes import Node
from tests.chaos.plan import Kind
from tests.chaos.victims import Census, victims

ROLLING = ["ray::RolloutWorker.exchange", "ray::Verifier", "python -m rise_ray.verify.child"]
TRAINING = ["ray::RolloutWorker", "ray::Verifier", "ray::RayTrainWorker.poll"]
MakeCensus = Callable[..., Census]


@pytest.fixture
def census(tmp_path: Path) -> Iterator[MakeCensus]:
    """Nodes of sleeping processes that are called as Ray calls its own."""
    with ExitStack() as stack:

        def start(name: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen([name, "60"], executable="/bin/sleep")
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        def make(*nodes: list[str], complete: bool = True) -> Census:
            found = []
            for names in nodes:
                node = Node("node-1", start("ray start"), tmp_path / "log")
                found.append((node, [(psutil.Process(start(name).pid), name) for name in names]))
            return Census(psutil.Process(os.getpid()), found, complete)

        yield make


@pytest.mark.parametrize("kind", [Kind.WORKER, Kind.VERIFIER, Kind.CHECK])
def test_while_episodes_roll_their_parts_can_be_killed(census: MakeCensus, kind: Kind) -> None:
    (victim,) = victims(kind, census(ROLLING))
    assert ROLLING[[Kind.WORKER, Kind.VERIFIER, Kind.CHECK].index(kind)] in victim.label


@pytest.mark.parametrize("kind", [Kind.WORKER, Kind.VERIFIER, Kind.CHECK, Kind.ENGINE])
def test_while_nothing_rolls_they_are_spared(census: MakeCensus, kind: Kind) -> None:
    assert victims(kind, census(TRAINING)) == []


def test_training_workers_are_killed_while_they_train(census: MakeCensus) -> None:
    assert len(victims(Kind.TRAINER, census(TRAINING, TRAINING))) == 2
    assert victims(Kind.TRAINER, census(ROLLING)) == []


def test_a_node_is_killed_only_where_it_works_and_another_one_is_there(census: MakeCensus) -> None:
    two = census(ROLLING, ["ray::IDLE"])
    assert [victim.node for victim in victims(Kind.NODE, two)] == [two.nodes[0][0]]
    assert victims(Kind.NODE, census(ROLLING, complete=False)) == []


def test_the_driver_can_always_be_killed(census: MakeCensus) -> None:
    (victim,) = victims(Kind.DRIVER, census([]))
    assert victim.process.pid == os.getpid()
