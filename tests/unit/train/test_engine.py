"""The learning rate: linear warm-up to the peak, cosine to the floor."""

from __future__ import annotations

import pytest

from rise_ray.train.engine import lr_factor


def test_every_step_learns_and_the_peak_is_reached_once_after_warm_up() -> None:
    factors = [lr_factor(step, 100, 0.05, 0.1) for step in range(100)]
    assert min(factors) >= 0.1
    assert factors[:5] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])
    assert factors.index(1.0) == 5
    assert factors[5:] == sorted(factors[5:], reverse=True)
    assert factors[-1] == pytest.approx(0.1, abs=0.01)


def test_halfway_down_the_cosine_is_the_middle() -> None:
    assert lr_factor(50, 100, 0.0, 0.2) == pytest.approx(0.6)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_of_one_or_two_steps_still_learns(steps: int) -> None:
    assert all(lr_factor(step, steps, 0.04, 0.0) > 0 for step in range(steps))
