"""States are spliced from the ids that were sampled, and windows drop whole turns."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rise_ray.mdp import (
    Attempt,
    FinishReason,
    Outcome,
    Place,
    Turn,
    Verdict,
    derive_seed,
    state_ids,
    trajectory_id,
)

IDS = st.lists(st.integers(0, 2**31 - 1), max_size=5).map(tuple)


def _turn(attempt_ids: tuple[int, ...], feedback_ids: tuple[int, ...]) -> Turn:
    verdict = Verdict(Outcome.INCORRECT, "0", "compared")
    attempt = Attempt("text", attempt_ids, FinishReason.STOP, verdict, 0, 0)
    return Turn(attempt, feedback_ids=feedback_ids)


TURNS = st.lists(st.builds(_turn, IDS, IDS), min_size=1, max_size=6)


@given(IDS, TURNS)
def test_without_a_window_a_state_extends_the_state_before_it(
    prompt: tuple[int, ...], turns: list[Turn]
) -> None:
    before = state_ids(prompt, turns, 0, None)
    assert before == prompt
    for number, turn in enumerate(turns, start=1):
        state = state_ids(prompt, turns, number, None)
        added = turn.attempt.token_ids + turn.feedback_ids
        assert state == before + added
        before = state


@given(IDS, TURNS, st.integers(1, 8))
def test_a_window_shows_the_last_turns_whole(
    prompt: tuple[int, ...], turns: list[Turn], window: int
) -> None:
    for number in range(len(turns) + 1):
        shown = turns[max(0, number - (window - 1)) : number]
        assert len(shown) <= window - 1
        whole = [i for turn in shown for i in (*turn.attempt.token_ids, *turn.feedback_ids)]
        assert state_ids(prompt, turns, number, window) == (*prompt, *whole)


@given(IDS, TURNS)
def test_a_window_of_one_shows_no_attempt(prompt: tuple[int, ...], turns: list[Turn]) -> None:
    for number in range(len(turns) + 1):
        assert state_ids(prompt, turns, number, 1) == prompt


@given(IDS, TURNS)
def test_a_wide_window_is_no_window(prompt: tuple[int, ...], turns: list[Turn]) -> None:
    last = len(turns)
    assert state_ids(prompt, turns, last, last + 1) == state_ids(prompt, turns, last, None)


def test_an_episodes_id_says_what_it_is_and_nothing_else() -> None:
    assert (
        trajectory_id("r", Place("rejection_sampling", 2, "eval"), "p/7", 3)
        == "r/rejection_sampling=2/eval/p/7/3"
    )


def test_seeds_are_the_same_on_every_machine_and_fit_a_signed_64_bit_column() -> None:
    assert derive_seed(0, "a", 1) == 5640247956467711177
    assert all(0 <= derive_seed("seed", n) < 2**63 for n in range(1000))


def test_seeds_of_different_names_differ() -> None:
    names = [("a", "bc"), ("ab", "c"), ("abc",), ("a", "b", "c"), ("a", "b", "c", "")]
    assert len({derive_seed(*parts) for parts in names}) == len(names)
