"""Rejection sampling's own settings, alone and as a control."""

from __future__ import annotations

import pytest

from rise_ray.errors import ConfigError
from rise_ray.recipes.rejection_sampling import RejectionSampling
from rise_ray.relabel.rules.right_answers import RightAnswers
from rise_ray.run.plans import evaluated_models, of_kind
from rise_ray.run.specs import Episodes, Roll, Rows, Train
from tests.unit.recipes.declared import declared, declared_by_controls


def test_a_control_has_what_the_compared_track_sampled_and_epochs_of_its_own() -> None:
    stages = declared_by_controls(RejectionSampling())
    for roll in of_kind(Roll, stages):
        assert roll.episodes == Episodes(candidates=None, first_state_only=True)
        assert roll.like == "iteration"
    assert {(training.epochs, training.like) for training in of_kind(Train, stages)} == {(8, None)}
    faster = of_kind(Train, declared_by_controls(RejectionSampling(lr=2e-3)))
    assert {training.lr for training in faster} == {2e-3}


def test_alone_every_iteration_is_evaluated_and_of_a_control_the_last() -> None:
    alone = evaluated_models(declared(RejectionSampling(samples=8)))
    assert list(alone) == ["iteration-1", "iteration-2"]
    control = evaluated_models(declared_by_controls(RejectionSampling()))
    assert list(control) == ["rejection_sampling-2"]


def test_its_samples_are_the_attempt_and_the_candidates() -> None:
    (roll, *_) = of_kind(Roll, declared(RejectionSampling(samples=8)))
    assert (roll.episodes.turns, roll.episodes.candidates) == (1, 7)


def test_its_layout_and_number_of_answers_are_the_rules() -> None:
    stages = declared_by_controls(RejectionSampling(layout="chat", answers=None))
    expected = RightAnswers(layout="chat", answers=None)
    assert {rows.rule for rows in of_kind(Rows, stages)} == {expected}
    assert all(roll.episodes.last_feedback for roll in of_kind(Roll, stages))


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (RejectionSampling(), "iteration-1/collect samples: on its own"),
        (RejectionSampling(samples=8, epochs="equal_tokens"), "iteration-1/train trains: on its"),
    ],
)
def test_alone_it_has_no_budget_of_another(recipe: RejectionSampling, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        declared(recipe)
