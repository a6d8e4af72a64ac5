"""What holds for every test: the same examples in every run, and who runs together.

Hypothesis draws the same examples in every run. Where pytest has several processes (pytest-xdist),
tests that share what is dear to start run in one of them, one after another; tests/README.md says
which.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile("deterministic")

SHARING = {
    "tests/unit": None,  # a file each
    "tests/system/feedback": "a pool",
    "tests/system/rollout/test_engine.py": "a pool",
    "tests/system/rollout/test_worker.py": "a pool",
    "tests/system/rollout/test_pool.py": "a pool",
    "tests/system/sync": "engines",
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
