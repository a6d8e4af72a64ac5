"""The rows of a rule, and among them right answers to the bare problem once more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from rise_ray.config.base import Settings
from rise_ray.mdp import Trajectory
from rise_ray.relabel.rule import Row, RuleContext
from rise_ray.relabel.rules.improved import Improved
from rise_ray.relabel.rules.revision import Revision
from rise_ray.relabel.rules.right_answers import RightAnswers


class Rehearsed(Settings):
    """What `right` gives comes with what `rule` gives, so that an earlier training is not lost.

    A row that both give is one.
    """

    name: Literal["rehearsed"] = "rehearsed"
    rule: Annotated[Improved | Revision | RightAnswers, Field(discriminator="name")]
    right: RightAnswers

    @property
    def drop_duplicates(self) -> bool:
        return self.rule.drop_duplicates

    @property
    def needs_tally(self) -> bool:
        return self.rule.needs_tally

    def rows(
        self, trajectory: Trajectory, context: RuleContext, dropped: Counter[str]
    ) -> Iterator[Row]:
        own = list(self.rule.rows(trajectory, context, dropped))
        given = {row.input_ids for row in own}
        yield from own
        for row in self.right.rows(trajectory, context, dropped):
            if row.input_ids not in given:
                yield row
