"""What the chaos job finds at the end: orphans of what it killed, and unused shared memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import pytest

from tests.chaos.processes import (
    descendants,
    kill,
    shared_memory_files,
    still_alive,
    unused,
    wait_freed,
)

ORPHANED = """
import os, subprocess, sys, time
from tests.chaos.processes import adopt_orphans, descendants, title
adopt_orphans()
start = "import subprocess; subprocess.Popen(['sleep', '60'], start_new_session=True)"
subprocess.run([sys.executable, "-c", start], check=True)
left = descendants(os.getpid())
while not all(map(title, left)):  # in the middle of its exec it has none
    time.sleep(0.01)
print([title(process) for process in left])
for process in left:
    process.kill()
"""

LOCKED = """
import multiprocessing
lock = multiprocessing.get_context("spawn").Lock()
print("/dev/shm/sem." + lock._semlock.name.removeprefix("/"), flush=True)
input()
"""


def test_an_orphan_stays_below_the_process_that_adopts_even_in_a_session_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ORPHANED], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "['sleep 60']", done.stderr


def test_a_killed_process_is_gone_and_killing_it_again_is_no_error() -> None:
    process = subprocess.Popen(["sleep", "60"])
    found = [one for one in descendants(os.getpid()) if one.pid == process.pid]
    assert still_alive(found, within_s=0.0) == found
    kill(found)
    assert still_alive(found, within_s=60.0) == []
    process.wait()
    kill(found)


@pytest.fixture
def shared_memory_file() -> Path:
    return Path("/dev/shm") / f"chaos-test-{uuid.uuid4().hex}"


def test_shared_memory_is_left_over_only_when_nobody_uses_it(shared_memory_file: Path) -> None:
    before = shared_memory_files()
    with shared_memory_file.open("wb"):
        new = shared_memory_files() - before
        assert str(shared_memory_file) in new
        assert str(shared_memory_file) not in unused(new)
    assert str(shared_memory_file) in unused(new)
    shared_memory_file.unlink()
    assert str(shared_memory_file) not in unused(new)


def test_a_semaphore_is_in_use_though_it_is_not_mapped_under_its_name() -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", LOCKED], **pipes) as own:
        assert own.stdout is not None
        file = own.stdout.readline().strip()
        assert file in shared_memory_files()
        assert unused([file]) == []
        own.communicate("\n")
    assert file not in shared_memory_files()


def test_what_is_unlinked_a_moment_later_is_not_left_over(shared_memory_file: Path) -> None:
    before = shared_memory_files()
    shared_memory_file.touch()
    assert str(shared_memory_file) in wait_freed(before, within_s=0.0)
    tracker = threading.Timer(0.5, shared_memory_file.unlink)
    tracker.start()
    assert str(shared_memory_file) not in wait_freed(before, within_s=60.0)
    tracker.join()
