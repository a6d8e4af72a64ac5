"""A variant trains again on what another track has rolled."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from rise_ray.errors import ConfigError
from rise_ray.mdp import Place
from rise_ray.recipes.rise import Boost
from rise_ray.recipes.variant import Variant
from rise_ray.relabel.rules.improved import Improved
from rise_ray.relabel.rules.right_answers import RightAnswers
from rise_ray.run.plans import of_kind
from rise_ray.run.specs import BASE, Evaluate, Rows, Train, Weights
from tests.unit.recipes.declared import declared, declared_by_controls

COLLECTED = (Place("iteration", 1, "collect"), Place("iteration", 2, "collect"))
PLAIN = Variant(track="again", rule=Improved(tau=None), epochs=3, lr=5e-4)


def test_it_rolls_nothing_but_its_evaluation_and_trains_once_from_the_base() -> None:
    stages = declared_by_controls(PLAIN)
    assert [s.key for s in stages] == [f"again-2/{p}" for p in ("relabel", "train", "eval")]
    (rows,), (training,) = of_kind(Rows, stages), of_kind(Train, stages)
    assert (rows.rule, rows.sources) == (PLAIN.rule, COLLECTED)
    assert (training.start, training.epochs, training.lr) == (BASE, 3, 5e-4)
    assert of_kind(Evaluate, stages)[0].weights == training.weights


def test_it_may_be_boosted_like_rise() -> None:
    stages = declared_by_controls(PLAIN.model_copy(update={"boost": Boost(answers=2)}))
    boost, training = of_kind(Train, stages)
    assert training.start == boost.weights
    assert of_kind(Rows, stages)[0].rule == RightAnswers(answers=2, turns="all")


def test_it_may_take_the_boosted_weights_of_an_earlier_track() -> None:
    first = Variant(track="first", rule=Improved(), boost=Boost())
    taking = PLAIN.model_copy(update={"boost": Boost(of="first", rehearse=True)})
    (training,) = of_kind(Train, declared_by_controls(first, taking))
    assert training.start == Weights("first", 2, "train_boost")
    with pytest.raises(
        ConfigError, match="again-2/train starts from first=2-train_boost, which no"
    ):
        declared_by_controls(taking)


@pytest.mark.parametrize("own", [{"epochs": 3}, {"lr": 1e-3}])
def test_boosted_weights_that_are_taken_are_not_trained_otherwise(own: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="`of: first` is trained already"):
        Boost(of="first", **own)
    taken = Boost(of="first", answers=8)
    assert Boost.model_validate(taken.model_dump()) == taken


def test_what_it_trains_on_has_to_be_rolled_before() -> None:
    for elsewhere, place in (
        ({"of": "nobody"}, "nobody-1/collect"),
        ({"phase": "ask"}, "on-1/ask"),
    ):
        wrong = PLAIN.model_copy(update=elsewhere)
        with pytest.raises(ConfigError, match=f"again-2/relabel is made of .*{place}, which no"):
            declared_by_controls(wrong)


def test_it_is_no_recipe_of_a_run() -> None:
    with pytest.raises(ConfigError, match="a `variant` is a control"):
        declared(PLAIN)
