"""Folders behave alike on a local path and on an object store (`memory://` stands for one)."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from rise_ray.errors import StoreError
from rise_ray.store.files import Folder


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    """An empty folder in memory, with this node's cache inside the test's own folder."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "node"))
    folder = Folder(f"memory://{uuid.uuid4().hex}/run")
    yield folder
    folder.remove()


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, remote: Folder) -> Folder:
    return Folder(str(tmp_path / "run")) if request.param == "local" else remote


def _model(path: Path, weights: str) -> Path:
    (path / "nested").mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text("{}")
    (path / "weights.bin").write_text(weights)
    (path / "nested" / "extra.txt").write_text("extra")
    return path


def test_nothing_is_there_before_the_first_write(folder: Folder) -> None:
    assert not folder.exists()
    assert (folder.names(), folder.folders()) == ([], [])
    with pytest.raises(StoreError, match=r"part\.json: cannot be read"):
        folder.read("part.json")
    folder.remove("part.json")


def test_what_is_written_is_read_and_listed(folder: Folder) -> None:
    (folder / "deep" / "er").write("b.json", b"\x00\xff")
    folder.write("c.json", b"")
    folder.write("a.txt", b"first")
    folder.write("a.txt", b"second")
    assert folder.read("a.txt") == b"second"
    assert folder.read("deep/er/b.json") == b"\x00\xff"
    assert folder.names() == ["a.txt", "c.json"]
    assert folder.names(suffix=".json") == ["c.json"]
    assert folder.folders() == ["deep"]
    assert folder.exists("deep/er/b.json")


def test_removing_is_of_a_file_or_of_all(folder: Folder) -> None:
    folder.write("a", b"1")
    (folder / "deep").write("b", b"2")
    folder.remove("a")
    assert (folder.names(), folder.folders()) == ([], ["deep"])
    folder.remove()
    assert not folder.exists("deep/b")


def test_an_upload_replaces_what_was_there(folder: Folder, tmp_path: Path) -> None:
    target = folder / "model"
    target.write("old.bin", b"old")
    target.upload(_model(tmp_path / "source", "new"))
    assert target.names() == ["config.json", "weights.bin"]
    assert target.read("nested/extra.txt") == b"extra"
    assert target.localize().joinpath("weights.bin").read_text() == "new"


def test_a_folder_that_is_not_there_cannot_be_localized(folder: Folder) -> None:
    with pytest.raises(StoreError, match="there is no such folder"):
        (folder / "none").localize()


def test_a_local_write_is_seen_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(str(tmp_path))
    folder.write("state.json", b"whole")

    def killed(*paths: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.write("state.json", b"half")
    assert folder.read("state.json") == b"whole"
    assert folder.names() == ["state.json"]  # what a killed write left is no file of the folder


def test_a_killed_local_upload_leaves_nothing_that_looks_like_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(str(tmp_path / "checkpoints"))

    def killed(*paths: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        (folder / "iteration=1").upload(_model(tmp_path / "source", "new"))
    assert (folder.names(), folder.folders()) == ([], [])


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"file/a: cannot be written"):
        Folder(str(tmp_path / "file")).write("a", b"1")
    with pytest.raises(StoreError, match=r"file/model: cannot be written"):
        (Folder(str(tmp_path / "file")) / "model").upload(_model(tmp_path / "source", "new"))


def test_a_local_folder_is_its_own_local_copy(tmp_path: Path) -> None:
    _model(tmp_path / "model", "a")
    for uri in (str(tmp_path / "model"), f"file://{tmp_path}/model"):
        assert Folder(uri).localize() == tmp_path / "model"


def test_a_remote_folder_is_copied_once_to_a_node(remote: Folder, tmp_path: Path) -> None:
    remote.upload(_model(tmp_path / "source", "a"))
    copy = remote.localize()
    assert (copy / "nested" / "extra.txt").read_text() == "extra"
    (copy / "marker").touch()  # a second copy would not have it
    assert Folder(remote.uri).localize() == copy
    assert (copy / "marker").exists()


def test_a_remote_folder_that_was_replaced_is_copied_again(remote: Folder, tmp_path: Path) -> None:
    remote.upload(_model(tmp_path / "source", "a"))
    first = remote.localize()
    remote.upload(_model(tmp_path / "source", "b"))  # the same names and sizes
    assert (remote.localize() / "weights.bin").read_text() == "b"
    remote.write("late.bin", b"1")
    assert (remote.localize() / "late.bin").exists()
    assert (first / "weights.bin").read_text() == "a"  # whoever still reads it is not disturbed


def test_the_config_of_a_remote_model_is_uploaded_last(
    remote: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filesystem, _ = remote._located
    uploaded: list[str] = []
    monkeypatch.setattr(filesystem, "put_file", lambda source, target: uploaded.append(target))
    remote.upload(_model(tmp_path / "source", "a"))
    assert [name.rsplit("/", 1)[-1] for name in uploaded] == [
        "extra.txt",
        "weights.bin",
        "config.json",
    ]
