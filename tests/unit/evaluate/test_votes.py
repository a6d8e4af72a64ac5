"""The vote rule: earliest wins ties, unreadable answers do not vote, no votes is wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rise_ray.evaluate.votes import majority, majority_is_right
from rise_ray.mdp import Outcome, Verdict
from tests.unit.evaluate.builders import verdict, verdicts

readable = st.lists(st.sampled_from("5678"), max_size=7).map(" ".join)


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        ("7", "7"),
        ("5 7 7", "7"),
        ("5 7", "5"),  # tie: the first vote is earlier
        ("7 5 5 7", "7"),
        ("6 5 7 5 7", "5"),  # 5 and 7 tie behind a single 6
        ("? ? 7", "7"),
        ("? 5 ? 7 7 ?", "7"),
    ],
)
def test_most_votes_win_and_ties_go_to_the_earliest_answer(answers: str, winner: str) -> None:
    found = majority(verdicts(answers))
    assert found is not None
    assert found.answer == winner
    assert majority_is_right(verdicts(answers)) == (winner == "7")


@pytest.mark.parametrize("answers", ["", "?", "? ? ?"])
def test_no_votes_is_wrong(answers: str) -> None:
    assert majority(verdicts(answers)) is None
    assert not majority_is_right(verdicts(answers))


def test_the_first_vote_of_the_winning_answer_decides_whether_it_is_right() -> None:
    right = Verdict(Outcome.CORRECT, "1/2", "first")
    wrong = Verdict(Outcome.INCORRECT, "1/2", "second")
    assert majority_is_right([right, wrong])
    assert not majority_is_right([wrong, right])


def test_a_failed_check_is_never_a_vote() -> None:
    with pytest.raises(ValueError, match="deadline"):
        majority(verdicts("7 ! 7"))


def test_a_judged_answer_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="names no answer"):
        majority([Verdict(Outcome.CORRECT, None, "")])


@given(readable, st.integers(0, 5))
def test_appended_unparseable_answers_change_nothing(answers: str, extra: int) -> None:
    votes = verdicts(answers)
    assert majority(votes + [verdict("?")] * extra) == majority(votes)


@given(readable, st.sampled_from("5678"))
def test_a_strict_majority_wins_in_any_order(answers: str, winner: str) -> None:
    votes = verdicts(answers)
    found = majority(votes + [verdict(winner)] * (len(votes) + 1))
    assert found is not None
    assert found.answer == winner
