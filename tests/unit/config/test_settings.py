"""The settings: typed, refused where they are unknown, and said so that a user can mend them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from rise_ray.config.loading import (
    MAY_CHANGE,
    _groups,
    _resolve,
    dump_config,
    load_config,
    may_change,
    parse_config,
)
from rise_ray.config.recipe import RecipeConfig
from rise_ray.config.settings import RunConfig, Settings
from rise_ray.errors import ConfigError

JOBS = sorted((Path(__file__).parents[3] / "jobs").rglob("*.yaml"))
MINIMAL = "{name: d, task: {name: countdown}, model: {path: m}, recipe: {name: rise}}"
LIGHT = (
    "cli.main",
    "config.loading",
    "config.settings",
    "evaluate.compare",
    "evaluate.metrics",
    "mdp",
    "relabel.examples",
    "relabel.rules.revision",
    "rollout.episode",
    "rollout.leases",
    "run.plans",
    "tasks",
)


class Idle(RecipeConfig):
    """A recipe that does not say what it does."""


class Mine(Idle):
    """A recipe of somebody's own."""

    sweets: int = 3
    """Of its own."""

    def execute(self, track: object) -> None:
        """Nothing."""


def _error(*overrides: str, text: str = MINIMAL) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, list(overrides), source="my.yaml")
    return str(caught.value)


def _all_settings(group: type[BaseModel] = Settings) -> list[type[BaseModel]]:
    found = [
        s for s in group.__subclasses__() if s.__module__.startswith(("rise_ray.c", "rise_ray.re"))
    ]
    return found + [inner for s in found for inner in _all_settings(s)]


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_every_job_file_loads_and_comes_back_from_its_dump(path: Path) -> None:
    config = load_config(path)
    assert parse_config(dump_config(config), [], source="dump") == config


def test_a_dump_says_its_schema_version_first_and_another_one_is_refused() -> None:
    dump = dump_config(parse_config(MINIMAL, [], source="my.yaml"))
    assert dump.startswith("schema_version: '1'\n")
    other = dump.replace("schema_version: '1'", "schema_version: '0'")
    assert _error(text=other) == "my.yaml: `schema_version`: Input should be '1'"


def test_every_setting_says_what_it_means() -> None:
    parse_config(MINIMAL, [], source="my.yaml")  # imports the recipe
    groups = _all_settings()
    assert len(groups) > 15
    assert all(group.__doc__ for group in groups)
    silent = [
        f"{group.__name__}.{name}"
        for group in groups
        for name, field in group.model_fields.items()
        if not field.description and name not in ("kind", "name") and not _groups(field.annotation)
    ]
    assert silent == []  # a group of settings is described by its class


def test_what_may_change_are_settings_and_nothing_that_decides_the_data() -> None:
    for key in MAY_CHANGE:
        setting = key.split(".vllm.")[0]  # what follows is vLLM's
        groups, location = _resolve(setting.split("."), {})
        assert any(location[-1] in group.model_fields for group in groups), key
    decide = (
        "schema_version",
        "seed",
        "model.path",
        "recipe.turns",
        "rollout.workers.num_gpus",
        "train.lr",
    )
    decide = (*decide, "train.workers", "recipe.teacher.model", "rollout.workers.vllm.quantization")
    assert not any(may_change(key) for key in decide)
    assert may_change("rollout.workers.vllm.gpu_memory_utilization")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("recipe.turn=3", "`recipe.turn`: unknown setting; did you mean `turns`?"),
        ("rolout.turns=3", "`rolout`: unknown setting; did you mean `rollout`?"),
        ("rollout.workers.gpus=1", "`rollout.workers.gpus`: unknown setting; did you mean"),
        ("warm_start={examples: 1, train: {l_r: 1}}", "did you mean `lr`?"),
        (
            "recipe.teacher={kind: openai, modle: x}",
            "`recipe.teacher.modle`: unknown setting; did you mean",
        ),
        (
            "controls=[{name: rejection_sampling, answer: 3}]",
            "`controls.0.answer`: unknown setting; ",
        ),
        ("recipe.rule={name: improved, wrong_weight: 2}", "`recipe.rule.wrong_weight`: unknown"),
        (
            "recipe.teacher={kind: model, path: x, workers: {a: 1}}",
            "`recipe.teacher.workers.a`: unknown",
        ),
        ("zzz=1", "`zzz`: unknown setting (allowed: schema_version, name,"),
    ],
)
def test_an_unknown_setting_is_refused_with_its_place_and_the_nearest(
    override: str, said: str
) -> None:
    message = _error(override)
    assert message.startswith("my.yaml: `")
    assert said in message


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("schema_version=2", "`schema_version`: Input should be '1' (got 2)"),
        ("train.lr=fast", "`train.lr`: Input should be a valid number"),
        ("train.betas=[0.5, fast]", "`train.betas.1`: Input should be a valid number"),
        ("train.resources={spot: [1]}", "`train.resources.spot`: Input should be a valid number"),
        (
            "recipe={name: rise, turns: 0}",
            "`recipe.turns`: Input should be greater than or equal to 1 (got 0)",
        ),
        ("name=../x", "`name`: String should match pattern"),
        ("model.scratch={architecture: {}}", "give exactly one of `path` and `scratch`"),
        ("train.batch_tokens=100", "`batch_tokens` must be a multiple of"),
        ("recipe={name: rise, candidates: 0}", "without a `teacher` RISE needs `candidates` >= 1"),
        ("recipe={name: rize}", "`recipe`: unknown recipe `rize` (allowed: rise, rejection"),
        (
            "recipe={name: rise, rule: {name: best}}",
            "`recipe.rule.name`: allowed: 'improved', 'rev",
        ),
        ("recipe={name: 'no.such:Recipe'}", "`no.such` cannot be imported"),
        ("recipe={name: 'rise_ray.mdp:Place'}", "`rise_ray.mdp` has no recipe `Place`"),
        ("controls=[{turns: 3}]", "`controls.0`: a recipe is a mapping with a `name`"),
        ("recipe.track=mine", "the run's own track is `iteration`"),
        ("controls=[{name: rise, track: iteration}]", "two tracks have the same name"),
        ("controls=[{name: rise}, {name: rise}]", "two tracks have the same name"),
        (f"controls=[{{name: '{__name__}:Mine'}}]", f"`{__name__}:Mine` needs a `track`"),
        (f"recipe={{name: '{__name__}:Mine', answers: 3}}", "`recipe.answers`: unknown setting"),
        (f"recipe={{name: '{__name__}:Idle'}}", "`Idle` has no method `execute(track)`"),
        ("rollout.workers.min_workers=2", "`min_workers` is greater than `max_workers`"),
        (
            "evaluation.split=train",
            "`split` and `evaluation.split` are both `train`: a model is not measured on what",
        ),
        ("sync.backend=nccl", "`sync.backend: nccl` needs `rollout.workers.num_gpus`"),
        ("model.max_model_len=4096", "an example must fit a packed row"),
        (
            "verify={deadline_s: 5, progress_deadline_s: 20}",
            "must be greater than 4 times `deadline_s`",
        ),
        (
            "recipe.teacher={kind: psychic}",
            "`recipe.teacher.kind`: allowed: 'none', 'reference', 'openai',",
        ),
    ],
)
def test_a_bad_value_is_refused_with_its_key(override: str, said: str) -> None:
    assert said in _error(override)
    assert "Value error" not in _error(override)


def test_a_recipe_of_ones_own_comes_back_from_the_dump_with_its_settings() -> None:
    recipes = {
        "recipe": {"name": f"{__name__}:Mine", "sweets": 5},
        "controls": [{"name": f"{__name__}:Mine", "track": "fewer", "sweets": 1}],
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in recipes.items()]
    config = parse_config(MINIMAL, overrides, source="x")
    assert isinstance(config.recipe, Mine)
    assert [recipe.sweets for recipe in (config.recipe, *config.controls)] == [5, 1]
    assert parse_config(dump_config(config), [], source="dump") == config


def test_a_run_that_trains_nothing_may_be_measured_on_the_training_split() -> None:
    untrained = parse_config(MINIMAL, ["evaluation.split=train", "iterations=0"], source="x")
    assert untrained.evaluation.split == untrained.split
    assert "are both `train`" in _error(
        "evaluation.split=train", "iterations=0", "warm_start.examples=3"
    )


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed", "override 'seed': write it as key.sub=value"),
        ("=1", "write it as key.sub=value"),
        ("name.x=1", "`name` is a value, not a group"),
        ("seed=[1", "override 'seed': the value is not valid YAML"),
        ("seed=2024-13-45", "override 'seed': the value is not valid YAML"),
    ],
)
def test_an_override_that_is_none_is_refused(override: str, said: str) -> None:
    assert said in _error(override)


def test_all_mistakes_are_said_at_once() -> None:
    lines = _error("seed=-1", "recipe={name: rise, turns: 0}", "zzz=1").splitlines()
    assert len(lines) == 3
    assert all(line.startswith("my.yaml: `") for line in lines)


def test_a_value_of_an_override_is_yaml_and_a_group_can_be_opened_by_it() -> None:
    config = parse_config(
        MINIMAL + "\n",
        [
            "recipe.name=rise",
            "recipe.window=null",
            "train.betas=[0.5, 0.6]",
            "warm_start.examples=3",
            "train.lr=1e-4",
        ],
        source="my.yaml",
    )
    assert config.recipe.model_dump()["window"] is None
    assert config.train.betas == (0.5, 0.6)
    assert config.train.lr == 1e-4
    assert config.warm_start is not None
    assert config.warm_start.examples == 3
    empty = "{name: d, task: {name: t}, model: {path: m}, warm_start: null}"
    assert parse_config(empty, ["warm_start.examples=3"], source="x").warm_start is not None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1\nb: 2", "my.yaml:2: not valid YAML: expected"),
        ("a:\n\t- b", "my.yaml:2: not valid YAML: found character"),
        ("a: !!python/object:os.system x", "my.yaml:1: not valid YAML: could not determine"),
        ("a: 2024-13-45", "my.yaml: not valid YAML: a value is no date"),
        ("a: !!bool x", "my.yaml: not valid YAML: a value is no date, number or boolean"),
        ("a: \x00", "my.yaml: not valid YAML: unacceptable character"),
        ("- 1", "my.yaml: the config must be a mapping"),
        ("", "my.yaml: the config must be a mapping"),
    ],
)
def test_text_that_is_no_config_is_refused_in_one_line(text: str, said: str) -> None:
    message = _error(text=text)
    assert message.startswith(said)
    assert "\n" not in message


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml: cannot read the config: No such file"):
        load_config(tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match="cannot read the config: Is a directory"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9")
    with pytest.raises(ConfigError, match=r"latin\.yaml: the config is not UTF-8"):
        load_config(tmp_path / "latin.yaml")


_NUMBERS = st.floats(min_value=1e-9, max_value=1e9)


@settings(deadline=None, max_examples=50)  # a busy machine is no failure
@given(
    lr=_NUMBERS,
    tau=_NUMBERS,
    window=st.none() | st.integers(1, 50),
    seed=st.integers(0, 2**63),
    turns=st.integers(1, 50),
    options=st.dictionaries(
        st.text(), st.none() | st.booleans() | st.integers() | st.text(), max_size=3
    ),
)
def test_a_config_comes_back_from_its_dump_whatever_it_holds(
    lr: float, tau: float, window: int | None, seed: int, turns: int, options: dict[str, Any]
) -> None:
    config = RunConfig.model_validate(
        {
            "name": "d",
            "seed": seed,
            "task": {"name": "t", "options": options},
            "model": {"path": "m"},
            "recipe": {"turns": turns, "window": window, "rule": {"name": "revision", "tau": tau}},
            "train": {"lr": lr},
        }
    )
    assert parse_config(dump_config(config), [], source="dump") == config


def test_settings_do_not_change_after_loading() -> None:
    config = parse_config(MINIMAL, [], source="my.yaml")
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1


def test_pure_logic_imports_neither_torch_nor_ray_nor_vllm() -> None:
    code = (
        f"import sys, importlib\n"
        f"for name in {LIGHT!r}: importlib.import_module('rise_ray.' + name)\n"
        f"print([m for m in ('torch', 'ray', 'vllm', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
