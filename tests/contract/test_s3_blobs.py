"""Blobs in S3-compatible stores, against the contract; and what is particular to them."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import pytest

from modelbox.errors import ConfigError, IntegrityError, ServerBusy, StorageError
from modelbox.runtime.blobs.s3 import S3Blobs
from modelbox.runtime.blobs.s3_client import S3Address, md5_of
from tests.contract.blob_stores import UPLOAD, BlobStoreContract, digest_of, get, put
from tests.servers.s3 import S3Bucket, S3Server

PART = 5 << 20
LARGE = random.Random(8).randbytes(2 * PART + 1_234_567)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def server(rados_gateway: S3Server) -> S3Server:
    """The real one, where nothing else is said."""
    return rados_gateway


@pytest.fixture
def bucket(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Bucket:
    """A bucket whose credentials are in the environment."""
    bucket = server.new_bucket()
    for key, value in bucket.env.items():
        monkeypatch.setenv(key, value)
    return bucket


def store(bucket: S3Bucket, **more: Any) -> S3Blobs:
    """One server's store; several of them are several servers."""
    address = S3Address(bucket=bucket.bucket, endpoint=bucket.endpoint, path_style=True, prefix="mb/")
    return S3Blobs(address, **{"part_bytes": PART, **more})


@pytest.fixture
async def blobs(bucket: S3Bucket) -> AsyncIterator[S3Blobs]:
    async with store(bucket) as opened:
        yield opened


class TestRadosGateway(BlobStoreContract):
    """The suite, over a real store."""


class TestMoto(BlobStoreContract):
    """The suite, over a store that behaves a little differently."""

    @pytest.fixture
    def server(self, moto_server: S3Server) -> S3Server:
        return moto_server


def stored(bucket: S3Bucket) -> list[str]:
    """What lies under the names of blobs."""
    return [key for key in bucket.list_keys() if key.startswith("mb/blobs/")]


def blob_key(data: bytes) -> str:
    name = digest_of(data).removeprefix("sha256:")
    return f"mb/blobs/sha256/{name[:2]}/{name}"


async def feed(blobs: S3Blobs, data: bytes, *, upload: str = UPLOAD) -> None:
    """Sends some bytes, and breaks off."""
    with pytest.raises(ConnectionResetError):
        async with blobs.open_upload(upload) as writer:
            at = await blobs.upload_offset(upload)
            assert writer.offset == at
            for first in range(0, len(data), 1 << 20):
                await writer.write(data[first : first + (1 << 20)])
            raise ConnectionResetError


async def finish(blobs: S3Blobs, data: bytes = LARGE, *, upload: str = UPLOAD) -> None:
    """Goes on from where the store says, to the end."""
    async with blobs.open_upload(upload) as writer:
        await writer.write(data[writer.offset :])
        await writer.commit(digest_of(data), len(data))


@pytest.mark.parametrize("size", [PART, PART + 1, 2 * PART, len(LARGE)])
async def test_files_of_several_parts(blobs: S3Blobs, bucket: S3Bucket, size: int) -> None:
    digest = await put(blobs, LARGE[:size])
    assert await get(blobs, digest) == LARGE[:size]
    assert bucket.list_keys() == [blob_key(LARGE[:size])]
    assert bucket.multipart_uploads() == []


@pytest.mark.parametrize("size", [1000, PART, PART + 1000, 2 * PART])
async def test_another_server_goes_on_with_an_upload(blobs: S3Blobs, bucket: S3Bucket, size: int) -> None:
    await feed(blobs, LARGE[:size])
    assert stored(bucket) == []
    async with store(bucket) as other:
        assert await other.upload_offset(UPLOAD) == size
        await finish(other)
        assert await get(other, digest_of(LARGE)) == LARGE
        assert await other.upload_offset(UPLOAD) == 0
    assert bucket.list_keys() == [blob_key(LARGE)]
    assert bucket.multipart_uploads() == []


async def test_what_this_server_hashed_is_not_read_again(
    blobs: S3Blobs, bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    await feed(blobs, LARGE[: PART + 1000])
    await feed(blobs, LARGE[PART + 1000 : 2 * PART + 7])

    async def unwanted(key: str) -> Any:
        raise AssertionError(f"{key} is read")

    monkeypatch.setattr(blobs, "digest_of", unwanted)
    await finish(blobs)
    assert await get(blobs, digest_of(LARGE)) == LARGE


@pytest.mark.parametrize("here", [True, False])
async def test_wrong_bytes_in_an_earlier_part_are_noticed_wherever_it_ends(
    blobs: S3Blobs, bucket: S3Bucket, here: bool
) -> None:
    await feed(blobs, bytes(PART + 10))
    async with store(bucket) as other:
        with pytest.raises(IntegrityError):
            await finish(blobs if here else other)
        assert stored(bucket) == []
        await other.discard_upload(UPLOAD)
        assert await other.upload_offset(UPLOAD) == 0
    assert bucket.list_keys() == bucket.multipart_uploads() == []


async def test_two_servers_write_one_upload(blobs: S3Blobs, bucket: S3Bucket) -> None:
    """The first has not noticed that its peer is gone, and gets other bytes than the second."""
    async with store(bucket) as other:
        await feed(blobs, LARGE[: PART + 1])
        async with blobs.open_upload(UPLOAD) as slow:
            await slow.write(bytes(len(LARGE) - slow.offset))
            await slow.flush()
            # It has all parts in its hands, of which the second one is wrong.
            await finish_or_fail(other)
            with pytest.raises((IntegrityError, StorageError, ServerBusy)):
                await slow.commit(digest_of(LARGE), len(LARGE))
        assert stored(bucket) in ([], [blob_key(LARGE)])
        await other.discard_upload(UPLOAD)
        await finish(other)
        assert await get(other, digest_of(LARGE)) == LARGE
    assert bucket.list_keys() == [blob_key(LARGE)]


async def finish_or_fail(blobs: S3Blobs) -> None:
    try:
        await finish(blobs)
    except (IntegrityError, StorageError, ServerBusy):
        return


async def test_who_proved_its_bytes_needs_no_second_copy(blobs: S3Blobs, bucket: S3Bucket) -> None:
    await put(blobs, LARGE)
    before = await blobs.find_blob(digest_of(LARGE))
    await put(blobs, LARGE, upload="upl_00000000000000000000ffff")
    assert await blobs.find_blob(digest_of(LARGE)) == before
    assert bucket.list_keys() == [blob_key(LARGE)]
    assert bucket.multipart_uploads() == []


# -- crashes -----------------------------------------------------------------------------------------------------------


class Crash(Exception):
    """The end of a server in the middle of something."""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["complete", "copy", "abort_or_delete"])
async def test_a_crash_at_every_step_of_committing(
    bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch, step: str, when: str
) -> None:
    async with store(bucket) as dying:
        for name in ("delete", "abort") if step == "abort_or_delete" else (step,):
            _crash_in(monkeypatch, dying, name, when)
        with pytest.raises(Crash):
            async with dying.open_upload(UPLOAD) as writer:
                await writer.write(LARGE)
                await writer.commit(digest_of(LARGE), len(LARGE))
        monkeypatch.undo()
    for key, value in bucket.env.items():
        monkeypatch.setenv(key, value)
    assert stored(bucket) in ([], [blob_key(LARGE)])
    async with store(bucket) as other:
        assert await other.upload_offset(UPLOAD) in (0, len(LARGE))
        await finish(other)
        assert await get(other, digest_of(LARGE)) == LARGE
        await other.sweep_uploads(idle_s=-3600)
    assert bucket.list_keys() == [blob_key(LARGE)]
    assert bucket.multipart_uploads() == []


def _crash_in(monkeypatch: pytest.MonkeyPatch, blobs: S3Blobs, name: str, when: str) -> None:
    real: Callable[..., Awaitable[Any]] = getattr(blobs.client, name)

    async def dies(*args: Any, **kwargs: Any) -> Any:
        if when == "after":
            await real(*args, **kwargs)
        raise Crash

    monkeypatch.setattr(blobs.client, name, dies)


async def test_large_blobs_are_copied_in_ranges(bucket: S3Bucket) -> None:
    async with store(bucket, copy_bytes=PART) as blobs:
        await put(blobs, LARGE)
        assert await get(blobs, digest_of(LARGE)) == LARGE
    assert bucket.list_keys() == [blob_key(LARGE)]
    assert bucket.multipart_uploads() == []


async def test_idle_parts_and_copies_are_swept_and_blobs_are_not(blobs: S3Blobs, bucket: S3Bucket) -> None:
    await put(blobs, LARGE[:10])
    await feed(blobs, LARGE[: PART + 10])
    half = await blobs.client.create_multipart("blobs/sha256/ab/ab" + 62 * "0")
    await blobs.client.put_part(half, 1, LARGE[:PART], md5=md5_of(LARGE[:PART]))
    assert await blobs.sweep_uploads(idle_s=3600) == {UPLOAD}
    assert await blobs.upload_offset(UPLOAD) == PART + 10
    assert len(bucket.multipart_uploads()) == 2
    assert await blobs.sweep_uploads(idle_s=-3600) == frozenset()
    assert await blobs.upload_offset(UPLOAD) == 0
    assert bucket.multipart_uploads() == []
    assert bucket.list_keys() == [blob_key(LARGE[:10])]


async def test_a_cancelled_upload_of_several_parts_keeps_them(blobs: S3Blobs, bucket: S3Bucket) -> None:
    with anyio.CancelScope() as scope:
        async with blobs.open_upload(UPLOAD) as writer:
            await writer.write(LARGE[: 2 * PART + 5])
            scope.cancel()
            await anyio.sleep_forever()
    async with store(bucket) as other:
        assert await other.upload_offset(UPLOAD) == 2 * PART + 5
        await finish(other)
        assert await get(other, digest_of(LARGE)) == LARGE


# -- starting ----------------------------------------------------------------------------------------------------------


async def test_wrong_settings_are_told_at_the_start(bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    async def start(**changes: str) -> str:
        known = {"bucket": bucket.bucket, "endpoint": bucket.endpoint, **changes}
        with pytest.raises(ConfigError) as caught:
            async with S3Blobs(S3Address(path_style=True, **known), connect_timeout_s=0):
                pass
        chain: list[BaseException] = [caught.value]
        while (cause := chain[-1].__cause__) is not None:
            chain.append(cause)
        for secret in (bucket.secret_key, "wrong-secret"):
            assert all(secret not in f"{error} {error!r}" for error in chain)
        return caught.value.message

    assert "make the bucket" in await start(bucket="there-is-none")
    assert "does not answer" in await start(endpoint="http://127.0.0.1:9")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    assert "check the credentials" in await start()
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    assert "AWS_ACCESS_KEY_ID" in await start()


async def test_a_start_waits_for_a_store_that_comes_up(bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = store(bucket)
    real, tries = blobs.client.probe, 0

    async def away_at_first(name: str) -> bool:
        nonlocal tries
        tries += 1
        if tries < 2:
            raise ServerBusy("not yet")
        return await real(name)

    monkeypatch.setattr(blobs.client, "probe", away_at_first)
    async with blobs:
        assert await blobs.find_size(digest_of(b"")) is None
    assert bucket.list_keys() == []
