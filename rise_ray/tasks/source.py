"""Rows of question-and-answer data sets: from the Hugging Face hub, or from JSON lines.

JSON lines are read here and not through `datasets`, which infers types (a string that looks
like a date becomes one) and reports a malformed row without its line.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator
from typing import Any

import fsspec

from rise_ray.errors import DataError

JSON_LINES = (".jsonl", ".jsonl.gz")

Row = tuple[str, dict[str, Any]]
"""Where the row stands (`file:line`), and its columns."""


def read_rows(path: str, subset: str | None, split: str) -> Iterator[Row]:
    """The rows of a JSON-lines file (a path or URI), or of a split of a data set on the hub.

    Args:
        path: a file if its name ends in `.jsonl` or `.jsonl.gz`, else a hub name.
        subset: the hub data set's configuration; not used for files.
        split: the hub data set's split; a file is one split.

    Raises:
        DataError: the source is missing, unreadable, or a line is no JSON object.
    """
    return _read_lines(path) if is_file(path) else _read_hub(path, subset, split)


def is_file(path: str) -> bool:
    """Whether `path` names a JSON-lines file rather than a data set on the hub."""
    return path.endswith(JSON_LINES)


def text_column(row: Row, column: str) -> str:
    """The text of a column.

    Raises:
        DataError: it is missing, no text, or empty.
    """
    where, columns = row
    value = columns.get(column)
    if not isinstance(value, str) or not value.strip():
        found = "is missing" if column not in columns else f"is {value!r}, not a text"
        raise DataError(f"{where}: column `{column}` {found} (columns: {', '.join(columns)})")
    return value


def content_hash(*texts: str) -> str:
    """16 hex digits that name a content: equal on every machine and in every run."""
    return hashlib.blake2b("\x1f".join(texts).encode(), digest_size=8).hexdigest()


def _read_lines(path: str) -> Iterator[Row]:
    try:
        with fsspec.open(path, "rb", compression="infer") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path}:{number}", _parse_line(f"{path}:{number}", line)
    # EOFError, zlib.error: damaged compression; ImportError, ValueError: no such kind of URI here.
    except (OSError, EOFError, zlib.error, ImportError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _parse_line(where: str, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:  # malformed JSON or UTF-8
        raise DataError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: a row must be a JSON object, not {type(row).__name__}")
    return row


def _read_hub(path: str, subset: str | None, split: str) -> Iterator[Row]:
    # Imported here: it is slow, and the verifier's children load tasks but no data.
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        rows = load_dataset(path, subset, split=split)
    except (DatasetsError, OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be loaded from the hub (split `{split}`, subset {subset!r}): {error}. "
            f"A local file's name must end in {' or '.join(JSON_LINES)}"
        ) from error
    for number, row in enumerate(rows):
        yield f"{path}[{split}] row {number}", dict(row)
