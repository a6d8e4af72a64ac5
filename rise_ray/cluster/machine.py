"""Which machine a process is on: what its number, its files and its loopback mean elsewhere."""

from __future__ import annotations

import os
from pathlib import Path


def this_machine() -> str:
    """One name per kernel start and process space; containers on a host have their own."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
