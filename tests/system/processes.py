"""Processes as a test sees them: whom it started, where they listen, and whether they are gone."""

from __future__ import annotations

import ipaddress
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import psutil

from tests.chaos.processes import shared_memory_files

LOOK_S = 0.05
"""Between two looks at all processes, which takes some 10 ms of CPU."""
LISTENING_S = 3.0
"""Between two looks at all their sockets, which takes some 100 ms."""


def descendants(pid: int | None = None) -> list[psutil.Process]:
    """The living children of a process (default: this one), and theirs."""
    return [process for process in _children(pid) if _runs(process)]


def named(title: str, pid: int | None = None) -> list[psutil.Process]:
    """Those of `descendants` whose command line holds `title`, oldest first."""
    return sorted(
        # Of a zombie it is empty. Nothing else is asked of all: tests look often.
        (process for process in _children(pid) if title in _command(process)),
        key=lambda process: process.create_time(),
    )


def wait_gone(processes: list[psutil.Process], within_s: float = 120.0) -> list[str]:
    """Wait until none of `processes` runs; the command lines of those that still do."""
    deadline = time.monotonic() + within_s
    while (left := [p for p in processes if _runs(p)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    return [f"{process.pid} {_command(process)}" for process in left]


def shared_memory_of(pid: int) -> set[str]:
    """The files of shared memory that a process and those below it map."""
    maps = [one.memory_maps() for one in [*_itself(pid), *descendants(pid)]]
    return {mapped.path for of_one in maps for mapped in of_one} & shared_memory_files()


def send(process: psutil.Process, number: signal.Signals) -> None:
    """Signal a process that one of our tests started."""
    os.kill(process.pid, number)


@contextmanager
def beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run `work(over)` in a thread beside the block; it returns once `over` is set."""
    over = threading.Event()
    thread = threading.Thread(target=work, args=(over,))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def listening(pid: int) -> Iterator[set[tuple[str, str]]]:
    """Watch a process and those below it: (name, IP address) of each socket where one listens."""
    found: set[tuple[str, str]] = set()

    def look(over: threading.Event) -> None:
        while not over.wait(LISTENING_S):
            for one in [*_itself(pid), *descendants(pid)]:
                with suppress(psutil.Error):  # it has ended
                    sockets = one.net_connections("inet")
                    found.update((one.name(), s.laddr.ip) for s in sockets if s.status == "LISTEN")

    with beside(look):
        yield found


def is_loopback(ip: str) -> bool:
    """Whether an address is of this machine alone, `::ffff:127.0.0.1` included."""
    address = ipaddress.ip_address(ip)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


@contextmanager
def losing(
    title: str, number: signal.Signals, losses: int = 1, others: Sequence[psutil.Process] = ()
) -> Iterator[None]:
    """Signal `losses` actors but the `others`, each when it is first seen as `title`."""
    lost: list[psutil.Process] = []

    def lose(over: threading.Event) -> None:
        while len(lost) < losses and not over.wait(LOOK_S):
            busy = named(title)
            for process in [one for one in busy if one not in (*others, *lost)]:
                if len(lost) < losses:
                    with suppress(ProcessLookupError):  # it ended meanwhile
                        send(process, number)
                        lost.append(process)

    with beside(lose):
        yield
    assert len(lost) == losses, f"only {len(lost)} actors were seen as {title}"
    left = wait_gone(lost)
    assert not left, f"a lost actor still runs: {left}"


def _children(pid: int | None) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _itself(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return [psutil.Process(pid)]
    return []


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
