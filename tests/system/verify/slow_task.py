"""Countdown, slowly; with an answer that kills the verifier; and where processes do not start."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from rise_ray.mdp import Problem, Verdict
from rise_ray.tasks.countdown import Countdown

TASK = f"{__name__}:Slow"
SHORT_TASK = f"{__name__}:Short"
CHECK_S = 0.01
POISON = "kill the verifier"
SPIN = "spin"


class Slow(Countdown):
    """Each check takes `CHECK_S` longer."""

    def check(self, problem: Problem, response: str) -> Verdict:
        """See `Countdown.check`."""
        time.sleep(CHECK_S)
        while response == SPIN:
            pass
        if response == POISON:
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        return super().check(problem, response)


class Short(Countdown):
    """Its processes die while they start, as for want of memory, as long as `missing` is there.

    Each of them adds a character to that file.
    """

    missing: str

    def model_post_init(self, context: object) -> None:
        """Die, perhaps."""
        with contextlib.suppress(FileNotFoundError):
            deaths = os.open(self.missing, os.O_WRONLY | os.O_APPEND)
            os.write(deaths, b"x")
            os._exit(9)
