"""Folders on a local path or any fsspec URI, with atomic writes.

Nothing in rise-ray assumes that nodes share a disk: what crosses nodes goes through a `Folder`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import uuid
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec

from rise_ray.errors import StoreError


@dataclass(frozen=True)
class Folder:
    """A folder, named by a local path or a URI (`s3://bucket/run`, `gs://...`, `memory://...`).

    Names in methods are relative and use `/`. Nothing is created before the first write.
    """

    uri: str

    def __truediv__(self, name: str) -> Folder:
        return Folder(f"{self.uri.rstrip('/')}/{name}")

    @cached_property
    def _located(self) -> tuple[Any, str]:
        filesystem, path = fsspec.core.url_to_fs(self.uri)
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
        """Whether the file or folder is there."""
        return bool(self._located[0].exists(self._join(name)))

    def names(self, suffix: str = "") -> list[str]:
        """Names of the files directly in this folder that end in `suffix`, sorted; [] if none."""
        filesystem, path = self._located
        if not filesystem.exists(path):
            return []
        filesystem.invalidate_cache(path)
        entries = filesystem.ls(path, detail=True)
        names = [entry["name"].rsplit("/", 1)[-1] for entry in entries if entry["type"] == "file"]
        return sorted(n for n in names if n.endswith(suffix) and not n.startswith("."))

    def folders(self) -> list[str]:
        """Names of the folders directly in this one, sorted; [] if there are none."""
        filesystem, path = self._located
        if not filesystem.exists(path):
            return []
        filesystem.invalidate_cache(path)
        entries = filesystem.ls(path, detail=True)
        names = [
            entry["name"].rstrip("/").rsplit("/", 1)[-1]
            for entry in entries
            if entry["type"] == "directory"
        ]
        return sorted(n for n in names if not n.startswith("."))

    def read(self, name: str) -> bytes:
        """A file's content.

        Raises:
            StoreError: it is missing or unreadable.
        """
        try:
            return bytes(self._located[0].cat_file(self._join(name)))
        except OSError as error:
            raise StoreError(f"{self._join(name)}: cannot be read: {error}") from error

    def write(self, name: str, content: bytes) -> None:
        """Write a file so that it is seen whole or not at all.

        Raises:
            StoreError: the folder cannot be written (full, read-only, no permission).
        """
        filesystem, _ = self._located
        target = self._join(name)
        try:
            filesystem.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
            if not self.is_local:  # object stores publish an object when its upload is complete
                filesystem.pipe_file(target, content)
                return
            temporary = f"{target.rsplit('/', 1)[0]}/.{uuid.uuid4().hex}.tmp"
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except OSError as error:
            raise StoreError(f"{target}: cannot be written: {error}") from error

    def remove(self, name: str = "") -> None:
        """Delete a file or a folder with what is in it; nothing if it is not there."""
        filesystem, _ = self._located
        if filesystem.exists(self._join(name)):
            filesystem.rm(self._join(name), recursive=True)

    def upload(self, source: Path) -> None:
        """Make this folder a copy of the local folder `source`, replacing what was there.

        A local folder appears by one rename. On an object store the files are uploaded in
        sorted order with `config.json` last: a model folder without it is unfinished.

        Raises:
            StoreError: the folder cannot be written.
        """
        filesystem, path = self._located
        try:
            if self.is_local:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                staged = Path(path).parent / f".{uuid.uuid4().hex}.tmp"
                for file in (f for f in source.rglob("*") if f.is_file()):
                    target = staged / file.relative_to(source)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, target)  # the content alone, not its private mode
                if Path(path).exists():
                    shutil.rmtree(path)
                staged.rename(path)
                return
            self.remove()
            files = sorted(f for f in source.rglob("*") if f.is_file())
            for file in sorted(files, key=lambda f: f.name == "config.json"):
                filesystem.put_file(str(file), f"{path}/{file.relative_to(source).as_posix()}")
        except OSError as error:
            raise StoreError(f"{self.uri}: cannot be written: {error}") from error

    def localize(self) -> Path:
        """A local path with this folder's files: itself, or a copy cached on this node.

        A folder that was written again is copied again: the cache goes by what the listing says
        of every file (name, size, and the store's etag or time).

        Raises:
            StoreError: the folder is missing.
        """
        filesystem, path = self._located
        if not filesystem.exists(path):
            raise StoreError(f"{self.uri}: there is no such folder")
        if self.is_local:
            return Path(path)
        filesystem.invalidate_cache(path)
        listing = sorted(filesystem.find(path, detail=True).items())
        key = hashlib.sha256(f"{self.uri} {listing}".encode()).hexdigest()[:16]
        cache = Path(tempfile.gettempdir()) / f"rise-ray-{os.getuid()}" / key
        if not cache.exists():
            cache.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            staged = cache.with_name(f".{uuid.uuid4().hex}")
            filesystem.get(path, str(staged), recursive=True)
            try:
                staged.rename(cache)
            except OSError:  # another process of this node was faster; its copy is the same
                shutil.rmtree(staged)
        return cache

    def _join(self, name: str) -> str:
        return f"{self._located[1]}/{name}" if name else self._located[1]
