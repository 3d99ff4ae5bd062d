"""Removing bytes from a real S3-compatible store; the rows are in SQLite."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modelbox.runtime.blobs.s3 import S3Blobs
from modelbox.runtime.blobs.s3_client import S3Address
from modelbox.runtime.store.sqlite import SqliteDatabase
from tests.integration.server_core import write_databases
from tests.servers.s3 import S3Bucket

from .space_stores import CollectionContract, Stepped, SteppedStore, world

__all__ = ("world",)


class _SteppedS3(Stepped, S3Blobs):
    pass


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    write_databases(tmp_path)
    async with SqliteDatabase(tmp_path) as opened:
        yield opened


@pytest.fixture
async def stepped(s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SteppedStore]:
    for key, value in s3_bucket.env.items():
        monkeypatch.setenv(key, value)
    address = S3Address(bucket=s3_bucket.bucket, endpoint=s3_bucket.endpoint, path_style=True, prefix="mb/")
    async with _SteppedS3(address) as blobs:
        yield blobs


class TestCollection(CollectionContract):
    pass
