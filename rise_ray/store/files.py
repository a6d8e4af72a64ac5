"""Folders on a local path or any fsspec URI, with atomic writes.

Nothing in rise-ray assumes that nodes share a disk: what crosses nodes goes through a `Folder`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from rise_ray.errors import RiseError, StoreError
from rise_ray.store.copies import node_copy

_TEMPORARY = f".{'[0-9a-f]' * 32}.tmp"


class UnreachableError(StoreError):
    """The store does not answer, or does not know who asks."""


@dataclass(frozen=True)
class Folder:
    """A folder, named by a local path or a URI (`s3://bucket/run`, `gs://...`, `memory://...`).

    Names in methods are relative and use `/`. Nothing is created before the first write.

    Every method raises a StoreError that names the file where the store fails (is full, read-only,
    away, without permission).
    """

    uri: str

    def __truediv__(self, name: str) -> Folder:
        return Folder(f"{self.uri.rstrip('/')}/{name}")

    @cached_property
    def _located(self) -> tuple[Any, str]:
        # Other processes write here too: a listing is never taken from a cache.
        filesystem, path = fsspec.core.url_to_fs(self.uri, use_listings_cache=False)
        return filesystem, path.rstrip("/")

    @property
    def is_local(self) -> bool:
        """Whether this is a plain path (or `file://`) of this machine."""
        return "file" in self._located[0].protocol

    @property
    def path(self) -> str:
        """The path inside the file system: for a local folder, absolute."""
        return self._located[1]

    def arrow(self) -> Any:
        """The file system for pyarrow and Ray Data, to use with `path`."""
        from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem

        if self.is_local:
            return LocalFileSystem()
        return PyFileSystem(FSSpecHandler(self._located[0]))

    def exists(self, name: str = "") -> bool:
        with self._reported(name, "cannot be looked for"):
            return bool(self._located[0].exists(self._join(name)))

    def names(self, suffix: str = "") -> list[str]:
        """Names of the files directly in this folder that end in `suffix`, sorted; [] if none."""
        return [name for name in self._listed("file") if name.endswith(suffix)]

    def folders(self) -> list[str]:
        """Names of the folders directly in this one, sorted; [] if there are none."""
        return self._listed("directory")

    def read(self, name: str) -> bytes:
        """A file's content; a StoreError also where it is missing."""
        with self._reported(name, "cannot be read"):
            return bytes(self._located[0].cat_file(self._join(name)))

    def write(self, name: str, content: bytes) -> None:
        """Write a file so that it is seen whole or not at all."""
        target = self._join(name)
        with self._reported(name, "cannot be written"):
            if not self.is_local:  # object stores publish an object when its upload is complete
                self._located[0].pipe_file(target, content)
                return
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            temporary = _temporary(Path(target).parent)
            try:
                with temporary.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)  # what a full disk or Ctrl-C left half written

    def remove(self, name: str = "") -> None:
        """Delete a file or a folder with what is in it; nothing if it is not there."""
        filesystem, _ = self._located
        with self._reported(name, "cannot be removed"):
            if filesystem.exists(self._join(name)):
                filesystem.rm(self._join(name), recursive=True)

    def sweep(self) -> None:
        """Delete what writers that were killed left half written, here and in all folders below.

        Nobody may be writing. On an object store there is nothing: uploads end whole or not.
        """
        if not self.is_local:
            return
        with self._reported("", "cannot be swept"):
            for temporary in sorted(Path(self.path).rglob(_TEMPORARY)):
                if temporary.is_dir():
                    shutil.rmtree(temporary)
                else:
                    temporary.unlink(missing_ok=True)  # gone with its folder

    def upload(self, source: Path) -> None:
        """Make this folder a copy of the local folder `source`, replacing what was there.

        A local folder appears by one rename. On an object store the files are uploaded in
        sorted order with `config.json` last: a model folder without it is unfinished.
        """
        filesystem, path = self._located
        with self._reported("", "cannot be written"):
            if self.is_local:
                self._replace_by(source)
                return
            self.remove()
            files = sorted(f for f in source.rglob("*") if f.is_file())
            for file in sorted(files, key=lambda f: f.name == "config.json"):
                filesystem.put_file(str(file), f"{path}/{file.relative_to(source).as_posix()}")

    def localize(self, without: str | None = None) -> Path:
        """A local path with this folder's files: itself, or a copy cached on this node.

        A folder that was written again is copied again: the cache goes by what the listing says
        of every file (name, size, and the store's etag or time). Of the folders beside this one,
        the iterations of a run, only the latest copies are kept: see `rise_ray.store.copies`.
        Files whose names end in `without` are left out of a copy.

        Raises:
            StoreError: the folder is missing, or others can write to the cache.
        """
        filesystem, path = self._located
        if not self.exists():
            raise StoreError(f"{self.uri}: there is no such folder")
        if self.is_local:
            return Path(path)
        with self._reported("", "cannot be copied to this node"):
            listing = filesystem.find(path, detail=True)
            names = sorted(n for n in listing if without is None or not n.endswith(without))
            content = [(name, listing[name]) for name in names]
            family = _short_hash(f"{self.uri.rstrip('/').rpartition('/')[0]} {without}")

            def fill(copy: Path) -> None:
                filesystem.get(names, [f"{copy}/{n.removeprefix(path).lstrip('/')}" for n in names])

            return node_copy(family, _short_hash(f"{self.uri} {content}"), fill)

    def _replace_by(self, source: Path) -> None:
        path = Path(self.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = _temporary(path.parent)
        try:
            for file in (f for f in source.rglob("*") if f.is_file()):
                target = staged / file.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)  # the content alone, not its private mode
            if path.exists():
                shutil.rmtree(path)
            staged.rename(path)
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def _listed(self, kind: str) -> list[str]:
        filesystem, path = self._located
        with self._reported("", "cannot be listed"):
            try:
                entries = filesystem.ls(path, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
        names = [PurePosixPath(entry["name"]).name for entry in entries if entry["type"] == kind]
        return sorted(name for name in names if not name.startswith("."))

    @contextmanager
    def _reported(self, name: str, failure: str) -> Iterator[None]:
        """What the store raises inside, as a StoreError that says what failed and where."""
        where = f"{self.uri.rstrip('/')}/{name}" if name else self.uri
        try:
            yield
        except RiseError:
            raise
        except OSError as error:
            raise StoreError(f"{where}: {failure}: {error}") from error
        except Exception as error:
            if self.is_local:
                raise
            # Every file system of fsspec has errors of its own for a network that is away.
            reason = f"{type(error).__name__}: {error}"
            raise UnreachableError(f"{where}: {failure}: {reason}") from error

    def _join(self, name: str) -> str:
        return f"{self._located[1]}/{name}" if name else self._located[1]


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _temporary(folder: Path) -> Path:
    """A new name in a folder that no listing shows."""
    return folder / f".{uuid.uuid4().hex}.tmp"
