"""A run's driver as a process of its own: `rise-ray run`, watched from its folder, and stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rise_ray.mdp import Place
from rise_ray.store.files import Folder
from rise_ray.store.trajectories import TrajectoryStore, read_part
from tests.system.miniature import JOB, REPOSITORY, SETTINGS
from tests.system.processes import LOOK_S

COMMAND = [str(Path(sys.executable).with_name("rise-ray")), "run", str(JOB), *SETTINGS]

Reached = Callable[[int], bool]
"""Of the driver's process id: whether the run is where the test wants it."""


def environment() -> dict[str, str]:
    """This process's, without a cluster of ours: the run starts its own.

    The command and the processes of its Ray can import modules of the tests, as a user's.
    """
    ours = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    paths = [str(REPOSITORY), ours.get("PYTHONPATH", "")]
    return ours | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


@contextmanager
def started(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A driver that writes to `log`; killed at the end of the block, if it still runs.

    It has a process group of its own, as a terminal gives one.
    """
    with log.open("wb") as output:
        driver = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment(), start_new_session=True
        )
    try:
        yield driver
    finally:
        driver.kill()
        driver.wait()


def wait_for(driver: subprocess.Popen[bytes], log: Path, reached: Reached) -> None:
    """Wait until the run is there; fail with its output if it ends before."""
    deadline = time.monotonic() + 600
    while not reached(driver.pid):
        assert driver.poll() is None, f"the run ended by itself: {log.read_text()}"
        assert time.monotonic() < deadline, f"the run did not get there: {log.read_text()}"
        time.sleep(LOOK_S)


def journal(folder: Path) -> dict[str, Any]:
    """The finished stages of a run folder, with their results."""
    path = folder / "state.json"
    return dict(json.loads(path.read_text())["stages"]) if path.exists() else {}


def store_of(folder: Path) -> TrajectoryStore:
    """The trajectories of a run folder."""
    return TrajectoryStore(Folder(str(folder / "trajectories")))


def parts_of(folder: Path, place: Place) -> list[str]:
    """Parts of a phase that are on storage already."""
    return store_of(folder).parts(place)


def stored_ids(folder: Path, place: Place) -> list[str]:
    """As they lie in the parts: one that was written twice is there twice."""
    store = store_of(folder)
    tables = [
        read_part(store.folder_of(place), name, columns=["id"]) for name in store.parts(place)
    ]
    return [name for table in tables for name in table["id"].to_pylist()]
