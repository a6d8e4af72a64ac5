"""Trajectories to examples: a rule's rows, with their lineage. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from rise_ray.mdp import Example, Provenance, StopReason, Trajectory
from rise_ray.relabel.rule import Row, Rule, RuleContext, response_at


@dataclass
class Relabeled:
    """Examples, and how many responses did not become one, by reason."""

    examples: list[Example] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


def relabel(
    trajectories: Iterable[Trajectory], rule: Rule, max_tokens: int, context: RuleContext
) -> Relabeled:
    """The examples of trajectories, in their order.

    None of a trajectory that ended as `error`, and none that is longer than `max_tokens`, as a
    teacher's answer may make it.
    """
    result = Relabeled()
    for trajectory in trajectories:
        if trajectory.stop_reason is StopReason.ERROR:
            result.dropped["trajectory_error"] += 1
            continue
        for row in rule.rows(trajectory, context, result.dropped):
            if len(row.input_ids) > max_tokens:
                result.dropped["too_long"] += 1
            else:
                result.examples.append(_example(trajectory, row))
    return result


def _example(trajectory: Trajectory, row: Row) -> Example:
    response = response_at(trajectory, row.turn, row.candidate)
    source = "candidate" if row.candidate >= 0 else "attempt"
    return Example(
        id=f"{trajectory.id}/turn={row.turn}/candidate={row.candidate}",
        input_ids=row.input_ids,
        spans=row.spans,
        provenance=Provenance(
            source="teacher" if response.weight_version < 0 else source,
            rule=row.rule,
            trajectory_id=trajectory.id,
            problem_id=trajectory.problem.id,
            place=trajectory.place,
            turn=row.turn,
            candidate=row.candidate,
            reward=row.reward,
            seed=response.seed,
            weight_version=response.weight_version,
            verifier_version=response.verdict.verifier_version,
        ),
    )
