"""Blobs in S3-compatible stores, against the contract; and what is particular to them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from modelbox.runtime.blobs.s3 import S3Blobs
from modelbox.runtime.blobs.s3_client import S3Address
from tests.contract.blob_stores import BlobStoreContract
from tests.servers.s3 import S3Bucket, S3Server


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["rados_gateway", "moto_server"])
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> S3Bucket:
    server: S3Server = request.getfixturevalue(request.param)
    bucket = server.new_bucket()
    for key, value in bucket.env.items():
        monkeypatch.setenv(key, value)
    return bucket


def address(bucket: S3Bucket, **more: str) -> S3Address:
    return S3Address(bucket=bucket.bucket, endpoint=bucket.endpoint, path_style=True, prefix="mb/", **more)


@pytest.fixture
async def blobs(bucket: S3Bucket) -> AsyncIterator[S3Blobs]:
    async with S3Blobs(address(bucket), part_bytes=5 << 20) as opened:
        yield opened


class TestS3(BlobStoreContract):
    """The suite, over both servers."""
