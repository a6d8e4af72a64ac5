"""One trajectory to its examples: weights, states, lineage, and nothing made of a failure."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from rise_ray.mdp import Provenance, Span, StopReason, Trajectory
from rise_ray.relabel.examples import Relabeled, relabel
from rise_ray.relabel.rewards import tally_of
from rise_ray.relabel.rule import RuleContext
from rise_ray.relabel.rules.improved import Improved
from rise_ray.relabel.rules.revision import Revision
from tests.unit.relabel.builders import COLLECT, FEEDBACK, PROMPT, rolled


def _relabel(trajectory: Trajectory, max_tokens: int = 100, **settings: Any) -> Relabeled:
    context = RuleContext(0, tally_of([trajectory]))
    return relabel([trajectory], Improved(**settings), max_tokens, context)


def _weights(result: Relabeled) -> list[float]:
    return [span.weight for example in result.examples for span in example.spans]


def test_an_example_is_its_state_and_its_response_with_loss_on_the_response() -> None:
    first, second = _relabel(rolled("66 | 7", "5 | 777")).examples
    assert first.input_ids == (*PROMPT, *b"7")
    assert first.spans == (Span(2, 3, math.exp(1 / 0.4)),)
    state = (*PROMPT, *b"66", *FEEDBACK)
    assert second.input_ids == (*state, *b"777")
    (span,) = second.spans
    assert (span.start, span.end) == (len(state), len(state) + 3)


def test_a_windowed_state_is_what_the_model_saw() -> None:
    examples = _relabel(rolled("6 | 7", "5 | 7", "4 | 7", window=2)).examples
    assert examples[2].input_ids == (*PROMPT, *b"5", *FEEDBACK, *b"7")


# Rewards: turn 0: 0 | 1 0; turn 1: 0 | 0 0 (of `5`, `4`), tau 1/2.
@pytest.mark.parametrize(
    ("centering", "weights"),
    [
        ("none", [math.exp(2), 1.0]),
        ("problem", [math.exp((1 - 1 / 6) / 0.5), math.exp(-1 / 6 / 0.5)]),
        ("state", [math.exp(1), 1.0]),
    ],
)
def test_weights(centering: str, weights: list[float]) -> None:
    result = _relabel(rolled("6 | 7 5", "3 | 5 4"), tau=0.5, centering=centering)
    assert _weights(result) == pytest.approx(weights)


def test_revisions_weights_are_the_quick_starts() -> None:
    # exp((1 - mean) / 0.5) for the right one, 1.5 exp(-mean / 0.5) for the wrong one.
    trajectory = rolled("6 | 7 5 4 3")
    rule = Revision(centering="state", tau=0.5)
    result = relabel([trajectory], rule, 100, RuleContext(0))
    assert _weights(result) == pytest.approx([math.exp(1.5), 1.5 * math.exp(-0.5)])


def test_an_unparseable_response_is_worth_what_the_config_says_also_in_its_lineage() -> None:
    (example,) = _relabel(rolled("6 | ?"), unparseable_reward=-1).examples
    assert example.spans[0].weight == pytest.approx(math.exp(-1 / 0.4))
    assert example.provenance.reward == -1.0


def test_a_trajectory_that_ended_as_error_gives_no_example() -> None:
    result = _relabel(rolled("6 | 7 7", "5 | 7", stop_reason=StopReason.ERROR))
    assert (result.examples, dict(result.dropped)) == ([], {"trajectory_error": 1})
    for ended in (StopReason.SUCCESS, StopReason.CONTEXT_OVERFLOW):
        assert _relabel(rolled("6 | 7", stop_reason=ended)).examples


def test_a_center_that_is_unknown_gives_no_weight() -> None:
    result = _relabel(rolled("6 | !", "5 | 7"), states="last", centering="state")
    assert [e.provenance.turn for e in result.examples] == [1]
    assert result.dropped == {"no_center": 1}


def test_what_does_not_fit_is_dropped_and_counted() -> None:
    trajectory = rolled("6 | 7", "5 | 777")
    assert _relabel(trajectory, max_tokens=7).dropped == {}
    result = _relabel(trajectory, max_tokens=6)
    assert [e.provenance.turn for e in result.examples] == [0]
    assert result.dropped == {"too_long": 1}


def test_degenerate_responses_are_dropped_where_asked() -> None:
    trajectory = rolled("6 | 7")
    turn = trajectory.turns[0]
    loop = replace(turn.candidates[0], text="so " * 151)
    trajectory = replace(trajectory, turns=(replace(turn, candidates=(loop,)),))
    result = _relabel(trajectory)
    assert (result.examples, dict(result.dropped)) == ([], {"degenerate": 1})
    assert len(_relabel(trajectory, drop_degenerate=False).examples) == 1


def test_every_example_knows_where_it_came_from() -> None:
    (first, second) = _relabel(rolled("6 | 5 7", "4 | 7"), states="last").examples
    assert first.provenance == Provenance(
        source="attempt",
        rule="own_attempt",
        trajectory_id="run/iteration=1/collect/p0/0",
        problem_id="p0",
        place=COLLECT,
        turn=0,
        candidate=-1,
        reward=0.0,
        seed=0,
        weight_version=2,
        verifier_version="v1",
    )
    changed = {"source": "candidate", "rule": "best_of_n", "turn": 1, "candidate": 0}
    expected = replace(first.provenance, **changed, reward=1.0, seed=101)
    assert second.provenance == expected
    assert second.id == "run/iteration=1/collect/p0/0/turn=1/candidate=0"


def test_a_teachers_response_is_known_as_one() -> None:
    trajectory = rolled("6 | 7")
    turn = trajectory.turns[0]
    taught = replace(turn.candidates[0], weight_version=-1)
    trajectory = replace(trajectory, turns=(replace(turn, candidates=(taught,)),))
    (example,) = _relabel(trajectory).examples
    assert (example.provenance.source, example.provenance.rule) == ("teacher", "teacher")


def test_many_trajectories_are_relabeled_one_by_one_and_their_counts_added() -> None:
    error = rolled("6 | 7", problem="p1", stop_reason=StopReason.ERROR)
    result = relabel([rolled("6 | 7"), error, error], Improved(), 100, RuleContext(0))
    assert [e.provenance.problem_id for e in result.examples] == ["p0"]
    assert result.dropped == {"trajectory_error": 2}
