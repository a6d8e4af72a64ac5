"""Copies of remote folders on this node: each made by one process, old ones removed.

A node may have eight processes that load a checkpoint of 140 GB at the same moment, and a run
has a new one every iteration. The first process copies; the others wait at a lock, which the kernel
gives back however its holder ends. Every process marks the copies that it was given by a share of
another lock, for as long as it lives: none is removed under somebody who still reads it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

KEPT_COPIES = 2
"""Of one family, beside those in use: the newest, and the one before."""

_in_use: dict[Path, int] = {}
"""This process's marks, by copy: open files with a share of the lock. Never closed."""


def node_copy(family: str, key: str, fill: Callable[[Path], None]) -> Path:
    """The copy named `key`, made by `fill(folder)` if this node has none.

    Args:
        family: names copies that replace each other, as the checkpoints of a run.
        key: names the content: a copy is never changed.
        fill: is given a path where nothing is, and makes a folder there.

    Raises:
        PermissionError: others can write to where copies are kept.
        Exception: what `fill` raises; nothing is kept then.
    """
    root = Path(tempfile.gettempdir()) / f"rise-ray-{os.getuid()}"
    _make_private(root)
    copy = root / family / key
    copy.parent.mkdir(exist_ok=True)
    mark = _beside(copy, "used")
    mark.touch()
    if copy in _in_use and copy.exists():
        return copy
    with _locked(_beside(copy, "lock")):
        if not copy.exists():
            _remove_old(copy.parent)
            staged = _beside(copy, "tmp")
            shutil.rmtree(staged, ignore_errors=True)  # of a process that was killed
            try:
                fill(staged)
                staged.rename(copy)
            finally:
                shutil.rmtree(staged, ignore_errors=True)
        if copy not in _in_use:
            file = os.open(mark, os.O_RDONLY)
            fcntl.flock(file, fcntl.LOCK_SH)
            _in_use[copy] = file
    return copy


def _remove_old(family: Path) -> None:
    """Make room: remove what nobody uses, or was left half made, but for the latest."""
    marks = sorted(family.glob("*.used"), key=lambda mark: mark.stat().st_mtime_ns)
    for mark in marks[:-KEPT_COPIES]:
        old = mark.with_suffix("")
        with (
            contextlib.suppress(BlockingIOError),  # somebody makes it, or has it
            _locked(_beside(old, "lock"), fcntl.LOCK_NB),
            _locked(mark, fcntl.LOCK_NB),
        ):
            shutil.rmtree(_beside(old, "tmp"), ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path, waiting: int = 0) -> Iterator[None]:
    file = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | waiting)
        yield
    finally:
        os.close(file)


def _beside(copy: Path, kind: str) -> Path:
    """`lock`: whoever makes or removes the copy has it alone; `tmp`: the copy while it is made;
    `used`: processes that use the copy share it, its time is the last use."""
    return copy.with_name(f"{copy.name}.{kind}")


def _make_private(folder: Path) -> None:
    """A folder of this user alone: its name can be guessed, and others may have made it first."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    facts = folder.stat()
    if facts.st_uid != os.getuid() or facts.st_mode & 0o022:
        raise PermissionError(f"others can write to {folder}; remove it, or set TMPDIR to your own")
