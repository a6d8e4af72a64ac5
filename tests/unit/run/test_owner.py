"""One driver for each run folder: a living one is named, a dead one is replaced."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from rise_ray.cluster.machine import this_machine
from rise_ray.cluster.stop import Stopped
from rise_ray.errors import StoreError
from rise_ray.run import owner as module
from rise_ray.run.owner import OWNER, Owner, current_owner, ownership, refuse_if_driven
from rise_ray.store.files import Folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "run"))


@pytest.fixture
def driver() -> Iterator[Owner]:
    """A living process of this machine, as an owner."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield Owner(
        token="other",
        host="this-host",
        machine=this_machine(),
        pid=process.pid,
        process_started=module._start_ticks(process.pid),
        since="2026-01-01T00:00:00+00:00",
    )
    process.kill()
    process.communicate()


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"LEASE_S": 1.5, "_BEAT_S": 0.05, "_SETTLE_S": 0.05}.items():
        monkeypatch.setattr(module, name, seconds)


def put(folder: Folder, owner: Owner) -> None:
    folder.write(OWNER, json.dumps(asdict(owner)).encode())


def contents(folder: Folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder.path).iterdir()}


def own(folder: Folder, say: Callable[[str], None] = lambda _: None) -> None:
    with ownership(folder, say):
        mine = current_owner(folder)
        assert mine is not None
        assert mine.pid == os.getpid()


def test_an_owner_is_in_the_file_while_it_drives_and_beats(folder: Folder) -> None:
    with ownership(folder, lambda _: None):
        first = current_owner(folder)
        deadline = time.monotonic() + 60
        while current_owner(folder) == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert current_owner(folder) is None


def test_a_living_driver_of_this_machine_is_named_and_left_alone(
    folder: Folder, driver: Owner
) -> None:
    put(folder, driver)
    named = rf"process {driver.pid} on this-host, since 2026-01-01T00:00:00\+00:00; nothing was"
    with pytest.raises(StoreError, match=named):
        own(folder)
    with pytest.raises(StoreError, match=named):
        refuse_if_driven(folder)
    assert current_owner(folder) == driver


def test_a_dead_driver_of_this_machine_is_replaced_at_once(folder: Folder, driver: Owner) -> None:
    """Dead also means: its number belongs to another process now."""
    put(folder, replace(driver, process_started=driver.process_started - 60))
    refuse_if_driven(folder)
    own(folder, say=pytest.fail)


def test_a_silent_driver_of_another_machine_is_replaced_after_its_lease(
    folder: Folder, driver: Owner
) -> None:
    said: list[str] = []
    put(folder, replace(driver, machine="elsewhere"))
    started = time.monotonic()
    own(folder, said.append)
    assert time.monotonic() - started >= module.LEASE_S
    assert "the driver before: process" in said[0]


def test_a_beating_driver_of_another_machine_is_left_alone(folder: Folder, driver: Owner) -> None:
    elsewhere = replace(driver, machine="elsewhere")
    put(folder, elsewhere)

    def beat(_: str) -> None:  # after the first look, before the wait
        put(folder, replace(elsewhere, beat=1))

    with pytest.raises(StoreError, match="another driver works on this run: process"):
        own(folder, say=beat)


def test_of_drivers_that_start_together_one_goes_on(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SETTLE_S", 2.0)  # more than any one's write takes here
    outcomes: list[str] = []
    ready = threading.Barrier(4)

    def start() -> None:
        ready.wait()
        try:
            with ownership(folder, lambda _: None):
                outcomes.append("drove")
                until = time.monotonic() + 60
                while len(outcomes) < 4 and time.monotonic() < until:
                    time.sleep(0.01)
        except StoreError:
            outcomes.append("refused")

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["drove", "refused", "refused", "refused"]


SLEEPER = """
import sys, time
from rise_ray.cluster.stop import stop_signals
from rise_ray.run import owner
from rise_ray.store.files import Folder

owner._BEAT_S, owner._SETTLE_S = 0.05, 0.05
folder = Folder(sys.argv[1])
with stop_signals(), owner.ownership(folder, print):
    try:
        print("drives", flush=True)
        time.sleep(60)
    finally:  # as a stopped run does: what had ended is stored, the last figures written
        folder.write("late.json", b"{}")
"""


def test_a_driver_that_was_replaced_while_it_slept_ends_and_changes_nothing(
    folder: Folder, driver: Owner
) -> None:
    sleeper = subprocess.Popen(
        [sys.executable, "-c", SLEEPER, folder.path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert sleeper.stdout is not None
    assert sleeper.stdout.readline() == "drives\n"
    for _ in range(100):  # once would do, but for a beat that is being written
        sleeper.send_signal(signal.SIGSTOP)
        put(folder, driver)
        taken = contents(folder)
        sleeper.send_signal(signal.SIGCONT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            sleeper.wait(1)
            break
    _, said = sleeper.communicate()
    assert sleeper.returncode == 1
    assert contents(folder) == taken
    assert current_owner(folder) == driver
    (line,) = said.splitlines()
    named = f"another driver works on this run: process {driver.pid} on this-host, since 2026"
    assert line.startswith(f"rise-ray: error: {folder.uri}: {named}")
    assert "nothing was changed" not in line


def test_a_store_that_fails_after_a_stop_is_a_warning_and_hides_no_stop(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: object) -> None:
        raise StoreError("the store is away")

    def drive(stop: bool) -> None:
        with ownership(folder, lambda _: None):
            monkeypatch.setattr(Folder, "remove", away)
            if stop:
                raise Stopped(signal.SIGTERM)

    with pytest.raises(Stopped):
        drive(stop=True)
    assert "could not be removed: the store is away" in caplog.text
    Path(folder.path, OWNER).unlink()
    with pytest.raises(StoreError, match="away"):
        drive(stop=False)


def test_an_owner_of_another_schema_version_is_refused(folder: Folder) -> None:
    """It may have other fields."""
    folder.write(OWNER, json.dumps({"schema_version": "0", "who": "me"}).encode())
    with pytest.raises(StoreError, match="of schema version 0; this rise-ray reads 2; if no"):
        own(folder)


def test_an_owner_without_a_schema_version_is_damaged(folder: Folder, driver: Owner) -> None:
    content = asdict(driver)
    del content["schema_version"]
    folder.write(OWNER, json.dumps(content).encode())
    with pytest.raises(StoreError, match=r"owner\.json: damaged: .*schema_version.*; if no driver"):
        refuse_if_driven(folder)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"pid": 3}', b'{"schema_version": "2"}'])
def test_a_damaged_file_is_told_with_what_to_do(folder: Folder, content: bytes) -> None:
    folder.write(OWNER, content)
    with pytest.raises(StoreError, match=r"owner\.json: damaged: .*; if no driver runs"):
        own(folder)
