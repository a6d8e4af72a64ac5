"""Processes as a test sees them: whom it started, and whether they are gone."""

from __future__ import annotations

import os
import signal
import time

import psutil


def descendants(pid: int | None = None) -> list[psutil.Process]:
    """The living children of a process (default: this one), and theirs."""
    try:
        found = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [process for process in found if _runs(process)]


def named(title: str, pid: int | None = None) -> list[psutil.Process]:
    """Those of `descendants` whose command line holds `title`, oldest first."""
    return sorted(
        (process for process in descendants(pid) if title in _command(process)),
        key=lambda process: process.create_time(),
    )


def wait_gone(processes: list[psutil.Process], within_s: float = 30.0) -> list[str]:
    """Wait until none of `processes` runs; the command lines of those that still do."""
    deadline = time.monotonic() + within_s
    while (left := [p for p in processes if _runs(p)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    return [f"{process.pid} {_command(process)}" for process in left]


def send(process: psutil.Process, number: signal.Signals) -> None:
    """Signal a process that one of our tests started."""
    os.kill(process.pid, number)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
