"""Imports of the large libraries, sooner."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Import inside the block without Python's cyclic garbage collector.

    vLLM's imports make 700,000 objects, nearly all of which stay. The collector looks through them
    again and again meanwhile, which is a fifth of their time, and at every full collection after
    it: from the end of the block on, it leaves what is there alone (`gc.freeze`).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
