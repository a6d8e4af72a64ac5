"""A task that does what a response says, and a checker that is closed whatever happens."""

from __future__ import annotations

import contextlib

from rise_ray.mdp import Problem
from rise_ray.verify.checker import Checker

DEADLINE_S = 1.0
"""Of checks that hang."""
PROBLEM = Problem("p", "math", "question", "72")

HOSTILE_TASK = '''
import os, sys, time
from rise_ray.mdp import Outcome, Verdict
from rise_ray.tasks.countdown import Countdown

class Hostile(Countdown):
    """Does what the response says."""
    def check(self, problem, response):
        if response == "spin":
            while True: pass
        if response == "spin in C": 9 ** 9 ** 9
        if response == "sleep": time.sleep(1000)
        if response == "pid": return Verdict(Outcome.CORRECT, str(os.getpid()), "fine", True)
        if response == "nap": time.sleep(1.5)
        if response.startswith("count"): sum(range(20_000_000))
        if response == "exit": os._exit(7)
        if response == "sys.exit": sys.exit(3)
        if response == "segfault": os.kill(os.getpid(), 11)
        if response == "memory": self.__class__.hoard = b"x" * 2**40
        if response == "memory slowly":
            self.__class__.hoard = []
            while True: self.hoard.append("x" * 2**20)
        if response == "recurse": return self.check(problem, response)
        if response == "raise": raise RuntimeError("boom " * 10_000)
        if response == "nothing": return None
        if response == "print": print("garbage"); os.write(1, b"more\\n"); sys.stdout.flush()
        if response == "read": assert sys.stdin.read() == ""
        if response == "surrogate": return Verdict(Outcome.INCORRECT, "\\ud800", "\\udfff")
        return Verdict(Outcome.CORRECT, response[:100], "fine", True)

class Unloadable(Hostile):
    def __init__(self): raise SystemExit(9)
'''


SHORT_TASK = '''
from rise_ray.tasks import answers
from rise_ray.tasks.gsm8k import Gsm8k

class Short(Gsm8k):
    """Runs out of memory where the response says, deep in what math-verify calls."""
    def check(self, problem, response):
        def fail(*args, **kwargs): raise MemoryError
        if response.startswith("parse"): answers.parser.latex2sympy = fail
        if response.startswith("compare"): answers.grader.simplify = fail
        return super().check(problem, response)
'''
"""Apart from the other, because its imports take seconds."""


@contextlib.contextmanager
def checking(task, processes=1, deadline_s=30.0, memory_mib=1024, spare=False):
    checker = Checker(task, processes, deadline_s, memory_mib, spare)
    try:
        yield checker
    finally:
        checker.close()
