"""What a run's rolling stages roll: pure functions of the config and of the declared stages."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from rise_ray.config.settings import RunConfig, SamplingConfig, WorkersConfig
from rise_ray.config.teacher import ModelTeacher, NoTeacher, TeacherConfig
from rise_ray.errors import ConfigError
from rise_ray.evaluate.confidence import SURE
from rise_ray.mdp import MAIN_TRACK, Place, Problem, derive_seed
from rise_ray.rollout.episode import EpisodePlan, Question
from rise_ray.run.specs import Episodes, Evaluate, Roll, Spec, Train

_Spec = TypeVar("_Spec", bound=Spec)


def of_kind(kind: type[_Spec], specs: Iterable[Spec]) -> list[_Spec]:
    """The stages of one kind, in order."""
    return [spec for spec in specs if isinstance(spec, kind)]


def rolling(specs: Iterable[Spec]) -> list[Roll | Evaluate]:
    """The stages that roll episodes, in order."""
    return [spec for spec in specs if isinstance(spec, Roll | Evaluate)]


def next_to_roll(stages: Sequence[Spec], spec: Roll | Evaluate) -> Roll | Evaluate | None:
    """The stage after `spec` if its episodes may be begun while the last of `spec` are rolled.

    They are of the same weights, no teacher has a part in either, and how many responses they have
    does not depend on what was sampled.
    """
    keys = [stage.key for stage in stages]
    following = stages[keys.index(spec.key) + 1]  # the last one is the report
    if not isinstance(following, Roll | Evaluate) or following.weights != spec.weights:
        return None
    open_ended = isinstance(following, Roll) and following.episodes.candidates is None
    return None if open_ended or teacher_of((spec, following)) else following


def evaluated_models(specs: Iterable[Spec]) -> dict[str, Place]:
    """Every model that is evaluated: where its episodes are kept."""
    return {spec.model: spec.place for spec in of_kind(Evaluate, specs)}


def teacher_of(specs: Iterable[Spec]) -> TeacherConfig | None:
    """The teacher of the rolling stages, None where nobody is taught.

    Raises:
        ConfigError: there are two.
    """
    found = [spec.episodes.teacher for spec in of_kind(Roll, specs)]
    named = [teacher for teacher in found if not isinstance(teacher, NoTeacher)]
    if any(teacher != named[0] for teacher in named):
        raise ConfigError("`recipe`, `controls`: a run has one teacher, and these name two")
    return named[0] if named else None


def teacher_workers(specs: Iterable[Spec]) -> WorkersConfig | None:
    """The second pool, of a teacher that is a model."""
    teacher = teacher_of(specs)
    return teacher.workers if isinstance(teacher, ModelTeacher) else None


def iteration_problems(
    config: RunConfig, problems: Sequence[Problem], iteration: int
) -> list[Problem]:
    """The iteration's training problems, on every track: the next `problems` of a seeded shuffle.

    No problem comes again before all have come; every resume gives the same.

    Raises:
        ConfigError: an iteration asks for more problems than there are.
    """
    count = len(problems) if config.problems is None else config.problems
    if count > len(problems):
        raise ConfigError(f"`problems` = {count}: split `{config.split}` has only {len(problems)}")
    order = list(problems)
    random.Random(derive_seed(config.seed, "problems")).shuffle(order)
    start = (iteration - 1) * count
    return [order[n % len(order)] for n in range(start, start + count)]


def evaluation_problems(config: RunConfig, problems: Sequence[Problem]) -> list[Problem]:
    """What every model is measured on, whatever the run's seed: seeds are compared by problem.

    A draw, never the first rows: data sets are sorted (MATH by subject), so these are distributed
    otherwise than the whole. A larger draw contains every smaller one; a whole split is in order.
    """
    protocol, drawn = config.evaluation, list(problems)
    if protocol.problems is not None and protocol.problems < len(drawn):
        random.Random(derive_seed("evaluation", protocol.split)).shuffle(drawn)
    return drawn[: protocol.problems]


def compared_stages(spec: Roll | Train, stages: Iterable[Spec]) -> list[Roll | Train]:
    """The stages that spend what `spec` may spend, too: of its kind, in its iteration."""
    compared = (spec.like, spec.place.iteration)
    return [
        other
        for other in of_kind(type(spec), stages)
        if (other.place.track, other.place.iteration) == compared
    ]


def affordable_candidates(spec: Roll, compared: Sequence[Mapping[str, Any]]) -> int:
    """As many as, with the attempt, cost the tokens that the compared track has sampled.

    One answer is taken to cost what that track's first answers cost; `compared` are the journal's
    counts of what it rolled in the iteration.

    Raises:
        ConfigError: that track sampled nothing at first states.
    """
    first = sum(counts["first_responses"] for counts in compared)
    tokens = sum(counts["first_tokens"] for counts in compared)
    if not tokens:
        raise ConfigError(
            f"{spec.key}: track `{spec.like}`, whose budget it has, sampled no first answer in "
            "this iteration; say how many responses the control samples"
        )
    spent = sum(counts["tokens"] for counts in compared)
    episodes = max(counts["trajectories"] for counts in compared)
    return max(1, math.ceil(spent / episodes / (tokens / first))) - 1


def roll_plan(config: RunConfig, spec: Roll, candidates: int) -> EpisodePlan:
    """What a stage's episodes have in common; `candidates` is for a spec that leaves it open."""
    open_ended = spec.episodes.candidates is None
    episodes = replace(spec.episodes, candidates=candidates) if open_ended else spec.episodes
    sampling = config.rollout.sampling
    if episodes.greedy:
        sampling = sampling.model_copy(update={"temperature": 0.0, "later_temperature": None})
    return _plan(config, spec.place, episodes, sampling)


def eval_plan(config: RunConfig, place: Place) -> EpisodePlan:
    """RISE's protocol: one sequential run, never stopped, and parallel first answers."""
    protocol = config.evaluation
    episodes = Episodes(
        turns=protocol.turns,
        window=protocol.window,
        candidates=protocol.parallel,
        first_state_only=True,
        feedback=protocol.feedback,
    )
    plan = _plan(config, place, episodes, protocol.sampling)
    if (asked := protocol.question) is None:
        return plan
    return replace(plan, question=Question(SURE, asked.text, asked.words))


def _plan(
    config: RunConfig, place: Place, episodes: Episodes, sampling: SamplingConfig
) -> EpisodePlan:
    assert episodes.candidates is not None
    own_draws = place.track != MAIN_TRACK  # each track has its own
    return EpisodePlan(
        run=config.name,
        place=place,
        seed=derive_seed(config.seed, place.track) if own_draws else config.seed,
        turns=episodes.turns,
        window=episodes.window,
        stop_on_success=episodes.stop_on_success,
        candidates=episodes.candidates,
        first_state_only=episodes.first_state_only,
        last_feedback=episodes.last_feedback,
        feedback=episodes.feedback,
        sampling=sampling,
        max_model_len=config.model.max_model_len,
    )
