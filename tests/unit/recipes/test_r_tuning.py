"""R-Tuning: greedy attempts beside reference answers, own answers, one training, one evaluation."""

from __future__ import annotations

import pytest

from rise_ray.config.loading import parse_config
from rise_ray.config.recipe import RecipeConfig
from rise_ray.config.settings import CertaintyQuestion
from rise_ray.errors import ConfigError
from rise_ray.mdp import Place
from rise_ray.recipes.r_tuning import RTuning
from rise_ray.relabel.rules.certainty import Certainty
from rise_ray.run.plans import eval_plan, of_kind, roll_plan
from rise_ray.run.specs import BASE, Roll, Rows, Spec, Train
from rise_ray.run.tracks import stages_of

TEXT = """
name: demo
task: {name: countdown}
model: {path: m}
iterations: 1
evaluation: {question: {text: "Sure ?", right: sure, wrong: unsure}}
"""
CONFIG = parse_config(TEXT, [], source="test")


def declared(recipe: RecipeConfig, *controls: RecipeConfig) -> list[Spec]:
    config = CONFIG.model_copy(update={"recipe": recipe, "controls": controls})
    return stages_of(config)


def test_it_rolls_greedy_attempts_with_references_and_sampled_answers() -> None:
    stages = declared(RTuning(samples=8))
    reference, answers = of_kind(Roll, stages)
    assert (reference.key, answers.key) == ("iteration-1/reference", "iteration-1/answers")
    assert reference.episodes.teacher.kind == "reference"
    assert roll_plan(CONFIG, reference, 0).sampling.temperature == 0
    plan = roll_plan(CONFIG, answers, 0)
    assert (plan.sampling, plan.candidates, plan.turns) == (CONFIG.rollout.sampling, 7, 1)
    (rows,), (training,) = of_kind(Rows, stages), of_kind(Train, stages)
    assert rows.sources == (reference.place, answers.place)
    assert training.start == BASE


def test_it_teaches_the_question_that_evaluations_ask() -> None:
    (rows,) = of_kind(Rows, declared(RTuning(labels_on="reference", label_weight=3)))
    question = CertaintyQuestion(text="Sure ?", right="sure", wrong="unsure")
    assert rows.rule == Certainty(labels_on="reference", label_weight=3, question=question)
    asked = eval_plan(CONFIG, Place("iteration", 1, "eval")).question
    assert asked is not None
    assert (asked.name, asked.text, asked.words) == ("sure", "Sure ?", ("sure", "unsure"))


def test_its_controls_take_the_same_answers() -> None:
    stages = declared(RTuning(), RTuning(track="vanilla", labels_on="none", of="iteration"))
    assert [s.key for s in stages if s.key.startswith("vanilla")] == [
        f"vanilla-1/{phase}" for phase in ("relabel", "train", "eval")
    ]
    own, control = of_kind(Rows, stages)
    assert control.sources == own.sources


def test_without_a_question_there_is_nothing_to_teach() -> None:
    config = CONFIG.model_copy(
        update={
            "recipe": RTuning(),
            "evaluation": CONFIG.evaluation.model_copy(update={"question": None}),
        }
    )
    with pytest.raises(ConfigError, match=r"`evaluation.question` is null"):
        stages_of(config)
    asked_nothing = eval_plan(config, Place("iteration", 1, "eval"))
    assert asked_nothing.question is None
