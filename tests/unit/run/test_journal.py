"""A run's journal: stages run once, resume is asked for, and no other run is touched."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from rise_ray.config.loading import parse_config
from rise_ray.config.settings import RunConfig
from rise_ray.errors import StoreError
from rise_ray.run.journal import CONFIG, STATE, Run, run_folder
from rise_ray.store.files import Folder


def _config(tmp_path: Path, *overrides: str) -> RunConfig:
    text = f"{{name: demo, storage: {tmp_path}, task: {{name: countdown}}, model: {{path: m}}}}"
    return parse_config(text, list(overrides), source="test")


def _never() -> dict[str, Any]:
    raise AssertionError("this stage is done")


def _content(folder: Folder) -> dict[str, bytes]:
    return {name: folder.read(name) for name in folder.names()}


def test_a_fresh_run_saves_its_config_and_an_empty_journal(tmp_path: Path) -> None:
    run = Run(_config(tmp_path), resume=False)
    assert (tmp_path / "demo" / CONFIG).read_text().startswith("schema_version: '1'\nname: demo")
    assert (run.stages, run.finished) == ({}, False)


def test_a_stage_that_is_done_is_not_done_again(tmp_path: Path) -> None:
    run = Run(_config(tmp_path), resume=False)
    assert run.stage("collect-1", lambda: {"episodes": 3}) == {"episodes": 3}
    assert run.stage("collect-1", _never) == {"episodes": 3}
    resumed = Run(_config(tmp_path), resume=True)
    assert resumed.stage("collect-1", _never) == {"episodes": 3}
    assert resumed.stage("train-1", lambda: {"loss": 0.5}) == {"loss": 0.5}
    assert list(Run(_config(tmp_path), resume=True).stages) == ["collect-1", "train-1"]


def test_a_stage_that_failed_is_done_again(tmp_path: Path) -> None:
    run = Run(_config(tmp_path), resume=False)
    with pytest.raises(ZeroDivisionError):
        run.stage("train-1", lambda: {"loss": 1 / 0})
    assert Run(_config(tmp_path), resume=True).stage("train-1", lambda: {"ok": 1}) == {"ok": 1}


def test_an_unfinished_run_goes_on_only_where_asked(tmp_path: Path) -> None:
    Run(_config(tmp_path), resume=False).stage("collect-1", dict)
    with pytest.raises(StoreError, match="unfinished run of this config; go on with --resume"):
        Run(_config(tmp_path), resume=False)


def test_a_finished_run_opens_either_way(tmp_path: Path) -> None:
    Run(_config(tmp_path), resume=False).stage("run/report", dict)
    assert Run(_config(tmp_path), resume=False).finished
    assert Run(_config(tmp_path), resume=True).finished


@pytest.mark.parametrize("resume", [False, True])
def test_another_config_is_refused_and_changes_nothing(tmp_path: Path, resume: bool) -> None:
    run = Run(_config(tmp_path), resume=False)
    before = _content(run.folder)
    with pytest.raises(StoreError, match=r"another run \(`seed` is 0 there and 1 here\)"):
        Run(_config(tmp_path, "seed=1"), resume=resume)
    assert _content(run.folder) == before


def test_settings_that_only_say_how_may_change_when_a_run_goes_on(tmp_path: Path) -> None:
    run = Run(_config(tmp_path), resume=False)
    run.stage("collect-1", dict)
    before = _content(run.folder)
    faster = (
        *("rollout.workers.max_workers=4", "rollout.workers.vllm={max_num_seqs: 8}"),
        *("ray.num_cpus=8", "wandb={project: p}"),
    )
    resumed = Run(_config(tmp_path, *faster), resume=True)
    assert list(resumed.stages) == ["collect-1"]
    assert _content(run.folder) == before
    changed = resumed.changed_settings()
    assert ("rollout.workers.max_workers", 1, 4) in changed
    assert {key.partition(".")[0] for key, _, _ in changed} == {"rollout", "ray", "wandb"}
    with pytest.raises(StoreError, match=r"another run \(`train.lr` is 1e-05 there and 0.5 here\)"):
        Run(_config(tmp_path, *faster, "train.lr=0.5"), resume=True)


ONE = "{name: rejection_sampling}"
OTHER = "{name: variant, track: other, rule: {name: revision}}"


def test_further_controls_may_follow_also_where_the_run_was_finished(tmp_path: Path) -> None:
    run = Run(_config(tmp_path, f"controls=[{ONE}]"), resume=False)
    run.stage("base/eval", dict)
    run.stage("run/report", dict)
    more = _config(tmp_path, f"controls=[{ONE}, {OTHER}]")
    before = _content(run.folder)
    with pytest.raises(StoreError, match="an unfinished run of this config; go on with --resume"):
        Run(more, resume=False)
    grown = Run(more, resume=True)
    assert list(grown.stages) == ["base/eval"]  # the report is to tell of the new one
    assert _content(run.folder) == before
    assert [key for key, _, _ in grown.changed_settings()] == ["controls"]
    grown.write_config()
    assert Run(more, resume=True).config_is_whole()


@pytest.mark.parametrize(
    "others",
    [
        [f"controls=[{OTHER}, {ONE}]"],
        ["controls=[{name: rejection_sampling, epochs: 9}]"],
        ["controls=[]"],
        [f"controls=[{ONE}, {OTHER}]", "seed=1"],
    ],
)
def test_controls_that_were_there_stay_as_they_are(tmp_path: Path, others: list[str]) -> None:
    Run(_config(tmp_path, f"controls=[{ONE}]"), resume=False)
    with pytest.raises(StoreError, match="holds another run"):
        Run(_config(tmp_path, *others), resume=True)


def _older(folder: Folder, old: bytes, new: bytes) -> None:
    """Have a run's config be as it would have been written by an older rise-ray."""
    before = folder.read(CONFIG)
    after = before.replace(old, new)
    assert after != before
    state = json.loads(folder.read(STATE))
    state |= {
        "config_sha256": hashlib.sha256(after).hexdigest(),
        "decisive_sha256": "of other settings",
    }
    folder.write(CONFIG, after)
    folder.write(STATE, json.dumps(state).encode())


def test_a_run_from_before_a_setting_goes_on_with_its_default(tmp_path: Path) -> None:
    run = Run(_config(tmp_path), resume=False)
    run.stage("run/report", dict)
    _older(run.folder, b"    drop_degenerate: true\n", b"")
    assert Run(_config(tmp_path), resume=True).finished
    with pytest.raises(StoreError, match=r"`recipe.rule.drop_degenerate` is True there and False"):
        Run(_config(tmp_path, "recipe.rule={name: improved, drop_degenerate: false}"), resume=True)


def test_a_run_with_a_setting_that_is_no_more_is_another(tmp_path: Path) -> None:
    run = Run(_config(tmp_path), resume=False)
    _older(run.folder, b"    drop_degenerate: true\n", b"    drop_degenerate: true\n    depth: 3\n")
    with pytest.raises(StoreError, match=r"another run \(`recipe.rule.depth` is 3 there and None"):
        Run(_config(tmp_path), resume=True)


def test_between_the_writes_of_a_changed_config_nothing_is_lost(tmp_path: Path) -> None:
    run = Run(_config(tmp_path), resume=False)
    old = run.folder.read(CONFIG)
    more = _config(tmp_path, f"controls=[{ONE}]")
    Run(more, resume=True).write_config()
    run.folder.write(CONFIG, old)
    assert not Run(more, resume=True).config_is_whole()  # `repair` writes it


def test_what_a_teacher_cost_is_kept_also_of_stages_that_are_not_done(tmp_path: Path) -> None:
    run = Run(_config(tmp_path), resume=False)
    run.record_teacher_tokens(7)
    assert Run(_config(tmp_path), resume=True).teacher_tokens == 7


def test_the_journal_and_not_the_config_file_says_whose_the_run_is(tmp_path: Path) -> None:
    run = Run(_config(tmp_path), resume=False)
    state = json.loads(run.folder.read(STATE))
    assert state["config_sha256"] == hashlib.sha256(run.folder.read(CONFIG)).hexdigest()
    for damage in (b"", b"\xff\xfe", run.folder.read(CONFIG) + b"more: 1\n"):
        run.folder.write(CONFIG, damage)
        assert Run(_config(tmp_path), resume=True).stages == {}
        with pytest.raises(StoreError, match="holds another run"):
            Run(_config(tmp_path, "seed=1"), resume=True)


def test_a_forgotten_stage_is_done_again(tmp_path: Path) -> None:
    run = Run(_config(tmp_path), resume=False)
    run.stage("collect-1", lambda: {"episodes": 3})
    run.forget("collect-1")
    assert Run(_config(tmp_path), resume=True).stages == {}


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "demo"))
    folder.write("thesis.tex", b"years of work")
    with pytest.raises(StoreError, match="holds files but no run"):
        Run(_config(tmp_path), resume=True)
    assert _content(folder) == {"thesis.tex": b"years of work"}


def test_a_run_that_was_killed_at_birth_goes_on(tmp_path: Path) -> None:
    # Between its two first writes there is a journal and no config.
    run = Run(_config(tmp_path), resume=False)
    run.folder.remove(CONFIG)
    resumed = Run(_config(tmp_path), resume=True)
    assert (resumed.stages, resumed.config_is_whole()) == ({}, False)
    resumed.write_config()
    run.folder.remove(STATE)
    with pytest.raises(StoreError, match="holds files but no run"):
        Run(_config(tmp_path), resume=False)


@pytest.mark.parametrize(
    ("journal", "message"),
    [
        (b"{", "damaged journal"),
        (b"\xff\xfe\x00", "damaged journal"),
        (b"[]", "schema version None"),
        (
            b'{"schema_version": "3", "stages": {}}',
            "version 3; this rise-ray reads version 4",
        ),
        (b'{"schema_version": "4"}', "damaged journal: it has no stages"),
        (b'{"schema_version": "4", "stages": {}}', "damaged journal: it has no config_sha256"),
    ],
)
def test_a_damaged_journal_is_an_error_that_names_it(
    tmp_path: Path, journal: bytes, message: str
) -> None:
    run = Run(_config(tmp_path), resume=False)
    run.folder.write(STATE, journal)
    with pytest.raises(StoreError, match=f"state.json: .*{message}"):
        Run(_config(tmp_path), resume=True)
    assert run.folder.read(STATE) == journal


def test_the_journal_is_plain_json(tmp_path: Path) -> None:
    Run(_config(tmp_path), resume=False).stage("collect-1", lambda: {"episodes": 3})
    state = json.loads((tmp_path / "demo" / STATE).read_text())
    assert (state["run"], state["stages"]) == ("demo", {"collect-1": {"episodes": 3}})


def test_storage_is_a_uri_or_an_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert run_folder(_config(Path("runs"))).uri == f"{tmp_path}/runs/demo"
    assert run_folder(_config(Path("~/runs"))).uri == "/home/somebody/runs/demo"
    remote = _config(tmp_path, "storage=s3://bucket/runs")
    assert run_folder(remote).uri == "s3://bucket/runs/demo"
