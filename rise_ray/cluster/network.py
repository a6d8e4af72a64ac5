"""Whether a service can be reached from this machine."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

_CONNECT_S = 5.0
_PORTS = {"http": 80, "https": 443, "ray": 10001, "ray-gcs": 6379}


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
