"""A run in numbers before it runs: what `rise-ray check` prints last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rise_ray.cluster.connection import required_resources
from rise_ray.config.settings import RunConfig, TrainConfig
from rise_ray.run.plans import evaluated_models
from rise_ray.train.deepspeed_config import passes_per_step


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of the longest prompt that was looked at, and of the feedback after an attempt."""

    prompt: int
    feedback: int


def estimate(
    config: RunConfig, problems: Mapping[str, int], lengths: Lengths | None
) -> list[tuple[str, str]]:
    """Subject and sentence of what a run samples, trains and needs.

    Args:
        config: the run.
        problems: of each split, where it could be loaded.
        lengths: None where no tokenizer could be loaded.
    """
    lines = []
    if config.warm_start:
        lines.append(("warm start", f"{config.warm_start.examples:,} demonstrations"))
        lines.append(("  one step", _step(config.warm_start.train)))
    if config.iterations:
        lines.append(("iterations", _iterations(config)))
        lines.append(("  collect", _collect(config, problems.get(config.split))))
        lines.append(("  one step", _step(config.train)))
    lines.append(("evaluation", _evaluation(config, problems.get(config.evaluation.split))))
    if lengths is not None:
        lines.append(("longest state", _longest_state(config, lengths)))
    needed = required_resources(config)
    at_once = ", ".join(f"{amount:g} {name}" for name, amount in needed.items())
    lines.append(("resources", f"{at_once} at the same time at least"))
    return lines


def _iterations(config: RunConfig) -> str:
    control = ", and as many of the control" if config.control.enabled else ""
    return f"{config.iterations}, each from the {config.start_from} model on {config.data} data" + (
        control
    )


def _collect(config: RunConfig, there: int | None) -> str:
    rollout, count = config.rollout, config.problems or there
    if config.relabel.strategy == "distill":
        each, sampled = rollout.turns, f"{rollout.turns} turns"
        teacher = f" and as many answers of the {config.teacher.kind} teacher"
    else:
        each = rollout.turns * (1 + rollout.candidates)
        sampled = f"{rollout.turns} turns x (1 + {rollout.candidates} candidates)"
        teacher = ""
    if count is None:
        return f"up to {each:,} responses per problem ({sampled}){teacher}"
    return f"{count:,} problems x {sampled} = up to {count * each:,} responses{teacher}"


def _evaluation(config: RunConfig, there: int | None) -> str:
    protocol, models = config.evaluation, len(evaluated_models(config))
    each = protocol.turns + protocol.parallel
    sampled = f"{protocol.samples} samples x ({protocol.turns} turns + {protocol.parallel})"
    if there is None:
        return f"of {models} models, {sampled} on each problem of `{protocol.split}`"
    count = min(protocol.problems or there, there)
    total = count * protocol.samples * each
    return f"of {models} models: {count:,} problems x {sampled} = {total:,} responses each"


def _step(train: TrainConfig) -> str:
    rows = train.batch_tokens // train.row_tokens
    return (
        f"{train.batch_tokens:,} tokens = {rows} rows of {train.row_tokens:,}: {train.workers} "
        f"workers x {train.rows_per_pass} rows x {passes_per_step(train)} passes (accumulated)"
    )


def _longest_state(config: RunConfig, lengths: Lengths) -> str:
    needed = max(
        _tokens(lengths, turns, window, max_tokens)
        for turns, window, max_tokens in (
            (config.rollout.turns, config.rollout.window, config.rollout.sampling.max_tokens),
            (
                config.evaluation.turns,
                config.evaluation.window,
                config.evaluation.sampling.max_tokens,
            ),
        )
    )
    limit = config.model.max_model_len
    if needed <= limit:
        return f"at most {needed:,} tokens with its response, of `model.max_model_len` = {limit:,}"
    return (
        f"up to {needed:,} tokens with its response, but `model.max_model_len` = {limit:,}: "
        "trajectories that grow beyond it end as context_overflow"
    )


def _tokens(lengths: Lengths, turns: int, window: int | None, max_tokens: int) -> int:
    shown = min(turns, window or turns) - 1
    return lengths.prompt + shown * (max_tokens + lengths.feedback) + max_tokens
