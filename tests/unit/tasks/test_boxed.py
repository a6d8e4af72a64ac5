r"""The last balanced \boxed{} is found, in linear time."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rise_ray.tasks.boxed import last_boxed


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{72}.", "72"),
        (r"\boxed{1} and then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\fbox{ 5 }", "5"),
        (r"\boxed {5}", "5"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{}", ""),
        (r"\boxed{3} and a truncated \boxed{\frac{4}{", "3"),
        (r"set {1, 2} } } \boxed{6}", "6"),
        (r"no box, \\boxed{7} is a line break and a word", None),
        (r"\boxed", None),
        (r"\boxed{8", None),
        ("", None),
    ],
)
def test_the_last_balanced_box_is_the_answer(text, content):
    assert last_boxed(text) == content


@given(st.text(alphabet=st.sampled_from(list("ab{}\\ "))), st.integers(0, 10**6))
def test_a_box_at_the_end_is_found_whatever_stands_before_it(before, number):
    before += " "  # a backslash at its end would be part of the box's command
    assert last_boxed(rf"{before}\boxed{{{number}}}") == str(number)


@pytest.mark.parametrize("unit", ["{", "}", r"\boxed{", "\\", "{}", r"\boxed{}", "\x00"])
def test_a_megabyte_of_anything_takes_linear_time(unit):
    started = time.process_time()
    last_boxed(unit * (1_000_000 // len(unit)))
    assert time.process_time() - started < 10.0
