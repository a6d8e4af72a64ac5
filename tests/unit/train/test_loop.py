"""A rank's steps: what is not finite ends them by name, and a restart repeats their random draws.

The engine is a stand-in with the calls of DeepSpeed's; the system tests have the real one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from rise_ray.config.settings import TrainConfig
from rise_ray.errors import SyncError
from rise_ray.mdp import Example, Place, Provenance, Span
from rise_ray.store.examples import read_lengths, read_part, write_example_parts
from rise_ray.store.files import Folder
from rise_ray.train import loop
from rise_ray.train.loop import SYNC_STEPS, _NoUseToRepeatError, _Run
from rise_ray.train.packing import Layout, plan_epochs
from rise_ray.train.rows import RowBatch, empty_rows

ROW = 8
STEPS = 2 * SYNC_STEPS + 3
PLACE = Place("iteration", 1, "collect")


def rows(loss_tokens: int = ROW - 1) -> RowBatch:
    """One row with so many loss tokens."""
    batch = empty_rows(1, ROW)
    batch.weights[0, :loss_tokens] = 1.0
    batch.predicted[0, :loss_tokens] = 1
    return batch


class Engine:
    """Adds a random draw to each loss, as dropout would.

    Its loss is infinite at one step, and its gradient is not finite at some.
    """

    def __init__(self, infinite_at: int | None = None, skips: Container[int] = ()) -> None:
        self.draws: list[float] = []
        self.saved: list[dict[str, Any]] = []
        self.scheduled = 0
        self.lr_scheduler = self
        self.module = SimpleNamespace(takes_joined=False)
        self._infinite_at = infinite_at
        self._skips = skips

    def __call__(self, *_: torch.Tensor) -> torch.Tensor:
        infinite = len(self.draws) == self._infinite_at
        self.draws.append(float(torch.rand(())))
        return torch.tensor(math.inf if infinite else self.draws[-1])

    def backward(self, loss: torch.Tensor, scale_wrt_gas: bool) -> None: ...

    def step(self) -> None:
        """Of the engine, which steps the schedule unless it skips; or of the schedule."""
        self.scheduled += 1

    def get_global_grad_norm(self) -> torch.Tensor:
        skipped = len(self.draws) - 1 in self._skips
        self.scheduled -= skipped
        return torch.tensor(math.inf if skipped else 1.0)

    def get_lr(self) -> list[float]:
        return [1e-3]

    def save_checkpoint(self, path: str, tag: str, client_state: dict[str, Any]) -> None:
        self.saved.append(copy.deepcopy(client_state))


def example(number: int) -> Example:
    """One that fills a row, and so makes a step of its own."""
    origin = Provenance("demonstration", "test", f"t{number}", "p", PLACE, 0, -1, 1.0, 0, -1, "")
    return Example(f"e{number}", tuple(range(ROW)), (Span(1, ROW, 1.0),), origin)


@pytest.fixture(autouse=True)
def one_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    monkeypatch.setattr(loop, "stream_rows", lambda *_: iter([rows()] * STEPS))
    monkeypatch.setattr(loop, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(loop.ray.train, "report", lambda *_, **__: None)
    yield
    dist.destroy_process_group()


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., _Run]:
    folder = Folder(str(tmp_path / "examples"))
    manifest = write_example_parts(folder, [example(n) for n in range(STEPS)], seed=0)
    lengths = read_lengths(folder, manifest)
    plan = plan_epochs(lengths, Layout(ROW, 1), epochs=1, seed=0)
    config = TrainConfig(workers=1, batch_tokens=ROW, row_tokens=ROW, checkpoint_every_s=0.0)

    def run(engine: Engine, log: Callable[[dict[str, Any]], None] | None = None) -> _Run:
        job = SimpleNamespace(config=config, examples=folder.uri, seed=3, log=log)
        task: Any = SimpleNamespace(
            job=job, manifest=manifest, plan=plan, rows_per_pass=1, state="this"
        )
        return _Run(task, engine, beat=lambda: None)

    return run


def at(run: _Run, step: int) -> _Run:
    """As `resume` leaves a run that goes on from a state."""
    run.step = run.resumed_at = run._logged_step = step
    run.losses = [0.5] * step
    return run


@pytest.mark.parametrize("step", [2, SYNC_STEPS + 1, STEPS - 1])
def test_an_infinite_loss_with_finite_gradients_stops_the_run_before_a_state_is_saved(
    start: Callable[..., _Run], step: int
) -> None:
    engine = Engine(infinite_at=step)
    run = start(engine)
    ((part, index),) = run.task.plan.step_examples(step)
    table = read_part(Folder(run.task.job.examples), run.task.manifest.parts[part])
    said = (
        f"step {step} of {STEPS}: the loss is inf; nothing was written. .*: {table['id'][index]}$"
    )
    with pytest.raises(_NoUseToRepeatError, match=said):
        run.steps()
    before = [state for state in (SYNC_STEPS, 2 * SYNC_STEPS) if state <= step]
    assert [state["step"] for state in engine.saved] == before


def test_a_run_that_goes_on_from_a_state_draws_what_it_would_have_drawn(
    start: Callable[..., _Run],
) -> None:
    whole, resumed, other = Engine(), Engine(), Engine()
    start(whole).steps()
    torch.manual_seed(99)  # a restarted process comes from somewhere else
    at(start(resumed), SYNC_STEPS).steps()
    assert resumed.draws == whole.draws[SYNC_STEPS:]
    assert len(set(whole.draws)) == STEPS
    second = start(other)
    second._rank = 1  # it has other rows, and so other masks
    second.steps()
    assert not set(other.draws) & set(whole.draws)


def test_records_say_after_which_step_they_begin(
    start: Callable[..., _Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOG_EVERY_S", -1.0)
    records: list[dict[str, Any]] = []
    at(start(Engine(), records.append), SYNC_STEPS).steps()
    assert [(r["since_step"], r["step"]) for r in records] == [
        (SYNC_STEPS, 2 * SYNC_STEPS),
        (2 * SYNC_STEPS, STEPS),
    ]


@pytest.mark.parametrize(("took_s", "pause_s"), [(0.1, 10.0), (2.0, 40.0)])
def test_states_take_a_twentieth_of_the_time_at_most(
    start: Callable[..., _Run], monkeypatch: pytest.MonkeyPatch, took_s: float, pause_s: float
) -> None:
    now = 100.0

    class Slow(Engine):
        def save_checkpoint(self, path: str, tag: str, client_state: dict[str, Any]) -> None:
            nonlocal now
            now += took_s

    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now))
    run = start(Slow())
    run.task.job.config = run.task.job.config.model_copy(update={"checkpoint_every_s": 10.0})
    run._save()
    assert run._save_at == pytest.approx(now + pause_s)


def test_a_state_carries_its_schema_version(start: Callable[..., _Run]) -> None:
    engine = Engine()
    start(engine).steps()
    assert {state["schema_version"] for state in engine.saved} == {loop.STATE_VERSION}


def test_a_step_without_a_finite_gradient_is_counted_and_the_schedule_goes_on(
    start: Callable[..., _Run],
) -> None:
    # As many in a row as may be, one where the ranks meet anyway, one after a state.
    engine = Engine(skips={2, 3, 4, SYNC_STEPS - 1, SYNC_STEPS + 1})
    run = start(engine)
    run.steps()
    assert run.skipped == 5
    assert (run.step, len(run.losses), engine.scheduled) == (STEPS, STEPS, STEPS)
    assert [state["skipped"] for state in engine.saved] == [4, 5]


def test_too_many_of_them_in_a_row_end_the_run_with_the_step(start: Callable[..., _Run]) -> None:
    run = start(Engine(skips=range(2, 6)))
    with pytest.raises(_NoUseToRepeatError, match=rf"step 5 of {STEPS}: the gradient is not fin"):
        run.steps()


def test_where_the_loss_is_not_finite_either_that_is_what_is_said(
    start: Callable[..., _Run],
) -> None:
    engine = Engine(infinite_at=2, skips=range(2, 6))
    with pytest.raises(_NoUseToRepeatError, match=rf"step 2 of {STEPS}: the loss is inf"):
        start(engine).steps()
    assert len(engine.draws) == 3  # at once


def test_a_restart_remembers_how_many_were_skipped_in_a_row(
    start: Callable[..., _Run], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = Engine(skips={SYNC_STEPS - 2, SYNC_STEPS - 1})
    start(before).steps()
    checkpoint = loop.ray.train.Checkpoint.from_directory(str(tmp_path))
    checkpoint.set_metadata({"state": "this"})
    monkeypatch.setattr(loop.ray.train, "get_checkpoint", lambda: checkpoint)
    monkeypatch.setattr(loop, "load_state", lambda *_: before.saved[0])
    run = start(Engine(skips={0, 1}))  # its first two steps, after the two of the state
    run.resume()
    with pytest.raises(_NoUseToRepeatError, match=rf"step {SYNC_STEPS + 1} of {STEPS}: the grad"):
        run.steps()


def test_another_trainings_state_is_left_alone(
    start: Callable[..., _Run], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkpoint = loop.ray.train.Checkpoint.from_directory(str(tmp_path))
    checkpoint.set_metadata({"state": "another"})
    monkeypatch.setattr(loop.ray.train, "get_checkpoint", lambda: checkpoint)
    run = start(Engine())
    run.resume()
    assert (run.step, run.resumed_at) == (0, 0)


def test_loss_tokens_that_do_not_arrive_end_the_run_with_the_step(
    start: Callable[..., _Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = [*[rows()] * 3, rows(loss_tokens=5), *[rows()] * STEPS]
    monkeypatch.setattr(loop, "stream_rows", lambda *_: iter(lacking))
    said = rf"step 3 of {STEPS}: 5 loss tokens arrived, {ROW - 1} were planned"
    with pytest.raises(_NoUseToRepeatError, match=said):
        start(Engine()).steps()


def test_weights_that_give_no_finite_log_probability_end_the_training_without_a_repeat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def export(*_: object) -> None:
        raise SyncError("a log-probability is not a finite number")

    done = SimpleNamespace(resume=lambda: None, steps=lambda: None, seconds=1.0)
    engine = SimpleNamespace(module=SimpleNamespace(model=None), destroy=lambda: None)
    monkeypatch.setattr(loop, "start_engine", lambda *_: (engine, None))
    monkeypatch.setattr(loop, "_Run", lambda *_: done)
    monkeypatch.setattr(loop, "export_checkpoint", export)
    job = SimpleNamespace(config=TrainConfig(), seed=0)
    task: Any = SimpleNamespace(job=job, deepspeed={}, plan=None)
    # An exception would have Ray Train do it all again, `max_failures` times.
    result = loop.train_rank(task, lambda: None)
    assert result.error == "a log-probability is not a finite number"
