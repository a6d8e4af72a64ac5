"""Majority voting over answers: the rule behind mK@t1 and m1@tK.

The sources leave ties and unreadable answers open (RISE.md). The rule here: an unparseable answer
casts no vote, a tie goes to the answer whose first vote is earliest, no votes at all is wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rise_ray.mdp import Outcome, Verdict


def majority(verdicts: Sequence[Verdict]) -> Verdict | None:
    """The verdict that cast the winning answer's first vote; None if nobody voted.

    Ties depend on the order of the verdicts, which is that of the answers.

    Raises:
        ValueError: a verdict is `error` (nothing is known about its answer, so no vote that
            includes it is known either), or names no answer although one was judged.
    """
    votes = [verdict for verdict in verdicts if _casts_vote(verdict)]
    counts = Counter(verdict.answer for verdict in votes)
    # `max` returns the first maximum: the earliest answer wins ties.
    return max(votes, key=lambda verdict: counts[verdict.answer], default=None)


def majority_is_right(verdicts: Sequence[Verdict]) -> bool:
    """Whether the majority's answer is right, by the verdict of its first vote."""
    winner = majority(verdicts)
    return winner is not None and winner.outcome is Outcome.CORRECT


def _casts_vote(verdict: Verdict) -> bool:
    if verdict.outcome is Outcome.ERROR:
        raise ValueError(f"a verdict `error` cannot be voted on: {verdict.reason}")
    if verdict.outcome is Outcome.UNPARSEABLE:
        return False
    if verdict.answer is None:
        raise ValueError(
            f"a verdict `{verdict.outcome.value}` names no answer: the task's `check` must set it"
        )
    return True
