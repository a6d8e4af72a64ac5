"""What the tests of the store share: an S3 server."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from rise_ray.store.files import Folder
from tests.object_store import BUCKET, s3_server


@pytest.fixture(scope="module")
def s3() -> Iterator[None]:
    """An S3 server, and an environment that leads to it."""
    with s3_server():
        yield


@pytest.fixture
def s3_folder(s3: None) -> Folder:
    """An empty folder on it."""
    return Folder(f"s3://{BUCKET}/{uuid.uuid4().hex}/run")
