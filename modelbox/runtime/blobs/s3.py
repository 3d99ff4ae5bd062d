"""Blobs as objects of an S3-compatible store, shared by any number of servers.

Layout, below the prefix: ``blobs/sha256/ab/<64 hex>`` for blobs, ``uploads/<id>/…`` for what is on its way. Invariants:

* A key below ``blobs`` is written in one step, by a put or by a copy inside the store, and only after the server itself
  computed the sha256 of just these bytes; so a crash leaves a whole blob or none. What it leaves of an upload, and who
  goes on with it, is told in `modelbox.runtime.blobs.s3_upload`.
* What is copied to a blob's key is an object that cannot change any more: its own key was made up at random, and the
  multipart upload that it came from has ended.
* A blob that is written again is written anew if it is older than an hour, so that whoever removes what nobody needs
  sees that it is another generation.
* Keys are made of digests and of ids that the server made, never of user text. One prefix belongs to one installation.

What nobody goes on with is removed by `S3Blobs.sweep_uploads`, by the clock of the store. Blobs travel in memory of
bounded size: parts of 8 MiB, at most three at a time of one upload and twelve of all, and at most 24 uploads, of which
each holds two more; so half a GiB when clients do all they can. Those who come then wait for their turn.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Self

import anyio
from anyio import to_thread

from modelbox.errors import ConfigError, InvalidError, LimitError, ModelBoxError, ServerBusy, StorageError
from modelbox.refs import Digest, parse_digest, shown
from modelbox.runtime.blobs.s3_client import Found, Multipart, Part, S3Address, S3Client
from modelbox.runtime.blobs.s3_upload import PART_BYTES, Kept, S3Writer, UploadState, new_data_key
from modelbox.runtime.ports import BlobEntry, SignedPart

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ("S3Blobs",)

_LOG = logging.getLogger(__name__)
_CHUNK_BYTES = 1 << 20
_HASHED_AT_ONCE = 4 << 20
_REQUESTS_AT_A_TIME = 16
_PARTS_IN_FLIGHT = 12
_WRITERS = 24
_READ_ATTEMPTS = 5
_MAX_PARTS = 10_000
_COPY_BYTES = 1 << 30
_KEPT_UPLOADS = 256
_SIGNED_FOR_S = 300
_SIGNED_PARTS = 16
_SIGNED_WHOLE_BYTES = 256 << 20
_FRESH = timedelta(hours=1)
_UPLOAD_ID = re.compile(r"[a-z]{1,8}_[0-9a-f]{8,32}")
_BLOB_KEY = re.compile(r"blobs/sha256/([0-9a-f]{2})/(\1[0-9a-f]{62})")
_UPLOAD_KEY = re.compile(r"uploads/([^/]+)/.*")


class S3Blobs:
    """`modelbox.runtime.ports.BlobStore` in a bucket.

    Use as an async context manager: entering finds out whether the bucket is there and may be used.

    Args:
        address: Where it is.
        connect_timeout_s: How long entering waits for a store that does not answer yet.
        presign: Whether others may be given addresses to send to and to read from.
        part_bytes: Of an upload; not below 5 MiB, which stores refuse.
        copy_bytes: Larger blobs are copied in ranges of this size.
    """

    def __init__(
        self,
        address: S3Address,
        *,
        connect_timeout_s: float = 30.0,
        presign: bool = False,
        part_bytes: int = PART_BYTES,
        copy_bytes: int = _COPY_BYTES,
    ) -> None:
        self.address = address
        self._connect_timeout_s = connect_timeout_s
        self._presign = presign
        self._copy_bytes = copy_bytes
        self._requests = anyio.Semaphore(_REQUESTS_AT_A_TIME)
        self.client = S3Client(address)
        self.part_bytes = part_bytes
        self.slots = anyio.Semaphore(_PARTS_IN_FLIGHT)
        self.writers = anyio.Semaphore(_WRITERS)
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._proves = False

    async def __aenter__(self) -> Self:
        await self.client.__aenter__()
        try:
            await self._check_start()
        except BaseException:
            await self.client.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._kept.clear()
        await self.client.__aexit__(exc_type, exc, traceback)

    async def _check_start(self) -> None:
        deadline = anyio.current_time() + self._connect_timeout_s
        while True:
            try:
                self._proves = await self.client.probe(f"uploads/probe-{secrets.token_hex(8)}")
            except ServerBusy as exc:
                if anyio.current_time() >= deadline:
                    raise ConfigError(
                        f"{exc.message}: check blobs_url and s3_endpoint, and whether the store runs"
                    ) from exc
                _LOG.warning("%s; trying again", exc.message)
                await anyio.sleep(1.0)
            except StorageError as exc:
                raise ConfigError(f"{exc.message}: {_advice(exc)}") from exc
            else:
                return

    # -- blobs -----------------------------------------------------------------------------------------------------

    async def find_size(self, digest: Digest) -> int | None:
        """See `BlobStore.find_size`."""
        found = await self.client.head(_key(digest))
        return None if found is None else found.size_bytes

    async def find_sizes(self, digests: Sequence[Digest]) -> dict[Digest, int]:
        """See `BlobStore.find_sizes`."""
        wanted = list(dict.fromkeys(digests))
        sizes = dict(zip(wanted, await self._each(wanted), strict=True))
        return {digest: size for digest, size in sizes.items() if size is not None}

    async def _each(self, digests: Sequence[Digest]) -> list[int | None]:
        found: list[int | None] = [None] * len(digests)

        async def one(place: int, digest: Digest) -> None:
            async with self._requests:
                found[place] = await self.find_size(digest)

        try:
            async with anyio.create_task_group() as tasks:
                for place, digest in enumerate(digests):
                    tasks.start_soon(one, place, digest, name="find a blob")
        except ExceptionGroup as group:
            raise _first(group) from group
        return found

    async def check_room(self, size_bytes: int) -> None:
        """See `BlobStore.check_room`; a bucket grows, but an upload has a limited number of parts."""
        if size_bytes > self.part_bytes * _MAX_PARTS:
            raise LimitError(f"{size_bytes} bytes do not fit into {_MAX_PARTS} parts of {self.part_bytes} bytes")

    def local_path(self, digest: Digest) -> Path | None:
        """See `BlobStore.local_path`: never."""
        return None

    async def read(self, digest: Digest, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """See `BlobStore.read`; a connection that breaks is made again, and reading goes on where it was."""
        async for chunk in self.read_object(_key(digest), str(digest), offset=offset, length=length):
            yield chunk

    async def read_object(
        self, key: str, what: str, *, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        """As `read`, of any object of ours."""
        failures, left = 0, length
        while left is None or left > 0:
            try:
                async with self.client.get(key, offset, left) as body:
                    if body is None:
                        break
                    while True:
                        with self.client.reading():
                            chunk = await body.read(_CHUNK_BYTES if left is None else min(_CHUNK_BYTES, left))
                        if not chunk:
                            break
                        failures = 0
                        offset += len(chunk)
                        left = None if left is None else left - len(chunk)
                        yield chunk
                break
            except ServerBusy as exc:
                failures += 1
                if failures == _READ_ATTEMPTS:
                    raise StorageError(f"reading {what} failed at byte {offset}: {exc.message}") from exc
                await anyio.sleep(0.1 * 2**failures)
            except StorageError as exc:
                raise StorageError(f"{what} cannot be read: {exc.message}") from exc
        if left:
            raise StorageError(f"{what} ends at byte {offset}, {left} bytes too early")

    async def sign_read(self, digest: Digest) -> str:
        """See `BlobStore.sign_read`."""
        if not self._presign:
            return ""
        return await self.client.sign("get_object", _key(digest), expires_s=_SIGNED_FOR_S)

    async def find_blob(self, digest: Digest) -> BlobEntry | None:
        """See `BlobStore.find_blob`."""
        found = await self.client.head(_key(digest))
        return None if found is None else _entry(found, digest)

    async def iter_blobs(self) -> AsyncIterator[BlobEntry]:
        """See `BlobStore.iter_blobs`; a thousand at a time are in memory."""
        async for found in self.client.list_all("blobs/"):
            if match := _BLOB_KEY.fullmatch(found.key):
                yield _entry(found, Digest(f"sha256:{match[2]}"))

    async def delete(self, entry: BlobEntry) -> bool:
        """See `BlobStore.delete`; between the look and the removal lies one round trip to the store."""
        found = await self.find_blob(entry.digest)
        if found is None or found.generation != entry.generation:
            return False
        await self.client.delete(_key(entry.digest))
        return True

    # -- uploads ---------------------------------------------------------------------------------------------------

    async def sign_upload(self, upload_id: str, digest: Digest, size_bytes: int) -> tuple[SignedPart, ...]:
        """See `BlobStore.sign_upload`.

        One address for a small file whose sha256 the store itself checks; otherwise one for each of the next parts,
        and asking again gives those behind them.
        """
        if not self._presign or not size_bytes:
            return ()
        state = await self.load(upload_id)
        if state.data is not None or sum(part.size_bytes for part in state.parts) >= size_bytes:
            return ()
        if self._proves and not state.parts and size_bytes <= _SIGNED_WHOLE_BYTES:
            return (await self._sign_whole(upload_id, digest, size_bytes),)
        multipart = state.multipart or await self.client.create_multipart(new_data_key(upload_id))
        offset = len(state.parts) * self.part_bytes
        last = min(size_bytes, offset + _SIGNED_PARTS * self.part_bytes)
        return tuple(
            [
                SignedPart(
                    offset=first,
                    size_bytes=(count := min(self.part_bytes, size_bytes - first)),
                    url=await self.client.sign(
                        "upload_part",
                        multipart.key,
                        expires_s=_SIGNED_FOR_S,
                        UploadId=multipart.id,
                        PartNumber=first // self.part_bytes + 1,
                        ContentLength=count,
                    ),
                    headers={},
                )
                for first in range(offset, last, self.part_bytes)
            ]
        )

    async def _sign_whole(self, upload_id: str, digest: Digest, size_bytes: int) -> SignedPart:
        checksum = base64.b64encode(bytes.fromhex(digest.removeprefix("sha256:"))).decode()
        url = await self.client.sign(
            "put_object",
            new_data_key(upload_id),
            expires_s=_SIGNED_FOR_S,
            ChecksumSHA256=checksum,
            ContentLength=size_bytes,
        )
        return SignedPart(offset=0, size_bytes=size_bytes, url=url, headers={"x-amz-checksum-sha256": checksum})

    async def proves(self, key: str, digest: Digest, size_bytes: int) -> bool:
        """Whether the store itself has computed this sha256 of an object when it took it."""
        if not self._proves:
            return False
        found = await self.client.head(key)
        checksum = base64.b64encode(bytes.fromhex(digest.removeprefix("sha256:"))).decode()
        return found is not None and found.size_bytes == size_bytes and found.sha256 == checksum

    async def upload_offset(self, upload_id: str) -> int:
        """See `BlobStore.upload_offset`."""
        return (await self.load(upload_id)).offset

    def open_upload(self, upload_id: str) -> S3Writer:
        """See `BlobStore.open_upload`."""
        _check_id(upload_id)
        return S3Writer(self, upload_id)

    async def discard_upload(self, upload_id: str) -> None:
        """See `BlobStore.discard_upload`."""
        self._kept.pop(_check_id(upload_id), None)
        prefix = f"uploads/{upload_id}/"
        for multipart in await self.client.list_multiparts(prefix):
            await self.client.abort(multipart)
        async for found in self.client.list_all(prefix):
            await self.client.delete(found.key)

    async def sweep_uploads(self, *, idle_s: float) -> frozenset[str]:
        """See `BlobStore.sweep_uploads`; also ends copies that a crash left half done."""
        objects: dict[str, list[Found]] = {}
        touched: dict[str, datetime] = {}
        token, now = "", datetime.now(UTC)
        while True:
            page, token, now = await self.client.list_page("uploads/", token=token)
            for found in page:
                match = _UPLOAD_KEY.fullmatch(found.key)
                name = match[1] if match else found.key
                objects.setdefault(name, []).append(found)
                touched[name] = max(found.modified_at, touched.get(name, found.modified_at))
            if not token:
                break
        multiparts: dict[str, list[Multipart]] = {}
        for multipart in await self.client.list_multiparts(""):
            match = _UPLOAD_KEY.fullmatch(multipart.key)
            name = match[1] if match else multipart.key
            multiparts.setdefault(name, []).append(multipart)
            parts = await self.client.list_parts(multipart)
            at = max((part.modified_at for part in parts), default=multipart.begun_at)
            touched[name] = max(at, touched.get(name, at))
        before = now - timedelta(seconds=idle_s)
        kept = set()
        for name, at in touched.items():
            if at >= before:
                kept.add(name)
                continue
            self._kept.pop(name, None)
            for multipart in multiparts.get(name, ()):
                await self.client.abort(multipart)
            for found in objects.get(name, ()):
                await self.client.delete(found.key)
        return frozenset(name for name in kept if _UPLOAD_ID.fullmatch(name))

    # -- for the writer --------------------------------------------------------------------------------------------

    async def load(self, upload_id: str) -> UploadState:
        """What the store has of an upload; the same for every server."""
        prefix = f"uploads/{_check_id(upload_id)}/"
        objects = [found async for found in self.client.list_all(prefix)]
        candidates: list[tuple[Multipart, tuple[Part, ...]]] = []
        for multipart in await self.client.list_multiparts(prefix):
            candidates.append((multipart, self._contiguous(await self.client.list_parts(multipart))))
        best = max(candidates, key=lambda pair: (sum(p.size_bytes for p in pair[1]), pair[0].key), default=None)
        return UploadState.of(objects, best, part_bytes=self.part_bytes)

    def _contiguous(self, parts: Sequence[Part]) -> tuple[Part, ...]:
        taken: list[Part] = []
        for number, part in enumerate(parts, 1):
            if part.number != number or part.size_bytes > self.part_bytes:
                break
            taken.append(part)
            if part.size_bytes < self.part_bytes:
                break
        return tuple(taken)

    def keep(self, upload_id: str, kept: Kept) -> None:
        """Remembers how far an upload was hashed, for a writer of this process."""
        self._kept[upload_id] = kept
        while len(self._kept) > _KEPT_UPLOADS:
            self._kept.popitem(last=False)

    def take(self, upload_id: str) -> Kept | None:
        """What `keep` was given, once."""
        return self._kept.pop(upload_id, None)

    async def put_blob(self, digest: Digest, data: bytes, *, md5: str) -> None:
        """Writes verified bytes under their digest."""
        key = _key(digest)
        if not await self.client.put(key, data, md5=md5, only_new=True) and not await self._is_fresh(key, len(data)):
            await self.client.put(key, data, md5=md5)
        await self._confirm(digest, len(data))

    async def copy_blob(self, source: str, digest: Digest, size_bytes: int) -> None:
        """Copies a verified object, which cannot change, to its digest."""
        key = _key(digest)
        if not await self._is_fresh(key, size_bytes):
            await self.client.copy(source, key, size_bytes, range_bytes=self._copy_bytes)
        await self._confirm(digest, size_bytes)

    async def has_blob(self, digest: Digest, size_bytes: int) -> bool:
        """Whether these bytes are here, and so young that nobody is about to remove them."""
        return await self._is_fresh(_key(digest), size_bytes)

    async def _is_fresh(self, key: str, size_bytes: int) -> bool:
        found = await self.client.head(key)
        if found is None or found.size_bytes != size_bytes:
            return False
        # Clocks that disagree cost a copy here and nothing else.
        return abs(datetime.now(UTC) - found.modified_at) < _FRESH

    async def _confirm(self, digest: Digest, size_bytes: int) -> None:
        size = await self.find_size(digest)
        if size != size_bytes:
            raise StorageError(f"the store says that {digest} has {size} bytes just after {size_bytes} were written")

    async def digest_of(self, key: str) -> tuple[Digest, int]:
        """Digest and size of an object, by reading it; hashing is done in threads."""
        sha256, size, held, count = hashlib.sha256(), 0, list[bytes](), 0
        async for chunk in self.read_object(key, "an upload"):
            held.append(chunk)
            count += len(chunk)
            if count >= _HASHED_AT_ONCE:
                await to_thread.run_sync(sha256.update, b"".join(held))
                size, count = size + count, 0
                held.clear()
        await to_thread.run_sync(sha256.update, b"".join(held))
        return Digest(f"sha256:{sha256.hexdigest()}"), size + count

    async def forget(self, upload_id: str, keys: Sequence[str], multipart: Multipart | None) -> None:
        """Removes what is left of an upload whose blob is there; what fails here is swept later."""
        try:
            if multipart is not None:
                await self.client.abort(multipart)
            for key in keys:
                await self.client.delete(key)
        except ModelBoxError as exc:
            _LOG.warning("the rest of upload %s stays until it is swept: %s", upload_id, exc.message)


def _advice(exc: StorageError) -> str:
    status, reason = exc.fields.get("status"), exc.fields.get("reason", "")
    if reason in ("NoSuchBucket", "404") or status == 404:
        return "make the bucket, or correct blobs_url"
    if status == 401:
        return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or a role of the machine"
    if status in (400, 403):
        return (
            "check the credentials and s3_region; the server must be allowed to list the bucket and to get, put and"
            " delete objects in it"
        )
    if status in (301, 307):
        return "the bucket is in another region: set s3_region"
    return "check blobs_url, s3_endpoint and s3_region"


def _check_id(upload_id: str) -> str:
    if not _UPLOAD_ID.fullmatch(upload_id):
        raise InvalidError(f"{shown(upload_id)} is not an upload id")
    return upload_id


def _key(digest: Digest) -> str:
    name = parse_digest(digest).removeprefix("sha256:")
    return f"blobs/sha256/{name[:2]}/{name}"


def _entry(found: Found, digest: Digest) -> BlobEntry:
    return BlobEntry(
        digest=digest,
        size_bytes=found.size_bytes,
        stored_at=found.modified_at,
        generation=f"{found.etag}-{int(found.modified_at.timestamp())}",
    )


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
