"""Countdown, slowly; and with an answer that kills the verifier that has it checked."""

from __future__ import annotations

import os
import signal
import time

from rise_ray.mdp import Problem, Verdict
from rise_ray.tasks.countdown import Countdown

TASK = f"{__name__}:Slow"
CHECK_S = 0.01
POISON = "kill the verifier"


class Slow(Countdown):
    """Each check takes `CHECK_S` longer."""

    def check(self, problem: Problem, response: str) -> Verdict:
        """See `Countdown.check`."""
        time.sleep(CHECK_S)
        if response == POISON:
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        return super().check(problem, response)
