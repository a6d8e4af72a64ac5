"""A graceful stop: SIGTERM, as from `ray job stop` or a node that is taken away, and Ctrl-C.

The first signal raises `Stopped` in the main thread, and the `with` blocks of the run end what
they started: finished episodes are committed, workers released, W&B closed, a local Ray shut
down. A second signal, or a stop that takes longer than its deadline, ends the process at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from rise_ray.text import terminal_text

SIGNALS = (signal.SIGINT, signal.SIGTERM)
DEADLINE_S = 25.0
"""For the whole stop; Kubernetes sends SIGKILL 30 s after SIGTERM."""


class Stopped(KeyboardInterrupt):
    """A signal asked the run to stop. `exit_code` is the shell's: 128 + the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


_asked: signal.Signals | None = None
_watchdog: threading.Timer | None = None


@contextmanager
def stop_signals() -> Iterator[None]:
    """Handle the signals inside the block as above, and as before after it.

    Raises:
        Stopped: one came, also where Ray's waits made a plain KeyboardInterrupt of it.
    """
    global _asked
    _asked = None
    before = {number: signal.getsignal(number) for number in SIGNALS}
    handle_signals()
    try:
        yield
    except KeyboardInterrupt as error:
        if isinstance(error, Stopped):
            raise
        raise Stopped(_asked or signal.SIGINT) from error
    except SystemExit as error:
        if error.code != signal.SIGTERM:
            raise
        raise Stopped(signal.SIGTERM) from error  # it came while Ray started, which had it then
    finally:
        if _watchdog is not None:
            _watchdog.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def handle_signals() -> None:
    """Take the signals over (again: `ray.init` keeps SIGTERM for itself)."""
    for number in SIGNALS:
        signal.signal(number, _stop)


def end_at_once(why: str, status: int) -> NoReturn:
    """End the process from any thread, and without a word or a write of its `with` blocks.

    What is left is Ray's to end: its processes see that their driver is gone.
    """
    print(terminal_text(f"rise-ray: {why}"), file=sys.stderr, flush=True)
    os._exit(status)


def _stop(number: int, frame: FrameType | None) -> None:
    global _asked, _watchdog
    _asked = signal.Signals(number)
    for other in SIGNALS:
        signal.signal(other, _end)
    _watchdog = threading.Timer(DEADLINE_S, _end, (number, None))
    _watchdog.daemon = True
    _watchdog.start()
    raise Stopped(number)


def _end(number: int, frame: FrameType | None) -> None:
    end_at_once("ended without tidying up", 128 + number)
