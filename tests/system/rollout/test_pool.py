"""The pool on real Ray and vLLM: reproducible, exact about every episode, whatever dies."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import psutil
import pytest
import ray

from rise_ray.errors import ClusterError, RolloutError, SyncError
from rise_ray.feedback.constant import Constant
from rise_ray.mdp import StopReason, Trajectory, WeightVersion
from rise_ray.rollout.episode import EpisodeSpec
from rise_ray.rollout.pool import RolloutPool
from rise_ray.rollout.worker import RolloutWorker
from rise_ray.sync.buckets import Manifest
from rise_ray.sync.source import WeightServer
from tests.system.conftest import MakePool
from tests.system.processes import losing, named
from tests.system.rollout.conftest import make_specs, on_a_worker

LONG = {"turns": 4, "max_tokens": 96}  # many of these outlast an exchange


def sampled(trajectories: Iterable[Trajectory]) -> dict[str, list[tuple[int, ...]]]:
    """All token ids by trajectory; the ids of the trajectories must be unique."""
    found: dict[str, list[tuple[int, ...]]] = {}
    for t in trajectories:
        assert t.id not in found, f"{t.id} came twice"
        responses = [r for turn in t.turns for r in (turn.attempt, *turn.candidates)]
        found[t.id] = [response.token_ids for response in responses]
    return found


def versions(trajectories: Iterable[Trajectory]) -> set[int]:
    return {
        response.weight_version
        for t in trajectories
        for turn in t.turns
        for response in (turn.attempt, *turn.candidates)
    }


def ids(specs: Iterable[EpisodeSpec]) -> set[str]:
    return {spec.id for spec in specs}


def workers() -> list[psutil.Process]:
    return named("ray::RolloutWorker")


def losing_a_worker(number: signal.Signals) -> AbstractContextManager[None]:
    return losing("ray::RolloutWorker.exchange", number)


def test_the_same_specs_sample_the_same_tokens_in_any_order_and_others_by_another_seed(
    pair: RolloutPool,
) -> None:
    specs = make_specs(24)
    shuffled = random.Random(1).sample(specs, len(specs))
    first = sampled(pair.roll(specs))
    other = sampled(pair.roll(make_specs(24, seed=1)))
    assert first.keys() == ids(specs)
    assert first == sampled(pair.roll(shuffled))
    responses = [response for rows in first.values() for response in rows]
    assert len(set(responses)) == len(responses)  # attempts and candidates have their own seeds
    assert all(first[i] != other[i] for i in first)


def spent(pool: RolloutPool) -> list[int]:
    """Tokens, by worker."""
    return [member.tokens for member in pool._members.values()]


def test_few_episodes_are_shared_by_all_workers(pair: RolloutPool) -> None:
    pair.wait_ready()
    before = spent(pair)
    specs = make_specs(2, **LONG)
    assert sampled(pair.roll(specs)).keys() == ids(specs)
    assert all(now > then for now, then in zip(spent(pair), before, strict=True))


def test_workers_that_would_wait_for_the_last_go_on_with_what_comes_next(
    pair: RolloutPool,
) -> None:
    last, following = make_specs(2, **LONG), make_specs(24, iteration=2)
    start = sum(spent(pair))
    apart = sampled([*pair.roll(last), *pair.roll(following)])
    tokens = sum(spent(pair)) - start
    rolled = list(pair.roll(last, ahead=following))
    early = {t.id for t in rolled} - ids(last)
    assert early  # the pool has room for more than those two
    rest = [spec for spec in following if spec.id not in early]
    assert sampled([*rolled, *pair.roll(rest)]) == apart
    # What was under way went on, and was not begun again.
    assert sum(spent(pair)) - start == 2 * tokens


@pytest.mark.timeout(600)  # what was lost with a worker is rolled again one by one
def test_whoever_joins_or_dies_the_samples_are_those_of_the_version(
    pair: RolloutPool, tiny_model: WeightVersion, other_model: WeightVersion
) -> None:
    """Two synced workers, one that survives the other, and one that loaded the version."""
    specs = make_specs(8, **LONG)
    lost = pair.lost_workers
    before = list(pair.roll(specs))
    pair.sync(other_model)
    assert len(pair.parity) == 2  # what each engine's probe found
    assert all(0 < report.mean < report.max < 0.001 for report in pair.parity.values())
    synced = list(pair.roll(specs))
    pair.sync(tiny_model)
    assert (versions(before), versions(synced)) == ({0}, {2})
    assert sampled(before) != sampled(synced)

    with losing_a_worker(signal.SIGKILL):
        rolled = list(pair.roll(specs))
    assert {t.stop_reason for t in rolled} == {StopReason.MAX_TURNS}
    assert sampled(rolled) == sampled(before)  # synced back, and each episode once
    assert pair.lost_workers == lost + 1

    # The lost one's replacement starts with version 0 still when the pool is synced.
    survivor = on_a_worker(pair, process_id)
    pair.sync(other_model)
    os.kill(survivor, signal.SIGKILL)
    late = list(pair.roll(specs))
    assert versions(late) == {2}
    assert sampled(late) == sampled(synced)
    assert pair.lost_workers == lost + 2
    pair.sync(tiny_model)


def process_id(worker: RolloutWorker) -> int:
    """On the worker."""
    return os.getpid()


class Poison(str):
    """Ends the process that reads it."""

    def __reduce__(self) -> Any:
        return os._exit, (1,)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_poisonous_episode_is_an_error_and_costs_no_other(make_pool: MakePool) -> None:
    specs = make_specs(24)
    specs[5] = replace(specs[5], feedback=Constant(Poison()))
    pool = make_pool("poisoned", episodes_in_flight=16, max_attempts=2)
    rolled = list(pool.roll(specs))
    assert Counter(t.id for t in rolled) == dict.fromkeys(ids(specs), 1)
    (error,) = [t for t in rolled if t.stop_reason is StopReason.ERROR]
    assert (error.id, error.turns) == (specs[5].id, ())
    assert error.error is not None
    assert "lost with 2 workers" in error.error
    assert pool.lost_workers == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_weights_that_are_not_what_they_should_be_stop_the_sync_by_name(
    make_pool: MakePool,
    tiny_model: WeightVersion,
    other_model: WeightVersion,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dropping = ray.remote(num_cpus=0)(DroppingServer)
    monkeypatch.setattr("rise_ray.sync.transfer.start_weight_server", dropping.remote)
    pool = make_pool("wrong")
    pool.wait_ready()
    wrong = WeightVersion(2, other_model.checkpoint, parity=tiny_model.parity)
    with pytest.raises(SyncError, match=r"wrong-0.*version 2.*nats"):
        pool.sync(wrong)
    with pytest.raises(SyncError, match=r"wrong-0.*version 2.*never arrived"):
        pool.sync(other_model)


class DroppingServer(WeightServer):
    """Keeps the last bucket of what it serves second to itself."""

    serves = 0

    def serve(self, checkpoint: str, version: int, bucket_bytes: int) -> None:
        self.serves += 1
        super().serve(checkpoint, version, bucket_bytes)

    def manifest(self) -> tuple[Manifest, int]:
        manifest, buckets = super().manifest()
        return manifest, buckets - (self.serves == 2)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_worker_that_waits_for_its_consumer_is_kept_and_one_that_answers_nothing_is_ended(
    make_pool: MakePool,
) -> None:
    """A teacher may think for minutes between two trajectories; the workers are not to blame."""
    pool = make_pool("stalled", episodes_in_flight=16, max_attempts=1, progress_deadline_s=8.0)
    specs = make_specs(24, **LONG)
    rolled = []
    for trajectory in pool.roll(specs):
        if not rolled:
            time.sleep(10.0)
        rolled.append(trajectory)
    assert {t.stop_reason for t in rolled} == {StopReason.MAX_TURNS}
    assert pool.lost_workers == 0

    stopped = pytest.raises(RolloutError, match=r"`max_error_share` = 0\.05.*no answer for 8 s")
    with losing_a_worker(signal.SIGSTOP), stopped:
        list(pool.roll(make_specs(24, **LONG)))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_worker_that_cannot_start_stops_the_pool_with_its_cause(make_pool: MakePool) -> None:
    pool = make_pool(
        "broken",
        min_workers=3,
        max_workers=3,
        vllm={"enforce_eager": True, "quantization": "no-such-quantization"},
    )
    with pytest.raises(RolloutError, match=r"broken workers cannot start.*no-such-quantization"):
        pool.wait_ready()


def test_workers_that_ray_has_no_room_for_are_named_by_a_deadline(make_pool: MakePool) -> None:
    pool = make_pool("homeless", resources={"no_such_node": 1.0}, start_deadline_s=3.0)
    with pytest.raises(ClusterError, match=r"0 of `min_workers` = 1 homeless.*no_such_node"):
        list(pool.roll(make_specs(2)))


def test_a_roll_that_another_thread_stops_ends(make_pool: MakePool) -> None:
    pool = make_pool("homeless", resources={"no_such_node": 1.0}, start_deadline_s=3600.0)
    timer = threading.Timer(2.0, pool.stop)
    timer.start()
    with pytest.raises(RolloutError, match="the homeless pool was stopped"):
        list(pool.roll(make_specs(2)))
