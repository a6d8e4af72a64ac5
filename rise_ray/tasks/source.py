"""Rows of question-and-answer data sets, through `datasets`: of the hub, or of JSON lines.

`datasets` reads JSON lines as lines of text, which are parsed here: its own JSON reader infers
types (a string that looks like a date becomes one) and reports a malformed row without its line.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator
from typing import Any

from rise_ray.errors import DataError

JSON_LINES = (".jsonl", ".jsonl.gz")

Row = tuple[str, dict[str, Any]]
"""Where the row stands (`file:line`), and its columns."""


def read_rows(path: str, subset: str | None, split: str) -> Iterator[Row]:
    """The rows of a JSON-lines file (a path or URI: see `is_file`), or of a data set on the hub.

    `subset` is the hub data set's configuration, `split` its split: a file is one split.

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
        DataError: it is missing, no text, empty, or holds half a character.
    """
    where, columns = row
    value = columns.get(column)
    if not isinstance(value, str) or not value.strip():
        found = "is missing" if column not in columns else f"is {value!r}, not a text"
        raise DataError(f"{where}: column `{column}` {found} (columns: {', '.join(columns)})")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can write one: "\ud83d" without its second half
        raise DataError(
            f"{where}: column `{column}` holds half a character, the lone surrogate "
            f"{value[error.start]!r} at position {error.start}"
        ) from None
    return value


def content_hash(*texts: str) -> str:
    """16 hex digits that name a content: equal on every machine and in every run."""
    return hashlib.blake2b("\x1f".join(texts).encode(), digest_size=8).hexdigest()


def _read_lines(path: str) -> Iterator[Row]:
    # Imported here: it is slow, and the verifier's children load tasks but no data.
    from datasets import Features, Value, disable_progress_bars, load_dataset
    from datasets.exceptions import DatasetsError

    disable_progress_bars()
    try:
        rows = load_dataset(
            "text",
            data_files={"lines": path},
            split="lines",
            features=Features({"text": Value("string")}),
            # A byte that is no UTF-8 becomes `\xff`, which is no JSON either: its line is told.
            encoding_errors="backslashreplace",
        )
    # EOFError, zlib.error: damaged compression; ImportError, ValueError: no such kind of URI here.
    except (DatasetsError, OSError, EOFError, zlib.error, ImportError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error.__cause__ or error}") from error
    for number, row in enumerate(rows, start=1):
        where = f"{path}:{number}"
        if not row["text"].strip():
            continue
        try:
            columns = json.loads(row["text"])
        except ValueError as error:
            raise DataError(f"{where}: not valid JSON: {error}") from error
        if not isinstance(columns, dict):
            raise DataError(f"{where}: a row must be a JSON object, not {type(columns).__name__}")
        yield where, columns


def _read_hub(path: str, subset: str | None, split: str) -> Iterator[Row]:
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
