"""Which machine a process is on, and whether it reaches a service from there."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

_CONNECT_S = 5.0
_PORTS = {"http": 80, "https": 443, "ray": 10001, "ray-gcs": 6379}


def this_machine() -> str:
    """One name per kernel start and process space; containers on a host have their own.

    A process's number, its files and its loopback mean nothing elsewhere.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{os.readlink('/proc/self/ns/pid')}"


def connection_failure(url: str) -> str | None:
    """Why nothing accepts a TCP connection at a URL's host and port; None where something does."""
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme)
        if not parts.hostname or port is None:
            return "it names no host and port"
        socket.create_connection((parts.hostname, port), timeout=_CONNECT_S).close()
    except (OSError, ValueError) as error:  # ValueError: a port that is no number
        return str(error)
    return None
