"""What holds for every test: the same examples in every run, and who runs together.

Hypothesis draws the same examples in every run. Where pytest has several processes (pytest-xdist),
tests that share what is dear to start run in one of them, one after another; tests/README.md says
which. A test that hangs ends its process with every thread's stack, and a process that ends leaves
what its Ray said last.
"""

from __future__ import annotations

import faulthandler
import os
from pathlib import Path
from typing import Any

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

# Tests never reach for the network. One OpenMP thread for each process: the tests run several at
# once, and threads that outnumber the cores spin (Ray sets this for its workers, not for drivers).
os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}

settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile("deterministic")

SHARING = {
    "tests/unit": None,  # a file each
    "tests/system/feedback": "a pool",
    "tests/system/rollout/test_engine.py": "a pool",
    "tests/system/rollout/test_worker.py": "a pool",
    "tests/system/rollout/test_pool.py": "a pool",
    "tests/system/sync": "engines",
    "tests/system/recipes": None,
    "tests/system/test_whole_run.py": "a run",
    "tests/system/test_gsm8k_run.py": "a run over text",
    "tests/system/test_submitted_run.py": None,
    "tests/system/train/test_job.py": None,
    "tests/system/train/test_state.py": None,
}
"""What the tests under a path share; None: what is in their file. All others are alone."""


class Scheduling(LoadScopeScheduling):
    """Hands out tests that share something together.

    By their ids: pytest-xdist's own marks (`loadgroup`) have no effect with this pytest.
    """

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        for shared, what in SHARING.items():
            if path == shared or path.startswith(f"{shared}/"):
                return what or path
        return nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    """Hands out to pytest's processes what they run, in the order in which it is collected."""
    config.option.loadscopereorder = False
    return Scheduling(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Any:
    """What hostile texts leave in captured logs goes from one process of pytest to another."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report


_GRACE_S = 60
"""For a test that is over its time to fail by itself."""


@pytest.hookimpl(wrapper=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> Any:
    """End the process of a test that goes on after its time: then it says where each thread is.

    What a signal raises inside `ray.get` Ray prints and forgets.
    """
    # Where errors went before pytest captured them.
    errors = item.config.stash[fault_handler_stderr_fd_key]
    faulthandler.dump_traceback_later(settings.timeout + _GRACE_S, exit=True, file=errors)
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_timeout_cancel_timer(item: pytest.Item) -> Any:
    """The test has ended."""
    faulthandler.cancel_dump_traceback_later()
    return (yield)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object | None) -> None:
    """Of a process of pytest that ended by itself: what its Ray said last.

    Ray aborts its driver's process, in which pytest keeps what it says, for a bug of its own.
    """
    rays = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray"
    pid = node.gateway._io.popen.pid
    for log in rays.glob(f"session_*_{pid}/logs/python-core-driver-*.log") if error else ():
        lines = log.read_text(errors="backslashreplace").splitlines()
        said = [line for line in lines if not line.startswith(("\t", "[state-dump]"))]
        print(f"\n{node.gateway.id}: the end of {log.name}", *said[-30:], sep="\n")
