"""Text is safe to show, and a comparison says what its interval allows and no more."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rise_ray.config.settings import SamplingConfig
from rise_ray.evaluate.compare import CONTROLS_VOTE, TRAINED
from rise_ray.report.words import finding, plainly, points, sentence, temperatures
from rise_ray.text import printable


def comparison(value: float | None, low: float | None, high: float | None) -> dict[str, Any]:
    return {
        "left": {"model": "iteration-2", "metric": "p1@t5", "value": 0.654},
        "right": {"model": "base", "metric": "m1@t5", "value": 0.424},
        "note": "a note",
        **{"value": value, "low": low, "high": high, "n": 542},
    }


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.01, 0.05, "gain"),
        (-0.05, -0.01, "loss"),
        (-0.01, 0.05, "not distinguishable from 0"),
        (0.0, 0.05, "not distinguishable from 0"),
        (-0.05, 0.0, "not distinguishable from 0"),
        (None, None, "not measured"),
    ],
)
def test_only_an_interval_without_0_is_a_gain_or_a_loss(
    low: float | None, high: float | None, expected: str
) -> None:
    middle = None if low is None or high is None else (low + high) / 2
    assert finding(comparison(middle, low, high)) == expected


def test_a_sentence_names_both_figures_the_interval_and_the_oracle() -> None:
    assert sentence(comparison(0.23, 0.207, 0.253)) == (
        "iteration-2 p1@t5 (oracle) (65.4) against base m1@t5 (42.4): a gain, "
        "+23.0 points [+20.7, +25.3], on 542 problems (a note)."
    )
    assert ": a loss, -3.1 points [-5.0, -1.2]," in sentence(comparison(-0.031, -0.05, -0.012))
    assert ": not distinguishable from 0, +0.4 points" in sentence(comparison(0.004, -0.01, 0.02))
    assert "not measured" in sentence(comparison(None, None, None))


def test_what_was_gained_and_what_a_control_gives_is_said_plainly() -> None:
    def sides(note: str, left: str, right: str, metric: str) -> dict[str, Any]:
        one = comparison(0.23, 0.207, 0.253) | {"note": note}
        one["left"] |= {"model": left, "metric": "m1@t5"}
        one["right"] |= {"model": right, "metric": metric}
        return one

    trained = sides(TRAINED, "iteration-2", "base", "m1@t5")
    control = sides(CONTROLS_VOTE, "iteration-2", "mine-2\x1b", "m4@t1")
    assert plainly([trained, comparison(0.1, 0.0, 0.2), control]) == [
        "iteration-2 is right on 65.4% of the problems by a majority over 5 turns; base on 42.4%.",
        "The control mine-2\\x1b comes to 42.4% by a majority over 4 first answers, the better of "
        "its votes. The difference is a gain, +23.0 points [+20.7, +25.3].",
    ]
    single = sides(TRAINED, "iteration-2", "base", "m1@t1")
    single["left"]["metric"] = "m1@t1"
    assert "by its first answer;" in plainly([single])[0]
    unmeasured = trained | {"value": None}
    assert plainly([unmeasured]) == []


def test_a_difference_that_rounds_to_0_has_no_minus() -> None:
    assert points(-0.0001) == "+0.0"


@given(st.text())
def test_printable_text_steers_no_terminal_and_encodes(text: str) -> None:
    shown = printable(text)
    shown.encode("utf-8")
    assert not {"Cc", "Cf", "Cs"} & {
        unicodedata.category(character) for character in shown if character not in "\n\t"
    }


def test_printable_keeps_what_people_read() -> None:
    assert printable("x \u2264 3\n\tok") == "x \u2264 3\n\tok"
    assert printable("\x1b[31m\u202e\ud800") == "\\x1b[31m\\u202e\\ud800"


def test_another_temperature_in_later_states_is_said() -> None:
    assert temperatures(SamplingConfig(temperature=0.7).model_dump()) == "temperature 0.7"
    later = SamplingConfig(temperature=0.7, later_temperature=1.0).model_dump()
    assert temperatures(later) == "temperature 0.7 at the first turn, 1 later"
