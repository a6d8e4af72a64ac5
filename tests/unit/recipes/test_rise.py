"""RISE's own settings, and what they make of its stages."""

from __future__ import annotations

import pytest

from rise_ray.config.teacher import ReferenceTeacher
from rise_ray.mdp import Place
from rise_ray.recipes.rise import Boost, LastTraining, Rise
from rise_ray.recipes.variant import Variant
from rise_ray.relabel.rules.improved import Improved
from rise_ray.relabel.rules.rehearsed import Rehearsed
from rise_ray.relabel.rules.revision import Revision
from rise_ray.relabel.rules.right_answers import RightAnswers
from rise_ray.run.plans import of_kind
from rise_ray.run.specs import BASE, Episodes, Evaluate, Roll, Rows, Train, Weights
from tests.unit.recipes.declared import declared, declared_by_controls

SECOND = Weights("iteration", 2)


def test_by_itself_it_samples_candidates_at_every_visited_state() -> None:
    recipe = Rise(turns=5, window=2, stop_on_success=False, candidates=8, feedback="neutral")
    for roll in of_kind(Roll, declared(recipe)):
        assert roll.episodes == Episodes(
            turns=5, window=2, stop_on_success=False, candidates=8, feedback="neutral"
        )


def test_a_teacher_answers_in_place_of_candidates() -> None:
    teacher = ReferenceTeacher(kind="reference")
    roll = of_kind(Roll, declared(Rise(teacher=teacher)))[0]
    assert (roll.episodes.candidates, roll.episodes.teacher) == (0, teacher)


def test_every_iteration_rolls_the_last_model_trains_on_its_rule_and_is_evaluated() -> None:
    rule = Revision(wrong_weight=1.25)
    stages = declared(Rise(rule=rule))
    assert [roll.weights for roll in of_kind(Roll, stages)] == [BASE, Weights("iteration", 1)]
    assert {rows.rule for rows in of_kind(Rows, stages)} == {rule}
    training = of_kind(Train, stages)[-1]
    assert (training.rows, training.weights) == (Place("iteration", 2, "relabel"), SECOND)
    assert (training.epochs, training.like) == (None, None)  # `train.epochs`
    assert of_kind(Evaluate, stages)[-1].weights == SECOND


def test_a_boost_is_a_training_on_right_first_answers_from_which_the_improving_one_starts() -> None:
    boosted = Rise(boost=Boost(answers=3, epochs=6, lr=2e-3))
    stages = declared(boosted)
    right, improved = [rows for rows in of_kind(Rows, stages) if rows.place.iteration == 2]
    assert (right.rule, right.sources) == (RightAnswers(answers=3, turns="all"), improved.sources)
    boost, training = [train for train in of_kind(Train, stages) if train.place.iteration == 2]
    assert (boost.start, boost.rows, boost.epochs, boost.lr) == (BASE, right.place, 6, 2e-3)
    assert (training.start, training.rows) == (boost.weights, improved.place)
    assert (training.epochs, training.lr) == (None, None)  # `train.epochs`, `train.lr`
    assert (boost.key, boost.name) == ("iteration-2/train_boost", "iteration-2-train_boost")
    assert (boost.weights.name, SECOND.name) == ("iteration=2-train_boost", "iteration=2")
    assert of_kind(Evaluate, stages)[-1].weights == SECOND
    plain = [spec for spec in stages if "boost" not in spec.key]
    assert [spec.key for spec in plain] == [spec.key for spec in declared(Rise())]


def test_what_it_was_boosted_with_may_come_again_among_the_improving_rows() -> None:
    right = RightAnswers(answers=3, turns="all")
    for recipe in (
        declared(Rise(rule=Revision(), boost=Boost(answers=3, rehearse=True))),
        declared_by_controls(
            Variant(track="v", rule=Revision(), boost=Boost(answers=3, rehearse=True))
        ),
    ):
        improved = next(s for s in of_kind(Rows, reversed(recipe)))
        assert improved.rule == Rehearsed(rule=Revision(), right=right)


def test_the_last_training_may_be_another_and_those_before_it_are_not() -> None:
    last = LastTraining(rule=Revision(answers=4), boost=Boost(epochs=16), epochs=3, lr=7e-4)
    stages = declared(Rise(rule=Revision(), last=last))
    plain = declared(Rise(rule=Revision()))
    assert stages[: len(plain) // 2] == plain[: len(plain) // 2]
    first, boost, training = of_kind(Train, stages)
    assert (first.start, first.epochs, first.lr) == (BASE, None, None)
    assert (boost.start, boost.epochs) == (BASE, 16)
    assert (training.start, training.epochs, training.lr) == (boost.weights, 3, 7e-4)
    assert of_kind(Rows, stages)[-1].rule == Revision(answers=4)
    assert of_kind(Evaluate, stages)[-1].weights == training.weights == SECOND


def test_somebody_has_to_improve() -> None:
    with pytest.raises(ValueError, match="without a `teacher` RISE needs `candidates` >= 1"):
        Rise(candidates=0)
    assert Rise(candidates=0, teacher=ReferenceTeacher(kind="reference")).rule == Improved()


def test_revision_chooses_among_candidates_and_so_takes_no_teacher() -> None:
    with pytest.raises(ValueError, match="it takes no `teacher`"):
        Rise(rule=Revision(), teacher=ReferenceTeacher(kind="reference"))
