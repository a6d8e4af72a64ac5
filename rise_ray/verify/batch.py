"""What is to be checked together, and its verdicts so far."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace

from rise_ray.mdp import Problem, Verdict

Item = tuple[Problem, str]
"""A problem, and a response to it."""


class Batch:
    """The items of one `Checker.check`; `future` has their verdicts, in their order."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items
        self.future: Future[list[Verdict]] = Future()
        self.future.set_running_or_notify_cancel()
        self._verdicts: dict[int, Verdict] = {}
        self._return_if_whole()

    def settle(self, index: int, verdict: Verdict) -> None:
        """Keep the verdict of an item, in a form that every store takes."""
        self._verdicts[index] = replace(
            verdict,
            answer=verdict.answer and _storable(verdict.answer),
            reason=_storable(verdict.reason),
        )
        self._return_if_whole()

    def _return_if_whole(self) -> None:
        if len(self._verdicts) == len(self.items):
            self.future.set_result([self._verdicts[index] for index in range(len(self.items))])


Work = tuple[Batch, int]
"""An item: its batch, and where it is there."""


def _storable(text: str) -> str:
    """Lone surrogates, which are not Unicode, are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()
