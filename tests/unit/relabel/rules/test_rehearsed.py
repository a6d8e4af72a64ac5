"""Right answers to the bare problem among another rule's rows."""

from __future__ import annotations

from collections import Counter

from rise_ray.relabel.rule import Row, Rule, RuleContext
from rise_ray.relabel.rules.improved import Improved
from rise_ray.relabel.rules.rehearsed import Rehearsed
from rise_ray.relabel.rules.revision import Revision
from rise_ray.relabel.rules.right_answers import RightAnswers
from tests.unit.relabel.builders import rolled

RIGHT = RightAnswers(answers=None, turns="all")
REVISION = Revision(tau=None)


def rows_of(rule: Rule) -> list[Row]:
    trajectory = rolled("6 | 7+ 7", "5 | 7- 4-")
    return list(rule.rows(trajectory, RuleContext(0), Counter()))


def test_the_rules_own_rows_come_first_and_one_that_both_give_is_one() -> None:
    own, right = rows_of(REVISION), rows_of(RIGHT)
    rows = rows_of(Rehearsed(rule=REVISION, right=RIGHT))
    assert rows[: len(own)] == own
    assert [row.rule for row in own] == ["revision_right", "revision_right", "revision_wrong"]
    rest = rows[len(own) :]
    assert {row.input_ids for row in rest} < {row.input_ids for row in right}
    assert len(rest) == len(right) - 1 == 2  # `7+` at the first state is the rule's, too
    assert {row.rule for row in rest} == {"rejection_sampling"}


def test_what_it_needs_and_drops_is_what_its_rule_does() -> None:
    for rule in (Improved(centering="problem"), Improved(drop_duplicates=False), REVISION):
        mixed = Rehearsed(rule=rule, right=RIGHT)
        assert mixed.needs_tally == rule.needs_tally
        assert mixed.drop_duplicates == rule.drop_duplicates
