"""Folders behave alike on a local path, in memory and on S3; a failed write leaves nothing."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from rise_ray.cli.access import NotCheckedError, look_at_run
from rise_ray.errors import StoreError
from rise_ray.store.files import Folder, UnreachableError
from tests.unit.store.hand_made import config_of


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    """An empty folder in memory, with this node's cache inside the test's own folder."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "node"))
    folder = Folder(f"memory://{uuid.uuid4().hex}/run")
    yield folder
    folder.remove()


@pytest.fixture(params=["local", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, remote: Folder) -> Folder:
    if request.param == "s3":
        return request.getfixturevalue("s3_folder")
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


_ON_A_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from rise_ray.errors import StoreError
from rise_ray.store.files import Folder

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
folder, source = Folder(sys.argv[1]), Path(sys.argv[2])
for attempt in (lambda: folder.write("a.json", bytes(2000)), lambda: folder.upload(source)):
    try:
        attempt()
    except StoreError as error:
        print(error)
"""


def test_a_file_system_that_takes_no_more_leaves_what_was_there(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "run"))
    folder.write("a.json", b"whole")
    source = _model(tmp_path / "source", "w" * 2000)
    command = [sys.executable, "-c", _ON_A_FULL_DISK, folder.path, str(source)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert [line.partition(": cannot be written: ")[0] for line in said] == [
        f"{folder.path}/a.json",
        folder.path,
    ]
    assert all("File too large" in line for line in said)
    assert list(tmp_path.rglob(".*")) == []
    assert folder.names() == ["a.json"]
    assert folder.read("a.json") == b"whole"


def test_a_disk_that_is_full_at_the_last_moment_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(str(tmp_path))
    folder.write("state.json", b"whole")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"state\.json: cannot be written: .*No space left"):
        folder.write("state.json", b"longer than before")
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]
    assert folder.read("state.json") == b"whole"


def test_sweeping_removes_what_killed_writers_left_and_nothing_else(tmp_path: Path) -> None:
    (Folder(str(tmp_path)) / "deep").write("part.parquet", b"1")
    (tmp_path / ".gitignore").write_text("*")
    half = f".{uuid.uuid4().hex}.tmp"
    (tmp_path / "deep" / half).write_bytes(b"half")
    _model(tmp_path / half, "half")
    Folder(str(tmp_path)).sweep()
    assert sorted(p.name for p in tmp_path.rglob("*")) == [".gitignore", "deep", "part.parquet"]


def test_a_bucket_that_is_not_there_is_an_error_and_not_made(s3: None) -> None:
    with pytest.raises(StoreError, match=r"s3://typo/run/a: cannot be written: .*bucket"):
        Folder("s3://typo/run").write("a", b"1")
    assert not Folder("s3://typo").exists()


def test_a_store_that_does_not_answer_is_told_apart(
    s3: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(UnreachableError, match=r"s3://bucket/run/a: cannot be looked for: "):
            Folder("s3://bucket/run").exists("a")
        with pytest.raises(NotCheckedError) as found:  # a run stops there, a check goes on
            look_at_run(config_of("s3://bucket/run"), resume=False)
        assert isinstance(found.value.error, UnreachableError)
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


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


def test_a_copy_without_weights_has_all_the_rest(remote: Folder, tmp_path: Path) -> None:
    remote.upload(_model(tmp_path / "source", "a"))
    copy = remote.localize(without=".bin")
    assert (copy / "nested" / "extra.txt").read_text() == "extra"
    assert not (copy / "weights.bin").exists()
    assert (remote.localize() / "weights.bin").read_text() == "a"


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


def test_a_node_without_room_for_a_copy_says_so_and_keeps_no_half(
    remote: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote.upload(_model(tmp_path / "source", "a"))
    filesystem, _ = remote._located

    def full(sources: list[str], targets: list[str]) -> None:
        _model(Path(targets[0]).parent, "half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "get", full)
        with pytest.raises(
            StoreError, match=r"run: cannot be copied to this node: .*No space left"
        ):
            remote.localize()
    assert not [p for p in (tmp_path / "node").rglob("*") if p.is_file() and p.stat().st_size]
    assert (remote.localize() / "weights.bin").read_text() == "a"


def test_a_cache_that_others_can_write_to_is_not_used(
    remote: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    remote.upload(_model(tmp_path / "source", "a"))
    copy = remote.localize()
    copy.parents[1].chmod(0o777)
    with pytest.raises(StoreError, match="others can write to"):
        remote.localize()
