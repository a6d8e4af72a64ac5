"""Requests say what cannot be answered before they are sent."""

from __future__ import annotations

import pytest

from rise_ray.rollout.requests import ScoreSpans


@pytest.mark.parametrize("span", [(0, 2), (2, 2), (3, 2), (1, 4)])
def test_a_span_is_of_tokens_that_have_one_before_them(span: tuple[int, int]) -> None:
    assert ScoreSpans((5, 6, 7), ((1, 3), (2, 3)))
    with pytest.raises(ValueError, match=f"span {span[0]}:{span[1]} is not within 1:3"):
        ScoreSpans((5, 6, 7), ((1, 2), span))
