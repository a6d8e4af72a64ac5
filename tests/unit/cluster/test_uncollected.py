"""Imports without the garbage collector."""

from __future__ import annotations

import gc

import pytest

from rise_ray.cluster.imports import uncollected


def test_the_collector_comes_back_also_after_an_error_and_leaves_alone_what_is_there() -> None:
    def failing() -> None:
        assert not gc.isenabled()
        raise ImportError

    kept: list[object] = [failing]
    with pytest.raises(ImportError), uncollected():
        failing()
    assert gc.isenabled()
    assert not any(found is kept for found in gc.get_objects())
    gc.disable()
    with uncollected():
        pass
    assert not gc.isenabled()  # as it was
    gc.enable()
    gc.unfreeze()
