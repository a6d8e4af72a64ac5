"""What a process leaves behind, removed when it is gone, however it ended.

Ray ends an actor with SIGKILL, and all its children with it, also Python's resource tracker, which
would have unlinked the shared memory of vLLM's engines with worker processes (hundreds of MiB for
each); Ray and vLLM have no tracker. The one that this module starts is nobody's child. It ends when
the last process that uses it has gone, and removes a folder too, for whatever else a process leaves
(sockets, rendezvous files). vLLM's collectives on CPUs tell no tracker of their shared memory, but
it has the name of the file where the engine's processes meet: that has to lie in the folder
(`temporary_files`).

Run as a script, it is that tracker: so it imports nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path


@functools.cache
def temporary_folder() -> Path:
    """A folder for this process's temporary files; the same one at every call.

    From the first call on, this process's shared memory and semaphores, and those of its
    `multiprocessing` children, are unlinked when all of these have gone.
    """
    folder = tempfile.mkdtemp(prefix="rise-ray-")
    reading, writing = os.pipe()
    try:
        subprocess.run(
            [sys.executable, "-I", "-S", "-W", "ignore", __file__, str(reading), folder],
            pass_fds=[reading],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            check=True,
        )
    finally:
        os.close(reading)
    # As `multiprocessing` itself hands its tracker to the children that it spawns.
    resource_tracker._resource_tracker._fd = writing  # type: ignore[attr-defined]
    return Path(folder)


@contextlib.contextmanager
def temporary_files() -> Iterator[None]:
    """Inside the block, `tempfile` makes this process's files in `temporary_folder()`."""
    before = tempfile.tempdir
    tempfile.tempdir = str(temporary_folder())
    try:
        yield
    finally:
        tempfile.tempdir = before


def _reap(reading: int, folder: str) -> None:
    """Be the tracker until nobody can write to it any more."""
    if os.fork():
        os._exit(0)
    os.setsid()
    resource_tracker.main(reading)
    for meeting in Path(folder).glob("vllm_dist_*"):
        for memory in Path("/dev/shm").glob(f"{meeting.name}-*"):
            memory.unlink()
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _reap(int(sys.argv[1]), sys.argv[2])
