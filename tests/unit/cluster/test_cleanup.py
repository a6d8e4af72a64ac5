"""A killed process leaves neither its folder nor its shared memory; nor do its children."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

OWNER = """
import json, multiprocessing, os, tempfile, time
from multiprocessing import shared_memory
import psutil
from rise_ray.cluster.cleanup import temporary_files, temporary_folder

def child(names):
    memory = shared_memory.SharedMemory(create=True, size=4096)
    names.put(memory.name)
    time.sleep(600)

if __name__ == "__main__":
    folder = temporary_folder()
    assert temporary_folder() == folder
    with temporary_files():
        tempfile.mkstemp("-socket")
        _, meeting = tempfile.mkstemp(prefix="vllm_dist_")
    collective = f"{os.path.basename(meeting)}-tp:0-cpushm_0"
    open(f"/dev/shm/{collective}", "wb").close()
    assert psutil.Process().children() == []  # Ray kills those
    spawn = multiprocessing.get_context("spawn")
    names = spawn.SimpleQueue()
    process = spawn.Process(target=child, args=(names,))
    process.start()
    memory = shared_memory.SharedMemory(create=True, size=4096)
    memories = [memory.name, names.get(), collective]
    print(json.dumps([str(folder), memories, process.pid]), flush=True)
    time.sleep(600)
"""


def exist(names: list[str]) -> bool:
    """Whether all these files of shared memory are there; False if none is."""
    found = {(Path("/dev/shm") / name).exists() for name in names}
    assert len(found) == 1
    return found.pop()


def wait_until_gone(path: Path) -> None:
    deadline = time.monotonic() + 30
    while path.exists():
        assert time.monotonic() < deadline, f"{path} is still there"
        time.sleep(0.02)


def test_what_a_killed_process_had_is_removed_when_its_last_child_is_gone(tmp_path: Path) -> None:
    script = tmp_path / "owner.py"  # a file: its child imports it
    script.write_text(OWNER)
    owner = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    folder, names, child = json.loads(owner.stdout.readline())
    assert exist(names)
    owner.kill()
    owner.wait()
    time.sleep(0.2)
    assert exist(names)
    assert len(list(Path(folder).iterdir())) == 2
    os.kill(child, signal.SIGKILL)
    wait_until_gone(Path(folder))
    assert not exist(names)
