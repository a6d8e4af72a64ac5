"""Parquet files as bytes that are verified before they are parsed.

A file's SHA-256 is kept outside of it (in its name, or in a manifest), so that no truncated,
changed or replaced file is ever read as data; its schema version is inside.
"""

from __future__ import annotations

import hashlib
import io

import pyarrow as pa
import pyarrow.parquet as pq

from rise_ray.errors import StoreError


def sha256(content: bytes) -> str:
    """64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def to_bytes(table: pa.Table, schema: pa.Schema) -> bytes:
    """A table as a Parquet file of `schema`, whose metadata hold the schema version."""
    sink = io.BytesIO()
    pq.write_table(table.cast(schema), sink, compression="zstd")
    return sink.getvalue()


def from_bytes(
    content: bytes, schema: pa.Schema, where: str, columns: list[str] | None = None
) -> pa.Table:
    """The inverse of `to_bytes`, for content whose SHA-256 was verified.

    `columns` are those to read (None: all); `where` names the file in errors.

    Raises:
        StoreError: another schema version wrote it, or its columns are others.
    """
    file = pq.ParquetFile(io.BytesIO(content))
    found, expected = (
        (s.metadata or {}).get(b"schema_version", b"none").decode()
        for s in (file.schema_arrow, schema)
    )
    if found != expected:
        raise StoreError(
            f"{where}: of schema version {found}; this rise-ray reads {expected}: go on with the "
            "rise-ray that wrote it, or start a run of another `name`"
        )
    if not file.schema_arrow.equals(schema):
        raise StoreError(f"{where}: its columns are not those of its schema version")
    return file.read(columns=columns)
