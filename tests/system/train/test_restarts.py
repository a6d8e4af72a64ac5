"""Ranks that die, hang or are lost while they start: the training goes on as if they had not."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ray.util import placement_group_table

from rise_ray.errors import TrainError
from rise_ray.mdp import Example
from rise_ray.store.files import Folder
from rise_ray.train import ray_train
from rise_ray.train.fit import train
from rise_ray.train.job import TrainJob
from tests.system.processes import losing, named
from tests.system.train.jobs import CONFIG, WriteExamples, check_folder, load, make_job
from tests.system.train.slow_meeting import SlowRendezvous

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_runtime")]


@pytest.mark.timeout(1200)
def test_a_training_whose_rank_hangs_or_that_failed_for_good_ends_with_the_same_weights(
    tmp_path: Path,
    tiny_model: Path,
    examples_folder: WriteExamples,
    make_examples: Callable[..., list[Example]],
) -> None:
    """That a rank which dies is replaced at once, `test_chaos.py` sees."""
    config = CONFIG.model_copy(update={"epochs": 4, "checkpoint_every_s": 0.0})
    examples = examples_folder(make_examples(400))
    whole = make_job(tmp_path, tiny_model, examples, config=config)
    expected = train(whole)

    def struck(number: signal.Signals, **settings: object) -> TrainJob:
        folder, changed = tmp_path / number.name, config.model_copy(update=settings)
        log = striking(folder, number)
        return make_job(folder, tiny_model, examples, config=changed, log=log)

    hangs = struck(signal.SIGSTOP, max_failures=1, step_deadline_s=20.0)
    dies = struck(signal.SIGKILL, max_failures=0)
    with pytest.raises(TrainError, match="iteration=1: training failed"):
        train(dies)
    assert not Folder(dies.output).exists()
    for job in (hangs, dies):
        result = train(job)
        assert 0 < result.resumed_at < result.steps
        assert result.steps == expected.steps
        assert result.first_loss == expected.first_loss
        assert result.last_loss == pytest.approx(expected.last_loss, rel=1e-5)
        for name, weight in load(whole).state_dict().items():
            torch.testing.assert_close(load(job).state_dict()[name], weight, rtol=0, atol=1e-5)
        check_folder(job)
        assert Folder(job.storage).folders() == []  # Ray Train's own files are gone


def striking(folder: Path, number: signal.Signals) -> Callable[[dict[str, object]], None]:
    """A job's `log` that signals its rank once, when Ray Train knows of a saved state.

    A state is saved every time that the ranks meet, with `checkpoint_every_s` = 0.
    """

    def log(row: dict[str, object]) -> None:
        done = folder / "struck"
        if not done.exists() and list(folder.rglob("checkpoint_manager_snapshot.json")):
            done.touch()
            os.kill(os.getpid(), number)

    return log


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("title", "number", "progress_deadline_s"),
    [
        ("ray::execute._setup_torch_process_group", signal.SIGKILL, 3600.0),
        # Nobody but its silence tells of it; a start on a busy machine is silent, too.
        ("ray::execute._setup_torch_process_group", signal.SIGSTOP, 90.0),
    ],
)
def test_a_worker_that_is_lost_while_it_starts_is_started_again(
    title: str,
    number: signal.Signals,
    progress_deadline_s: float,
    tmp_path: Path,
    tiny_model: Path,
    examples_folder: WriteExamples,
    make_examples: Callable[..., list[Example]],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_train, "Rendezvous", SlowRendezvous)
    update = {"max_failures": 1, "progress_deadline_s": progress_deadline_s}
    config = CONFIG.model_copy(update=update)
    job = make_job(tmp_path, tiny_model, examples_folder(make_examples(60)), config=config)
    with losing(title, number, others=named("ray::RayTrainWorker")):
        result = train(job)
    assert "are started again" in caplog.text
    groups = placement_group_table().values()
    assert {group["state"] for group in groups} <= {"REMOVED"}, "a lost start holds resources"
    assert len(load(job).state_dict()) > 0
    assert result.resumed_at == 0
