"""A run in numbers before it runs: what `rise-ray check` prints last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rise_ray.cluster.connection import required_resources
from rise_ray.config.settings import RunConfig, TrainConfig
from rise_ray.run.plans import of_kind, teacher_workers
from rise_ray.run.specs import Evaluate, Roll, Spec
from rise_ray.train.deepspeed_config import batch_sizes


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of the longest prompt that was looked at, of the feedback after an attempt, and of an
    evaluation's question with the word that answers it, 0 without one."""

    prompt: int
    feedback: int
    question: int


def estimate(
    config: RunConfig, stages: Sequence[Spec], problems: Mapping[str, int], lengths: Lengths | None
) -> list[tuple[str, str]]:
    """Subject and sentence of what a run samples, trains and needs.

    `problems` counts those of each split that could be loaded; without a tokenizer `lengths` is
    None.
    """
    lines = []
    if config.warm_start:
        lines.append(("warm start", f"{config.warm_start.examples:,} demonstrations"))
        lines.append(("  one step", _step(config.warm_start.train)))
    if config.iterations:
        tracks = ", ".join(control.track or control.name for control in config.controls)
        iterations = (
            f"{config.iterations} of {config.recipe.name}, each from the {config.start_from} model "
            f"on {config.data} data{tracks and f'; beside it {tracks}'}"
        )
        lines.append(("iterations", iterations))
        first = [roll for roll in of_kind(Roll, stages) if roll.place.iteration == 1]
        there = problems.get(config.split)
        lines += [(f"  {roll.place}", _sampled(config, roll, there)) for roll in first]
        lines.append(("  one step", _step(config.train)))
    lines.append(("evaluation", _evaluation(config, stages, problems.get(config.evaluation.split))))
    if lengths is not None:
        lines.append(("longest state", _longest_state(config, stages, lengths)))
    needed = required_resources(config, teacher_workers(stages))
    at_once = ", ".join(f"{amount:g} {name}" for name, amount in needed.items())
    lines.append(("resources", f"{at_once} at the same time at least"))
    return lines


def _sampled(config: RunConfig, roll: Roll, there: int | None) -> str:
    episodes, count = roll.episodes, config.problems or there
    if episodes.candidates is None:
        return f"first answers, for as many tokens as {roll.like} samples"
    states = 1 if episodes.first_state_only else episodes.turns
    each = episodes.turns + states * episodes.candidates
    sampled = f"{episodes.turns} turns"
    if episodes.candidates:
        at = "at the first" if episodes.first_state_only else "at each"
        sampled += f" + {episodes.candidates} candidates {at}"
    taught = episodes.teacher.kind
    teacher = "" if taught == "none" else f" and as many answers of the {taught} teacher"
    if count is None:
        return f"up to {each:,} responses per problem ({sampled}){teacher}"
    return f"{count:,} problems x ({sampled}) = up to {count * each:,} responses{teacher}"


def _evaluation(config: RunConfig, stages: Sequence[Spec], there: int | None) -> str:
    protocol, models = config.evaluation, len(of_kind(Evaluate, stages))
    each = protocol.turns + protocol.parallel
    sampled = f"{protocol.samples} samples x ({protocol.turns} turns + {protocol.parallel})"
    if there is None:
        return f"of {models} models, {sampled} on each problem of `{protocol.split}`"
    count = min(protocol.problems or there, there)
    total = count * protocol.samples * each
    return f"of {models} models: {count:,} problems x {sampled} = {total:,} responses each"


def _step(train: TrainConfig) -> str:
    rows = train.batch_tokens // train.row_tokens
    sizes = batch_sizes(rows, train.rows_per_pass, train.workers)
    passes = sizes["gradient_accumulation_steps"]
    return (
        f"{train.batch_tokens:,} tokens = {rows} rows of {train.row_tokens:,}: {train.workers} "
        f"workers x {train.rows_per_pass} rows x {passes} passes (accumulated)"
    )


def _longest_state(config: RunConfig, stages: Sequence[Spec], lengths: Lengths) -> str:
    protocol, most = config.evaluation, config.rollout.sampling.max_tokens
    states = [(r.episodes.turns, r.episodes.window, most, 0) for r in of_kind(Roll, stages)]
    evaluated = protocol.sampling.max_tokens
    states.append((protocol.turns, protocol.window, evaluated, lengths.question))
    needed = 0
    for turns, window, tokens, asked in states:
        before = min(turns, window or turns) - 1
        last = tokens + asked
        needed = max(needed, lengths.prompt + before * (tokens + lengths.feedback) + last)
    limit = config.model.max_model_len
    if needed <= limit:
        return f"at most {needed:,} tokens with its response, of `model.max_model_len` = {limit:,}"
    return (
        f"up to {needed:,} tokens with its response, but `model.max_model_len` = {limit:,}: "
        "trajectories that grow beyond it end as context_overflow"
    )
