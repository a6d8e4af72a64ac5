"""Processes as the chaos job sees them: whose they are, what they are called, whether they live."""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

from rise_ray.errors import ClusterError

_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
_SHARED_MEMORY = Path("/dev/shm")


def adopt_orphans() -> None:
    """From now on a process whose parent died stays below this one, and so is found at the end.

    Raises:
        ClusterError: the kernel refuses.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise ClusterError(f"orphans cannot be adopted: {os.strerror(ctypes.get_errno())}")


def descendants(pid: int) -> list[psutil.Process]:
    """The living processes below a process; [] if it is gone."""
    try:
        found = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [process for process in found if lives(process)]


def title(process: psutil.Process) -> str:
    """Its command line; Ray's workers say there what they run. Empty if it is gone."""
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.Error:
        return ""


def lives(process: psutil.Process) -> bool:
    """Whether it runs: a zombie does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def kill(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL, each; one that is gone already is no error."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def still_alive(processes: Iterable[psutil.Process], within_s: float) -> list[psutil.Process]:
    """Wait until they are gone, `within_s` seconds at most; those that are not."""
    deadline = time.monotonic() + within_s
    while (left := [p for p in processes if lives(p)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def shared_memory_files() -> set[str]:
    """This user's files of shared memory, by path."""
    found = set()
    for path in _SHARED_MEMORY.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_uid == os.getuid():
                found.add(str(path))
    return found


def unused(paths: Iterable[str]) -> list[str]:
    """Those files that exist and that no living process maps or holds open, sorted."""
    wanted = {}
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            wanted[_identity(os.stat(path))] = path
    for pid in psutil.pids():
        if not wanted:
            break
        for identity in _in_use(Path(f"/proc/{pid}")):
            wanted.pop(identity, None)
    return sorted(wanted.values())


def _identity(file: os.stat_result) -> tuple[int, int]:
    return file.st_dev, file.st_ino


def _in_use(process: Path) -> Iterator[tuple[int, int]]:
    """The files that a process maps or holds open. None if it is gone or another user's.

    Not by their names: a semaphore is mapped under one that `sem_open` took away again.
    """
    with contextlib.suppress(OSError):
        for line in (process / "maps").read_text(errors="replace").splitlines():
            _, _, _, device, inode, *_ = line.split(maxsplit=5)
            major, minor = device.split(":")
            yield os.makedev(int(major, 16), int(minor, 16)), int(inode)
        for descriptor in (process / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                yield _identity(descriptor.stat())


def wait_freed(before: Iterable[str], within_s: float) -> list[str]:
    """Wait until all shared memory that was not there `before` is unlinked; what is left, sorted.

    To be called when the processes that had it are gone: what is in use is of others. What unlinks
    the memory of a killed process, here or of another job on this machine, needs a moment.
    """
    known = set(before)
    deadline = time.monotonic() + within_s
    while (left := unused(shared_memory_files() - known)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left
