"""The chaos job's plan: of its seed alone, over the whole run, every kind in its turn."""

from __future__ import annotations

import pytest

from rise_ray.config.loading import parse_config
from rise_ray.config.settings import RunConfig
from rise_ray.errors import ConfigError
from tests.chaos.plan import Kind, plan_kills, stage_keys

CPU_KINDS = set(Kind) - {Kind.ENGINE}


def config(*overrides: str) -> RunConfig:
    text = (
        "{name: demo, task: {name: countdown}, model: {path: m}, "
        "controls: [{name: rejection_sampling}]}"
    )
    return parse_config(text, list(overrides), source="test")


def test_the_plan_depends_on_the_seed_alone() -> None:
    assert plan_kills(config(), 12, seed=3) == plan_kills(config(), 12, seed=3)
    assert plan_kills(config(), 12, seed=3) != plan_kills(config(), 12, seed=4)


@pytest.mark.parametrize("seed", range(20))
def test_every_kind_is_killed_before_any_a_second_time(seed: int) -> None:
    kinds = [kill.kind for kill in plan_kills(config(), len(CPU_KINDS), seed)]
    assert sorted(kinds) == sorted(CPU_KINDS)


@pytest.mark.parametrize("seed", range(20))
def test_a_kill_is_planned_where_its_kind_works_and_in_the_order_of_the_stages(seed: int) -> None:
    keys = stage_keys(config())
    plan = plan_kills(config(), 18, seed)
    places = [keys.index(kill.stage) for kill in plan]
    assert places == sorted(places)
    for kill in plan:
        endings = {Kind.TRAINER: ("/train",), Kind.NODE: "", Kind.DRIVER: ""}
        assert kill.stage.endswith(endings.get(kill.kind, ("/collect", "/eval")))
        assert kill.stage != "run/report"


def test_kills_spread_over_the_whole_run() -> None:
    keys = stage_keys(config("iterations=3"))
    places = {keys.index(kill.stage) for kill in plan_kills(config("iterations=3"), 60, seed=0)}
    assert len(places) > len(keys) / 2


def test_engines_are_killed_only_where_vllm_has_processes_of_its_own() -> None:
    parallel = config("rollout.workers.vllm={tensor_parallel_size: 2}")
    assert Kind.ENGINE in {kill.kind for kill in plan_kills(parallel, 7, seed=0)}


def test_no_training_worker_is_waited_for_where_nothing_trains() -> None:
    kinds = {kill.kind for kill in plan_kills(config("iterations=0"), 10, seed=0)}
    assert kinds == CPU_KINDS - {Kind.TRAINER}


def test_a_plan_without_kills_is_refused() -> None:
    with pytest.raises(ConfigError, match="0 kills"):
        plan_kills(config(), 0, seed=0)
