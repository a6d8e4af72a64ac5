"""Which responses RISE's own rule chooses, against tables worked by hand."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from rise_ray.mdp import Trajectory
from rise_ray.relabel.rule import RuleContext
from rise_ray.relabel.rules.improved import Improved
from tests.unit.relabel.builders import rolled

Chosen = list[tuple[int, int]]  # (turn, candidate)


def _improved(trajectory: Trajectory, **settings: Any) -> tuple[Chosen, dict[str, int]]:
    dropped: Counter[str] = Counter()
    rows = Improved(**settings).rows(trajectory, RuleContext(0), dropped)
    return [(row.turn, row.candidate) for row in rows], dict(dropped)


def test_the_best_candidate_of_every_state_is_kept_and_of_equals_the_first() -> None:
    trajectory = rolled("6 | 5 7 7", "5 | ? 4 3", "4 | ? ?")
    assert _improved(trajectory, unparseable_reward=-1) == ([(0, 1), (1, 1), (2, 0)], {})
    assert _improved(trajectory) == ([(0, 1), (1, 0), (2, 0)], {})  # `?` is worth a wrong answer


def test_states_last_keeps_the_attempts_before_and_relabels_the_last() -> None:
    trajectory = rolled("6 | 7", "5 | 7", "4 | 3 7")
    assert _improved(trajectory, states="last") == ([(0, -1), (1, -1), (2, 1)], {})


def test_without_tau_all_that_is_chosen_weighs_alike() -> None:
    trajectory = rolled("6 | 5 7", "5 | 4 3")
    alike = Improved(tau=None, centering="problem")
    rows = list(alike.rows(trajectory, RuleContext(0), Counter()))
    assert [row.spans[0].weight for row in rows] == [1.0, 1.0]
    assert not alike.needs_tally  # nothing is centred


@pytest.mark.parametrize(
    ("name", "chosen", "filtered"),
    [
        ("all", [(0, 0), (1, 0), (2, 1), (3, 0)], 0),
        ("better", [(0, 0), (2, 1)], 2),  # turn 1: 0 after 0; turn 3: 1 after 1
        ("best", [(0, 0), (1, 0), (2, 1), (3, 0)], 0),
        ("success", [(2, 1), (3, 0)], 2),
    ],
)
def test_filters_compare_with_the_attempts_before(name: str, chosen: Chosen, filtered: int) -> None:
    trajectory = rolled("6 | 5", "4 | 3", "7 | 2 7", "1 | 7")
    expected = {"filtered": filtered} if filtered else {}
    assert _improved(trajectory, filter=name) == (chosen, expected)


def test_best_refuses_what_is_worse_than_any_earlier_attempt() -> None:
    trajectory = rolled("7 | 7", "6 | 5", "4 | 3")
    assert _improved(trajectory, filter="best") == ([(0, 0)], {"filtered": 2})
    # Turn 2: 0 is not above the 0 of turn 1 either.
    assert _improved(trajectory, filter="better") == ([(0, 0)], {"filtered": 2})


def test_responses_without_a_reward_are_never_chosen_and_are_counted() -> None:
    trajectory = rolled("6 | ! 7", "5 | ! ~7", "4 |")
    assert _improved(trajectory) == ([(0, 1)], {"no_candidate_with_reward": 2})
    own = rolled("! | 7", "~7 | 7", "6 | 7")
    assert _improved(own, states="last") == ([(2, 0)], {"no_reward": 2})


def test_a_comparison_with_an_unknown_reward_is_no_success() -> None:
    trajectory = rolled("! | 7", "6 | 7", "5 | 7")
    unknown = {"earlier_reward_unknown": 1}
    assert _improved(trajectory, filter="better") == ([(0, 0), (2, 0)], unknown)
    assert _improved(trajectory, filter="best") == ([(0, 0)], {"earlier_reward_unknown": 2})
