"""How many engines one driver feeds: the real pool, its lease book and the store, without engines.

    python jobs/benchmarks/run.py driver [--quick]

`StubEngine` stands for a rollout worker: it answers each exchange at once, with what an engine of
5,000 tokens a second would have finished in the half second of one. Episodes are those of a problem
of GSM8K: 5 turns, 16 candidates at each, 150 tokens a response. What the driver does for them is
real: leases, specs made ready to be sent, results unpacked, counted and stored in Parquet parts.
What a stub itself costs is left out. Seconds are of CPU, all threads together. The baseline is what
64 engines make: a ratio of 1 says that one driver, on one core, keeps up with them. `driver_1000`
has 1,000 engines, and a book of 1,000,000 episodes, of which it rolls the first.
"""

from __future__ import annotations

import itertools
import random
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
from _synthetic import RUN, problem, trajectory

from rise_ray.config.settings import ModelConfig, SamplingConfig, SyncConfig, WorkersConfig
from rise_ray.feedback.constant import Constant
from rise_ray.mdp import Message, Place, Trajectory, WeightVersion
from rise_ray.rollout.collect import Tally
from rise_ray.rollout.episode import EpisodePlan, EpisodeSpec
from rise_ray.rollout.members import Member, Status
from rise_ray.rollout.pool import RolloutPool
from rise_ray.rollout.worker import Progress
from rise_ray.store.commit import Committer
from rise_ray.store.files import Folder
from rise_ray.store.trajectories import TrajectoryStore

ENGINES, ENGINE_TOKENS_PER_S, EXCHANGE_S = 64, 5_000, 0.5
IN_FLIGHT = 32
TURNS, CANDIDATES, TOKENS = 5, 16, 150
PLACE = Place("iteration", 1, "collect")
CASES = {"driver": (ENGINES, None), "driver_1000": (1_000, 1_000_000)}  # engines, episodes planned


def run(quick: bool) -> list[dict[str, Any]]:
    """One record for each case."""
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
    rolled = 1_000 if quick else 5_000
    return [_measure(name, *case, rolled) for name, case in CASES.items()]


def _measure(name: str, engines: int, planned: int | None, rolled: int) -> dict[str, Any]:
    pool, specs = StubPool(engines), _specs(planned or rolled)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    total, started = Tally(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        store = TrajectoryStore(Folder(folder))
        with Committer(store) as committer:  # as `roll_phase` does
            for one in itertools.islice(pool.roll(specs), rolled):
                committer.add(one)
                total.add(one)
    seconds = time.process_time() - started - pool.stub_seconds  # of all threads, as if one core
    rate, needed = total.tokens / seconds, ENGINES * ENGINE_TOKENS_PER_S
    return {
        "name": name,
        "ratio": round(rate / needed, 3),
        "tokens_per_s": round(rate),
        "baseline": f"{ENGINES} engines of {ENGINE_TOKENS_PER_S:,} tokens/s",
        "baseline_tokens_per_s": needed,
        "goal": ">= 1.0",
        "holds": rate >= needed,
        "engines": engines,
        "episodes_planned": len(specs),
        "episodes": rolled,
        "episodes_per_s": round(rolled / seconds, 1),
        "cpu_ms_per_episode": round(1e3 * seconds / rolled, 2),
        "grown_mbytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024,
    }


class StubPool(RolloutPool):
    """The pool, whose workers are stubs that are up at once."""

    def __init__(self, engines: int) -> None:
        workers = WorkersConfig(
            min_workers=engines, max_workers=engines, episodes_in_flight=IN_FLIGHT
        )
        model = ModelConfig(path="none", max_model_len=4096)
        super().__init__(WeightVersion(0, "none", "none"), model, workers, SyncConfig(), [], 0)
        self.stub_seconds = 0.0

    def _start(self) -> None:
        name = next(self._names)
        handle = StubEngine(self, random.Random(name))
        self._members[name] = Member(name, handle, Status.READY, None, time.monotonic())


class StubEngine:
    """A worker's handle: `handle.exchange.remote(specs)` is a reference to a `Progress`."""

    def __init__(self, pool: StubPool, rng: random.Random) -> None:
        self._pool = pool
        self._made = trajectory(
            problem(0), PLACE, turns=TURNS, candidates=CANDIDATES, tokens=TOKENS, rng=rng
        )
        self._length = sum(
            len(response.token_ids)
            for turn in self._made.turns
            for response in (turn.attempt, *turn.candidates)
        )
        self._held: list[EpisodeSpec] = []
        self._tokens = rng.uniform(0.0, self._length)  # of the next episode
        self._generated = 0
        self.exchange = self

    def remote(self, specs: Sequence[EpisodeSpec]) -> Any:
        ray.cloudpickle.dumps(specs)  # the driver's: what a call has to do with them
        started = time.thread_time()
        self._held += specs
        generated = int(ENGINE_TOKENS_PER_S * EXCHANGE_S)
        self._tokens += generated
        self._generated += generated
        finished = []
        while self._held and self._tokens > self._length:
            self._tokens -= self._length
            finished.append(self._finished(self._held.pop(0)))
        answer = ray.put(Progress(finished, True, self._generated, EXCHANGE_S, "node"))
        self._pool.stub_seconds += time.thread_time() - started
        return answer

    def _finished(self, spec: EpisodeSpec) -> Trajectory:
        return replace(self._made, id=spec.id, problem=spec.problem)


def _specs(episodes: int) -> list[EpisodeSpec]:
    plan = EpisodePlan(
        run=RUN,
        place=PLACE,
        seed=0,
        sampling=SamplingConfig(max_tokens=2 * TOKENS),
        max_model_len=4096,
        turns=TURNS,
        candidates=CANDIDATES,
    )
    prompt, feedback = (Message("user", "How many?"),), Constant("Try again.")
    return [EpisodeSpec(plan, problem(n), 0, prompt, feedback) for n in range(episodes)]


if __name__ == "__main__":
    import json
    import sys

    for record in run(quick="--quick" in sys.argv):
        print(json.dumps(record))
