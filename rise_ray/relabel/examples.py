"""One trajectory to its weighted examples: selection, weights, lineage. A pure function."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from rise_ray.config.settings import RelabelConfig
from rise_ray.mdp import (
    Example,
    Phase,
    Provenance,
    Span,
    StopReason,
    Trajectory,
    derive_seed,
    state_at,
)
from rise_ray.relabel.rewards import center_of, is_degenerate, reward_of, weight_of
from rise_ray.relabel.select import Selected, improved, rejection_sampled, revision


@dataclass
class Relabeled:
    """Examples, and how many responses did not become one, by reason."""

    examples: list[Example] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


def relabel(trajectory: Trajectory, config: RelabelConfig, max_tokens: int, seed: int) -> Relabeled:
    """The examples of one trajectory.

    A trajectory of the control phase goes through rejection sampling with weight 1; any other
    through the rule of `config`. A trajectory that ended as `error` gives none.

    Args:
        trajectory: as stored.
        config: rule, filter, tau, centering.
        max_tokens: longest state plus response; a teacher's answer may be longer.
        seed: of the control's draw, together with the trajectory's id.
    """
    result = Relabeled()
    if trajectory.stop_reason is StopReason.ERROR:
        result.dropped["trajectory_error"] += 1
        return result
    seen: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
    for choice in _choose(trajectory, config, seed, result.dropped):
        response = choice.response(trajectory)
        if config.drop_degenerate and is_degenerate(response.text):
            result.dropped["degenerate"] += 1
            continue
        state = state_at(
            trajectory.prompt_ids, trajectory.turns, choice.turn, trajectory.window
        ).token_ids
        if len(state) + len(response.token_ids) > max_tokens:
            result.dropped["too_long"] += 1
            continue
        if config.drop_duplicates and (state, response.token_ids) in seen:
            result.dropped["duplicate"] += 1
            continue
        reward = reward_of(response, config.unparseable_reward)
        assert reward is not None  # no rule chooses a response without one
        weight = _weight(trajectory, choice, reward, config)
        if weight is None:
            result.dropped["no_center"] += 1
            continue
        seen.add((state, response.token_ids))
        result.examples.append(_example(trajectory, choice, state, reward, weight))
    return result


def relabel_all(
    trajectories: Iterable[Trajectory], config: RelabelConfig, max_tokens: int, seed: int
) -> Relabeled:
    """`relabel` over many trajectories, in their order."""
    total = Relabeled()
    for trajectory in trajectories:
        one = relabel(trajectory, config, max_tokens, seed)
        total.examples += one.examples
        total.dropped += one.dropped
    return total


def _choose(
    trajectory: Trajectory, config: RelabelConfig, seed: int, dropped: Counter[str]
) -> Iterable[Selected]:
    if trajectory.phase is Phase.CONTROL:
        rng = random.Random(derive_seed(seed, "rejection_sampling", trajectory.id))
        return rejection_sampled(trajectory, rng)
    if config.filter == "revision":
        return revision(trajectory, config, dropped)
    return improved(trajectory, config, dropped)


def _weight(
    trajectory: Trajectory, choice: Selected, reward: float, config: RelabelConfig
) -> float | None:
    if trajectory.phase is Phase.CONTROL:
        return 1.0
    center = center_of(trajectory, choice.turn, config.centering, config.unparseable_reward)
    if center is None:
        return None
    return choice.factor * weight_of(reward, center, config.tau)


def _example(
    trajectory: Trajectory,
    choice: Selected,
    state: tuple[int, ...],
    reward: float,
    weight: float,
) -> Example:
    response = choice.response(trajectory)
    input_ids = (*state, *response.token_ids)
    source = "candidate" if choice.candidate >= 0 else "attempt"
    return Example(
        id=f"{trajectory.id}/turn={choice.turn}/candidate={choice.candidate}",
        input_ids=input_ids,
        spans=(Span(len(state), len(input_ids), weight),),
        provenance=Provenance(
            source="teacher" if response.weight_version < 0 else source,
            rule=choice.rule,
            trajectory_id=trajectory.id,
            problem_id=trajectory.problem.id,
            iteration=trajectory.iteration,
            turn=choice.turn,
            candidate=choice.candidate,
            reward=reward,
            seed=response.seed,
            weight_version=response.weight_version,
            verifier_version=response.verdict.verifier_version,
        ),
    )
