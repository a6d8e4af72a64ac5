"""What every rank runs: DeepSpeed ZeRO-3 over the steps of the packing plan.

All ranks take every step together: they have the same number of passes by construction of the
plan, and whatever decides how to go on (a loss that is not finite, the time for a state) is agreed
by all of them, since a rank that left alone would leave the others waiting in a collective.
"""

from __future__ import annotations

import gc
import math
import os
import tempfile
import time
from typing import Any, NoReturn

import numpy as np
import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import get_device

from rise_ray.cluster.dispatch import Beat
from rise_ray.errors import SyncError
from rise_ray.mdp import derive_seed
from rise_ray.store.examples import read_part
from rise_ray.store.files import Folder
from rise_ray.train.checkpoint import export_checkpoint
from rise_ray.train.data import stream_rows
from rise_ray.train.engine import TAG, load_state, quiet_libraries, start_engine
from rise_ray.train.job import STATE_VERSION, WorkerResult, WorkerTask
from rise_ray.train.packing import Share
from rise_ray.train.rows import RowBatch

LOG_EVERY_S = 2.0
SYNC_STEPS = 8  # losses are summed over the ranks and checked, and a state is due, this often
_STATE = "state"  # in a checkpoint's metadata
_SAVING_SHARE = 0.05  # of the time at most is spent on states
NAMED_EXAMPLES = 16  # of a failed step, in the error's message


def serve(config: dict[str, Any]) -> None:
    """One rank, as Ray Train calls it: what its `Dispatcher` gives it, until there is no more."""
    dispatcher, number = config["dispatcher"], 0
    if not config["gpu"]:
        os.environ["DS_ACCELERATOR"] = "cpu"  # before the first import of deepspeed
    quiet_libraries()
    beat = Beat(dispatcher)
    while (given := ray.get(dispatcher.next.remote(number))) is not None:
        number, (task,) = given
        beat()
        result = train_rank(ray.get(task), beat)
        if dist.get_rank() == 0:
            ray.get(dispatcher.done.remote(result))
        gc.collect()  # engine and model are in a circle


def train_rank(task: WorkerTask, beat: Beat) -> WorkerResult:
    """One rank's part of `rise_ray.train.fit.train`."""
    job = task.job
    torch.manual_seed(job.seed)
    engine, keep_alive = start_engine(job, task.deepspeed, task.plan)
    run = _Run(task, engine, beat)
    run.resume()
    try:
        run.steps()
        export_checkpoint(engine.module.model, task, run.seconds)
    except (_NoUseToRepeatError, SyncError) as error:
        # The same on every repeat: a result, or Ray Train would try again.
        return WorkerResult(error=str(error))
    finally:
        engine.destroy()
        del keep_alive
    since = time.monotonic() - run.started
    return WorkerResult(None, run.losses, run.resumed_at, run.skipped, run.seconds, since)


def tensors(batch: RowBatch, joined: bool, device: Any) -> list[torch.Tensor]:
    """A pass's rows as `WeightedLoss` takes them, `joined` to a single one or as they are."""
    if joined:
        batch = batch.joined()
    indices = (batch.input_ids, batch.position_ids, batch.parents, batch.ends)
    # Copies: Ray's blocks are read-only memory, which torch refuses to take as it is.
    columns = (*(column.astype(np.int64) for column in indices), batch.weights.copy())
    return [torch.from_numpy(column).to(device) for column in columns]


class _NoUseToRepeatError(Exception):
    """What every rank meets alike, and would again."""


class _Run:
    """The state of a run between its steps."""

    def __init__(self, task: WorkerTask, engine: Any, beat: Beat) -> None:
        self.task = task
        self._beat = beat
        self.engine = engine
        self.step = 0
        self.resumed_at = 0
        self.seconds = 0.0
        self.started = time.monotonic()
        """When the first step that is taken here began."""
        self.losses: list[float] = []
        self.skipped = 0
        self._skipped_in_a_row = 0
        self._unsynced: list[torch.Tensor] = []
        self._arrived: list[int] = []
        """Loss tokens of this rank in the steps that are not synced."""
        self._rank = dist.get_rank()
        self._world_size = dist.get_world_size()
        self._device = get_device()
        self._save_at = time.monotonic() + task.job.config.checkpoint_every_s
        self._logged_at, self._logged_step = time.monotonic(), 0

    def resume(self) -> None:
        """Go on from the last state that a failed start of this training left, if there is one."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None or checkpoint.get_metadata().get(_STATE) != self.task.state:
            return
        with checkpoint.as_directory() as path:
            state = load_state(self.engine, path)
        self.step, self.losses = state["step"], state["losses"]
        self.skipped, self._skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]
        self.resumed_at = self._logged_step = self.step

    def steps(self) -> None:
        task, job = self.task, self.task.job
        share = Share(self._rank, self._world_size, self.step)
        passes = share.rows_per_step(task.plan) // task.rows_per_pass
        examples, deadline_s = Folder(job.examples), job.config.step_deadline_s
        stream = stream_rows(
            examples, task.manifest, task.plan, share, task.rows_per_pass, deadline_s
        )
        self.started = self._logged_at = time.monotonic()
        while self.step < task.plan.steps:
            self._take_step([next(stream) for _ in range(passes)])
            self._beat()
            if self.step % SYNC_STEPS == 0 or self.step == task.plan.steps:
                self._sync()
        self.seconds = time.monotonic() - self.started

    def _take_step(self, passes: list[RowBatch]) -> None:
        # Dropout of a step is the same whether the run went on from a state or came here at once.
        torch.manual_seed(derive_seed(self.task.job.seed, "step", self.step, self._rank))
        # DeepSpeed averages gradients over the ranks; the denominator is the global batch's.
        scale = self._world_size / float(self.task.plan.loss_tokens[self.step])
        total = torch.zeros((), device=self._device)
        for batch in passes:
            columns = tensors(batch, self.engine.module.takes_joined, self._device)
            loss = self.engine(*columns) * scale
            self.engine.backward(loss, scale_wrt_gas=False)
            self.engine.step()
            total += loss.detach()
        self._grad_norm = float(self.engine.get_global_grad_norm())
        self._unsynced.append(total / self._world_size)
        self._arrived.append(sum(int(batch.predicted.sum()) for batch in passes))
        self.step += 1
        if math.isfinite(self._grad_norm):
            self._skipped_in_a_row = 0
        else:
            self._skip()

    def _skip(self) -> None:
        """ZeRO-3 has skipped the step, whose gradient is not finite, on all ranks alike.

        It leaves the learning rate where it was, which here is a function of the step.
        """
        self._share(due=False)  # a loss that is not finite either ends the run at once
        self.engine.lr_scheduler.step()
        self.skipped += 1
        self._skipped_in_a_row += 1
        most = self.task.job.config.max_skipped_steps
        if self._skipped_in_a_row > most:
            self._stop(
                self.step - 1, f"the gradient is not finite, as in the {most} steps before it"
            )

    def _sync(self) -> None:
        """Sum and check the losses, log, and save a state if rank 0 finds it due."""
        now = time.monotonic()
        save = self._share(due=self._rank == 0 and now > self._save_at)
        last = self.step == self.task.plan.steps
        if self._rank == 0 and (last or now - self._logged_at > LOG_EVERY_S):
            self._log(now)
        if save and not last:
            self._save()

    def _share(self, due: bool) -> bool:
        """Sum and check what the ranks found since the last time; whether one of them is `due`."""
        counts = torch.tensor([*self._arrived, due], dtype=torch.float64, device=self._device)
        shared = torch.stack([*(loss.double() for loss in self._unsynced), *counts])
        dist.all_reduce(shared)
        *found, save = shared.tolist()
        losses, arrived = found[: len(self._unsynced)], found[len(self._unsynced) :]
        self._check(losses, arrived)
        self.losses += losses
        self._unsynced.clear()
        self._arrived.clear()
        return bool(save)

    def _check(self, losses: list[float], arrived: list[float]) -> None:
        """Losses and loss tokens of the ranks together: one rank's alone the others do not know.

        A loss can be infinite where no gradient is: that of a token whose logit is -inf.
        """
        for step, (loss, tokens) in enumerate(
            zip(losses, arrived, strict=True), start=len(self.losses)
        ):
            planned = int(self.task.plan.loss_tokens[step])
            if tokens != planned:
                self._stop(step, f"{int(tokens)} loss tokens arrived, {planned} were planned")
            if not math.isfinite(loss):
                self._stop(step, f"the loss is {loss}")

    def _log(self, now: float) -> None:
        if self.task.job.log is not None:
            window = slice(self._logged_step, self.step)
            losses = self.losses[window]
            self.task.job.log(
                {
                    "since_step": self._logged_step,
                    "step": self.step,
                    "steps": self.task.plan.steps,
                    "loss": sum(losses) / len(losses),
                    "lr": float(self.engine.get_lr()[0]),
                    "grad_norm": self._grad_norm,
                    "skipped_steps": self.skipped,
                    "tokens_per_s": float(self.task.plan.tokens[window].sum())
                    / max(now - self._logged_at, 1e-9),
                }
            )
        self._logged_at, self._logged_step = now, self.step

    def _save(self) -> None:
        started, every_s = time.monotonic(), self.task.job.config.checkpoint_every_s
        with tempfile.TemporaryDirectory() as path:
            state = {
                "schema_version": STATE_VERSION,
                "step": self.step,
                "losses": self.losses,
                "skipped": self.skipped,
                "skipped_in_a_row": self._skipped_in_a_row,
            }
            self.engine.save_checkpoint(path, tag=TAG, client_state=state)
            checkpoint = ray.train.Checkpoint.from_directory(path)
            checkpoint.set_metadata({_STATE: self.task.state})
            ray.train.report({"step": self.step}, checkpoint=checkpoint)
        now = time.monotonic()
        self._save_at = now + (every_s and max(every_s, (now - started) / _SAVING_SHARE))

    def _stop(self, step: int, what: str) -> NoReturn:
        """End the run with the step and its examples, read again: no step pays for the names."""
        task = self.task
        folder, examples = Folder(task.job.examples), task.plan.step_examples(step)
        tables = {part: read_part(folder, task.manifest.parts[part]) for part, _ in examples}
        names = [str(tables[part]["id"][index]) for part, index in examples]
        more = f" and {len(names) - NAMED_EXAMPLES} more" if len(names) > NAMED_EXAMPLES else ""
        raise _NoUseToRepeatError(
            f"step {step} of {task.plan.steps}: {what}; nothing was written. Examples of the "
            f"step: {', '.join(names[:NAMED_EXAMPLES])}{more}"
        )
