"""What holds for every test: the same examples in every run, and files that stay together.

Hypothesis draws the same examples in every run. Where pytest has several processes, the unit tests
of a file run in one of them, one after another: they share its fixtures.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

UNIT = Path(__file__).parent / "unit"

settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile("deterministic")


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what stays together; see tests/system/conftest.py for the others."""
    for item in items:
        if UNIT in item.path.parents:
            item.add_marker(pytest.mark.xdist_group(str(item.path.relative_to(UNIT))))
