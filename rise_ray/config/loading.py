"""A run's settings as YAML: read with dotted overrides from the command line, checked, written.

    config = load_config("jobs/quickstart.yaml", ["train.lr=5e-4", "recipe.turns=3"])

Imports neither torch nor Ray nor vLLM. Unknown keys and bad values raise `ConfigError` with the
file, the key and what is allowed, and never with a text that was refused: it may be a secret in
the wrong place. For the same reason they do not chain the errors of pydantic and YAML, which
quote what they refuse. (So do pydantic-settings's, which is why its readers are not used.)
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from rise_ray.config.recipe import DEFAULT, RecipeConfig, recipe_class
from rise_ray.config.secrets import redact, secrets_in
from rise_ray.config.settings import RunConfig
from rise_ray.errors import ConfigError

_WORKERS = (
    *("min_workers", "max_workers", "num_cpus", "resources", "episodes_in_flight"),
    *("start_deadline_s", "progress_deadline_s", "max_attempts", "max_error_share"),
    *("vllm.gpu_memory_utilization", "vllm.max_num_seqs", "vllm.max_num_batched_tokens"),
)
_TRAIN = (
    *("num_cpus", "resources", "release_during_rollouts", "rows_per_pass"),
    *("gradient_checkpointing", "max_failures", "max_skipped_steps", "checkpoint_every_s"),
    *("start_deadline_s", "step_deadline_s", "progress_deadline_s"),
)
_TEACHER = (
    *("api_key_env", "concurrency", "requests_per_minute", "max_retries", "deadline_s"),
    *("token_budget", *(f"workers.{name}" for name in _WORKERS)),
)
MAY_CHANGE = frozenset(
    [
        *("ray", "wandb", "sync", "verify", "rollout.release_during_training"),
        *(f"rollout.workers.{name}" for name in _WORKERS),
        *(f"{train}.{name}" for train in ("train", "warm_start.train") for name in _TRAIN),
        *(f"recipe.teacher.{name}" for name in _TEACHER),
    ]
)
"""Settings (groups stand for all that is in them) that say how a run is done and not what is done:
a run that was stopped may go on with others."""

_MISSING = object()
_NOT_YAML = (yaml.YAMLError, ValueError, KeyError)  # `2024-13-45` and `!!bool x`: the latter two
# What YAML's errors quote from the text: `password: *abc` is an alias to YAML.
_YAML_NAME = re.compile(r"\b(alias|anchor|tag|tag handle) ['\"].*")


def load_config(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a YAML file, apply `key.sub=value` overrides (values are YAML), validate.

    Raises:
        ConfigError: with the file, the key, and what is allowed.
    """
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the config: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: the config is not UTF-8 text ({error.reason})") from error
    return parse_config(text, overrides or [], source=str(path))


def parse_config(text: str, overrides: list[str], source: str) -> RunConfig:
    """`load_config` of a text; `source` names it in errors."""
    tree = _parse_tree(text, source)
    for override in overrides:
        _override(tree, override)
    secrets = [f"{source}: `{key}`: {reason}" for key, reason in secrets_in(tree)]
    if secrets:
        raise ConfigError(redact("\n".join(secrets)))
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(redact("\n".join(_explain(source, error, tree)))) from None


def _parse_tree(text: str, source: str) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(text)
    except _NOT_YAML as error:
        raise ConfigError(redact(_explain_yaml(source, error))) from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: the config must be a mapping of settings")
    return tree


def dump_config(config: RunConfig) -> str:
    """The resolved config as YAML: `parse_config(dump_config(c), [], ...) == c`."""
    # ASCII only: some characters that YAML may hold raw come back as line breaks.
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def differences(saved: str, config: RunConfig) -> list[tuple[str, Any, Any]]:
    """Settings that differ: the dotted key, its value in `saved` (YAML) and in `config`.

    `saved` may be an older rise-ray's: what it lacks has today's default, and if it has what there
    is no more, its settings are taken as they stand.

    Raises:
        ConfigError: `saved` is not a config.
    """
    source = "the saved config"
    try:
        tree = parse_config(saved, [], source).model_dump(mode="json")
    except ConfigError:
        tree = _parse_tree(saved, source)
    there = _flat(tree)
    here = _flat(config.model_dump(mode="json"))
    return [
        (key, there.get(key), here.get(key))
        for key in {**there, **here}
        if there.get(key, _MISSING) != here.get(key, _MISSING)
    ]


def may_change(key: str) -> bool:
    """Whether a dotted key is in `MAY_CHANGE`."""
    parts = key.split(".")
    return any(".".join(parts[:length]) in MAY_CHANGE for length in range(1, len(parts) + 1))


def dump_decisive(config: RunConfig) -> str:
    """What makes a run this run: its settings but those in `MAY_CHANGE`, as YAML."""
    settings = _flat(config.model_dump(mode="json")).items()
    return yaml.safe_dump({key: value for key, value in settings if not may_change(key)})


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree's leaves by dotted key; a group without any is nothing."""
    leaves = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        leaves.update(_flat(value, f"{key}.") if isinstance(value, dict) else {key: value})
    return leaves


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {_key_of(override)!r}: write it as key.sub=value")
    *groups, leaf = key.split(".")
    for group in groups:
        if tree.get(group) is None:
            tree[group] = {}
        tree = tree[group]
        if not isinstance(tree, dict):
            raise ConfigError(f"override {_key_of(override)!r}: `{group}` is a value, not a group")
    try:
        tree[leaf] = yaml.safe_load(value)
    except _NOT_YAML:
        raise ConfigError(f"override {_key_of(override)!r}: the value is not valid YAML") from None


def _key_of(override: str) -> str:
    """What may be said of an override: a dotted key of ours. The rest may be a secret."""
    key = re.split(r"[^A-Za-z0-9_.]", redact(override), maxsplit=1)[0]
    return key if key.partition(".")[0] in RunConfig.model_fields else "..."


def _explain_yaml(source: str, error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        problem = _YAML_NAME.sub(r"\1", error.problem or "")
        return f"{source}:{error.problem_mark.line + 1}: not valid YAML: {problem}"
    if isinstance(error, yaml.YAMLError):
        return f"{source}: not valid YAML: {str(error).splitlines()[0]}"
    return f"{source}: not valid YAML: a value is no date, number or boolean (quote what is a text)"


def _explain(source: str, error: ValidationError, tree: dict[str, Any]) -> list[str]:
    lines = []
    for problem in error.errors():
        groups, location = _resolve([str(part) for part in problem["loc"]], tree)
        key = ".".join(location) or "(whole config)"
        if problem["type"] == "extra_forbidden":
            names = [name for group in groups for name in group.model_fields]
            lines.append(f"{source}: `{key}`: unknown setting{_did_you_mean(location[-1], names)}")
        elif problem["type"] == "union_tag_invalid":
            allowed = problem["ctx"]["expected_tags"]
            discriminator = problem["ctx"]["discriminator"].strip("'")
            lines.append(f"{source}: `{key}.{discriminator}`: allowed: {allowed}")
        else:
            message, value = problem["msg"].removeprefix("Value error, "), problem["input"]
            got = f" (got {value!r})" if isinstance(value, int | float | None) else ""
            lines.append(f"{source}: `{key}`: {message}{got}")
    return lines


def _resolve(location: list[str], tree: dict[str, Any]) -> tuple[list[type[BaseModel]], list[str]]:
    """The group that a location of pydantic's ends in, and the location as a user writes it.

    In a group of several kinds pydantic's location holds the kind, which is no part of the key.
    """
    groups: list[type[BaseModel]] = [RunConfig]
    key: list[str] = []
    value: Any = tree
    for part in location[:-1]:
        kinds = [g for g in groups if len(groups) > 1 and _kind(g) == part]
        if kinds:
            groups = kinds
            continue
        key.append(part)
        if isinstance(value, list) and part.isdigit():
            value = value[int(part)]
        else:
            value = value.get(part) if isinstance(value, dict) else None
        fields = [group.model_fields[part] for group in groups if part in group.model_fields]
        if fields:
            groups = [group for field in fields for group in _groups(field.annotation)]
        if groups and issubclass(groups[0], RecipeConfig):
            # The recipe's own class, by the name that the config gives it.
            name = value.get("name", DEFAULT) if isinstance(value, dict) else DEFAULT
            groups = [recipe_class(str(name))]
    return groups, key + location[-1:]


def _kind(group: type[BaseModel]) -> str:
    field = group.model_fields["kind" if "kind" in group.model_fields else "name"]
    return str(get_args(field.annotation)[0])


def _did_you_mean(name: str, names: list[str]) -> str:
    if not names:
        return ""
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean `{close[0]}`?" if close else ""
    return f"{hint} (allowed: {', '.join(names)})"


def _groups(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [group for part in get_args(annotation) for group in _groups(part)]
