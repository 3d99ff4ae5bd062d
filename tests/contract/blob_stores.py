"""What every blob store must do. Subclass the suite and give the fixture ``blobs``."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from datetime import UTC, datetime, timedelta

import anyio
import pytest

from modelbox.errors import IntegrityError, InvalidError, LimitError, StorageError
from modelbox.refs import Digest
from modelbox.runtime.ports import BlobEntry, BlobStore

UPLOAD = "upl_0123456789abcdef01234567"
DATA = random.Random(7).randbytes(5_000_001)


def digest_of(data: bytes) -> Digest:
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


async def put(blobs: BlobStore, data: bytes, *, upload: str = UPLOAD) -> Digest:
    async with blobs.open_upload(upload) as writer:
        await writer.write(data)
        await writer.commit(digest_of(data), len(data))
    return digest_of(data)


async def get(blobs: BlobStore, digest: Digest, offset: int = 0, length: int | None = None) -> bytes:
    chunks = [chunk async for chunk in blobs.read(digest, offset=offset, length=length)]
    assert all(0 < len(chunk) <= 1 << 20 for chunk in chunks)
    return b"".join(chunks)


async def entries(blobs: BlobStore) -> list[BlobEntry]:
    return [entry async for entry in blobs.iter_blobs()]


class BlobStoreContract:
    """`modelbox.runtime.ports.BlobStore`."""

    @pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, len(DATA)])
    async def test_what_goes_in_comes_out(self, blobs: BlobStore, size: int) -> None:
        data = DATA[:size]
        assert await blobs.find_size(digest_of(data)) is None
        digest = await put(blobs, data)
        assert await blobs.find_size(digest) == size
        assert await get(blobs, digest) == data
        assert await blobs.upload_offset(UPLOAD) == 0

    async def test_ranges(self, blobs: BlobStore) -> None:
        digest = await put(blobs, DATA)
        for offset, length in ((0, 0), (0, 10), (1 << 20, 1 << 20), (len(DATA) - 1, 1), (len(DATA), None), (5, None)):
            wanted = DATA[offset:] if length is None else DATA[offset : offset + length]
            assert await get(blobs, digest, offset, length) == wanted
        with pytest.raises(StorageError):
            await get(blobs, digest, len(DATA) - 1, 2)

    async def test_a_broken_upload_goes_on_where_it_ended(self, blobs: BlobStore) -> None:
        with pytest.raises(ConnectionResetError):
            async with blobs.open_upload(UPLOAD) as writer:
                await writer.write(DATA[:3_000_000])
                await writer.write(DATA[3_000_000:3_000_007])
                raise ConnectionResetError
        assert await blobs.upload_offset(UPLOAD) == 3_000_007
        async with blobs.open_upload(UPLOAD) as writer:
            assert writer.offset == 3_000_007
            await writer.write(DATA[3_000_007:])
            await writer.commit(digest_of(DATA), len(DATA))
        assert await get(blobs, digest_of(DATA)) == DATA

    async def test_a_cancelled_upload_keeps_what_arrived(self, blobs: BlobStore) -> None:
        with anyio.CancelScope() as scope:
            async with blobs.open_upload(UPLOAD) as writer:
                await writer.write(DATA[:2_500_000])
                scope.cancel()
                await anyio.sleep_forever()
        assert await blobs.upload_offset(UPLOAD) == 2_500_000
        async with blobs.open_upload(UPLOAD) as writer:
            await writer.write(DATA[2_500_000:])
            await writer.commit(digest_of(DATA), len(DATA))
        assert await blobs.find_size(digest_of(DATA)) == len(DATA)

    @pytest.mark.parametrize(("digest", "size"), [(digest_of(b"x"), 10), (digest_of(DATA[:10]), 11)])
    async def test_other_bytes_than_announced_never_become_a_blob(
        self, blobs: BlobStore, digest: Digest, size: int
    ) -> None:
        with pytest.raises(IntegrityError):
            async with blobs.open_upload(UPLOAD) as writer:
                await writer.write(DATA[:10])
                await writer.commit(digest, size)
        assert await blobs.find_size(digest) is None
        await blobs.discard_upload(UPLOAD)
        assert await blobs.upload_offset(UPLOAD) == 0

    async def test_the_same_bytes_twice(self, blobs: BlobStore) -> None:
        await put(blobs, DATA)
        await put(blobs, DATA, upload="upl_00000000000000000000ffff")
        assert await get(blobs, digest_of(DATA)) == DATA

    async def test_many_at_once(self, blobs: BlobStore) -> None:
        pieces = [DATA[i * 700_000 : (i + 1) * 700_000] for i in range(7)]
        async with anyio.create_task_group() as tasks:
            for number, piece in enumerate(pieces):

                async def one(number: int = number, piece: bytes = piece) -> None:
                    await put(blobs, piece, upload=f"upl_{number:024x}")

                tasks.start_soon(one)
        digests = [digest_of(piece) for piece in pieces]
        assert await blobs.find_sizes([*digests, digest_of(b"nix")]) == dict.fromkeys(digests, 700_000)

    async def test_idle_uploads_are_swept(self, blobs: BlobStore) -> None:
        async with blobs.open_upload(UPLOAD) as writer:
            await writer.write(b"some")
        assert await blobs.sweep_uploads(idle_s=3600) == {UPLOAD}
        assert await blobs.upload_offset(UPLOAD) == 4
        assert await blobs.sweep_uploads(idle_s=-3600) == frozenset()
        assert await blobs.upload_offset(UPLOAD) == 0

    async def test_every_blob_is_listed_once_and_uploads_are_not(self, blobs: BlobStore) -> None:
        assert await entries(blobs) == []
        pieces = [DATA[:size] for size in (0, 1, 500, len(DATA))]
        digests = [await put(blobs, piece) for piece in pieces]
        async with blobs.open_upload(UPLOAD) as writer:
            await writer.write(b"on its way")
        found = await entries(blobs)
        assert sorted((entry.digest, entry.size_bytes) for entry in found) == sorted(
            zip(digests, map(len, pieces), strict=True)
        )
        for entry in found:
            assert await blobs.find_blob(entry.digest) == entry
            assert entry.stored_at.utcoffset() == timedelta(0)
            assert abs(datetime.now(UTC) - entry.stored_at) < timedelta(hours=1)
        assert await blobs.find_blob(digest_of(b"nix")) is None

    async def test_a_deleted_blob_is_gone_and_can_come_again(self, blobs: BlobStore) -> None:
        digest, other = await put(blobs, DATA), await put(blobs, DATA[:9])
        entry = await blobs.find_blob(digest)
        assert entry is not None
        assert await blobs.delete(entry)
        assert await blobs.find_size(digest) is None
        assert await blobs.find_blob(digest) is None
        with pytest.raises(StorageError):
            await get(blobs, digest)
        assert not await blobs.delete(entry)
        assert [left.digest for left in await entries(blobs)] == [other]
        assert await put(blobs, DATA) == digest
        assert await get(blobs, digest) == DATA

    async def test_bytes_of_another_generation_are_not_deleted(self, blobs: BlobStore) -> None:
        digest = await put(blobs, DATA)
        entry = await blobs.find_blob(digest)
        assert entry is not None
        assert not await blobs.delete(dataclasses.replace(entry, generation="of yesterday"))
        assert await get(blobs, digest) == DATA

    async def test_room(self, blobs: BlobStore) -> None:
        await blobs.check_room(1)
        with pytest.raises(LimitError):
            await blobs.check_room(1 << 62)

    @pytest.mark.parametrize("name", ["../x", "upl_..", "", "upl_0123/../../x", "UPL_0123456789"])
    async def test_ids_that_the_server_did_not_make(self, blobs: BlobStore, name: str) -> None:
        with pytest.raises(InvalidError):
            await blobs.upload_offset(name)
