"""One upload into an S3-compatible store: on any server, from where any server left it.

What an upload is in the store, below ``uploads/<id>/``:

* ``data-<random>``: a multipart upload with parts 1, 2 … of 8 MiB each, and after its completion the object;
* ``tail-<number>``: the beginning of part ``number``, kept when a peer went away in the middle of it.

A file of up to one part has neither, unless its peer goes away: it is put under its digest at once. A larger one is
completed as ``data-…``, copied inside the store to its digest, and removed. The copy is the price for going on
elsewhere: the parts of a multipart upload cannot be read, so a server that did not receive all of them itself, and so
has no hash of them, reads the completed object once before it copies it. The same goes for parts that a client sent to
the store directly, by presigned addresses; unless the store itself has checked the sha256 of the whole object.

What a crash leaves, and who goes on with it:

========================================  =================================================================
crash                                     what is there, and what happens next
========================================  =================================================================
while parts arrive                        the parts; the next writer goes on behind the last whole one
after parts, before completion            all parts; the next writer completes, reads, copies
after completion, before the copy         ``data-…``; the next writer reads and copies it
during a copy in ranges                   as before, and a multipart upload of the blob's key, which is swept
after the copy, before the row            the blob, which nobody may read yet; the upload is done once more
after the row                             the blob; ``data-…`` is swept
========================================  =================================================================

Two servers may write one upload at the same time, as one of them has not noticed that its peer is gone. Whoever
completes it names each part by the tag that it was given for it, or reads the result; so either it has what it hashed,
or it fails.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

import anyio
from anyio import to_thread

from modelbox.errors import IntegrityError, ModelBoxError, ServerBusy
from modelbox.refs import Digest
from modelbox.runtime.blobs.s3_client import Found, Multipart, Part, md5_of

if TYPE_CHECKING:
    from hashlib import _Hash

    from modelbox.runtime.blobs.s3 import S3Blobs

__all__ = ("PART_BYTES", "Kept", "S3Writer", "UploadState", "new_data_key")

PART_BYTES = 8 << 20
_IN_FLIGHT = 3
_LEAVE_S = 30.0
_TURN_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadState:
    """What the store has of an upload.

    Attributes:
        data: The completed object.
        multipart: What the parts belong to.
        parts: From the first on without a gap; all but the last are whole.
        tail: The beginning of the part behind them.
        tails: All such beginnings, also those that are of no use any more.
    """

    data: Found | None = None
    multipart: Multipart | None = None
    parts: tuple[Part, ...] = ()
    tail: Found | None = None
    tails: tuple[Found, ...] = ()

    @classmethod
    def of(
        cls, objects: Sequence[Found], best: tuple[Multipart, tuple[Part, ...]] | None, *, part_bytes: int
    ) -> UploadState:
        """Reads it out of what is listed."""
        multipart, parts = best or (None, ())
        data = [found for found in objects if found.key.rpartition("/")[2].startswith("data-")]
        tails = tuple(found for found in objects if found.key.rpartition("/")[2].startswith("tail-"))
        wanted = _tail_name(len(parts) + 1)
        tail = next((found for found in tails if found.key.endswith(f"/{wanted}")), None)
        if (parts and parts[-1].size_bytes < part_bytes) or (tail is not None and tail.size_bytes > part_bytes):
            tail = None
        return cls(
            data=max(data, key=lambda found: (found.size_bytes, found.key), default=None),
            multipart=multipart,
            parts=parts,
            tail=tail,
            tails=tails,
        )

    @property
    def offset(self) -> int:
        """Bytes that are here without a gap."""
        if self.data is not None:
            return self.data.size_bytes
        return sum(part.size_bytes for part in self.parts) + (self.tail.size_bytes if self.tail is not None else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The hash of the parts of an upload that this process received, up to the last whole one."""

    multipart: Multipart
    etags: tuple[str, ...]
    sha256: _Hash

    def fits(self, state: UploadState) -> bool:
        """Whether the parts are still those that were hashed."""
        tags = tuple(part.etag for part in state.parts)
        return state.multipart is not None and state.multipart.id == self.multipart.id and tags == self.etags


class S3Writer:
    """One upload's `modelbox.runtime.ports.BlobWriter`.

    Bytes gather until they are a part; a task hashes parts in a thread, one after the other, and sends up to three at a
    time. The task is shielded and ends when the block is left, after what it was given and at most 30 s later; so what
    was taken from the peer is kept whatever ends the block, as long as the store answers.
    """

    def __init__(self, store: S3Blobs, upload_id: str) -> None:
        self._store = store
        self._id = upload_id
        self._state = UploadState()
        self._multipart: Multipart | None = None
        # None where not all parts passed through here.
        self._sha256: _Hash | None = hashlib.sha256()
        self._etags: dict[int, str] = {}
        self._handed = 0
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._tail_bytes = 0
        self._sealed = False
        self._committed = False
        self._error: ModelBoxError | None = None
        self._under_way = 0
        self._progress = anyio.Event()
        self._own_slots = anyio.Semaphore(_IN_FLIGHT)
        self._send, self._receive = anyio.create_memory_object_stream[tuple[int, list[bytes]]](0)
        self._tasks = anyio.create_task_group()
        self._shield = anyio.CancelScope(shield=True)

    @property
    def offset(self) -> int:
        """Bytes that are hashed and in the store."""
        if self._sealed:
            return self._state.offset
        whole = 0
        while whole + 1 in self._etags:
            whole += 1
        return whole * self._store.part_bytes + (self._tail_bytes if whole == self._handed else 0)

    async def __aenter__(self) -> Self:
        try:
            await self._take_turn()
        except BaseException:
            self._close_stream()
            raise
        try:
            await self._open()
        except BaseException:
            self._close_stream()
            self._store.writers.release()
            raise
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._consume, name=f"upload {self._id}")
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._shield.deadline = anyio.current_time() + _LEAVE_S
        self._send.close()
        try:
            # An ordinary failure of the block is not the task group's business, and must not come out wrapped.
            if isinstance(exc, Exception):
                await self._tasks.__aexit__(None, None, None)
            else:
                await self._tasks.__aexit__(exc_type, exc, traceback)
        finally:
            self._receive.close()
            self._store.writers.release()
            if self._multipart is not None and self._sha256 is not None and not self._committed:
                etags = tuple(self._etags[number] for number in sorted(self._etags))
                if self._error is None and len(etags) == self._handed and not self._sealed:
                    self._store.keep(self._id, Kept(multipart=self._multipart, etags=etags, sha256=self._sha256))
            self._pending.clear()

    async def _take_turn(self) -> None:
        with anyio.move_on_after(_TURN_S):
            await self._store.writers.acquire()
            return
        raise ServerBusy("too many uploads are under way: try again", retry_after_s=_TURN_S / 4)

    def _close_stream(self) -> None:
        self._send.close()
        self._receive.close()

    async def _open(self) -> None:
        kept = self._store.take(self._id)
        state = self._state = await self._store.load(self._id)
        if state.data is not None:
            self._sealed, self._sha256 = True, None
            return
        self._multipart = state.multipart
        self._etags = {part.number: part.etag for part in state.parts}
        self._handed = len(state.parts)
        # A short part is the last one, for it could not be made longer.
        self._sealed = bool(state.parts) and state.parts[-1].size_bytes < self._store.part_bytes
        if state.parts:
            self._sha256 = kept.sha256 if kept is not None and kept.fits(state) and not self._sealed else None
        if state.tail is not None:
            async for chunk in self._store.read_object(state.tail.key, "an upload"):
                self._pending.append(chunk)
                self._pending_bytes += len(chunk)
            self._tail_bytes = self._pending_bytes

    # -- the caller's side -----------------------------------------------------------------------------------------

    async def write(self, data: bytes) -> None:
        """See `BlobWriter.write`."""
        self._raise_error()
        if not data:
            return
        if self._sealed:
            raise IntegrityError("this upload has its last part already, and it is not what was announced; begin again")
        self._pending.append(data)
        self._pending_bytes += len(data)
        # The last part stays here until the end: a file of one part needs no multipart upload.
        while self._pending_bytes > self._store.part_bytes:
            part = self._cut(self._store.part_bytes)
            self._tail_bytes = 0
            self._handed += 1
            self._under_way += 1
            try:
                await self._send.send((self._handed, part))
            except BaseException:
                self._handed -= 1
                self._under_way -= 1
                self._pending[:0] = part
                self._pending_bytes += sum(map(len, part))
                raise

    async def flush(self) -> None:
        """See `BlobWriter.flush`."""
        await self._wait_sent()
        await self._save_tail()
        self._raise_error()

    async def commit(self, digest: Digest, size_bytes: int) -> None:
        """See `BlobWriter.commit`."""
        await self._wait_sent()
        self._raise_error()
        total = self._total()
        if total != size_bytes:
            raise _not_announced(digest, size_bytes, None, total)
        if self._handed or self._state.data is not None:
            await self._commit_parts(digest, size_bytes)
        else:
            await self._commit_one(digest, size_bytes)
        self._committed = True
        keys = [found.key for found in self._state.tails]
        # Addresses for parts were given out, and none was used.
        unused = self._multipart if not self._handed and self._state.data is None else None
        if keys or unused is not None:
            await self._store.forget(self._id, keys, unused)

    # -- committing ------------------------------------------------------------------------------------------------

    async def _commit_one(self, digest: Digest, size_bytes: int) -> None:
        data, actual, md5 = await to_thread.run_sync(_measured, self._take_pending())
        if actual != digest:
            raise _not_announced(digest, size_bytes, actual, len(data))
        await self._store.put_blob(digest, data, md5=md5)

    async def _commit_parts(self, digest: Digest, size_bytes: int) -> None:
        if self._pending_bytes:
            await self._send_last()
        if self._sha256 is not None and (actual := Digest(f"sha256:{self._sha256.hexdigest()}")) != digest:
            raise _not_announced(digest, size_bytes, actual, size_bytes)
        if self._sha256 is not None and await self._store.has_blob(digest, size_bytes):
            # Somebody else brought the same bytes; that we have them, too, is proved.
            await self._store.forget(self._id, (), self._multipart)
            return
        key, proved = await self._complete()
        if not proved and not await self._store.proves(key, digest, size_bytes):
            actual, size = await self._store.digest_of(key)
            if (actual, size) != (digest, size_bytes):
                raise _not_announced(digest, size_bytes, actual, size)
        await self._store.copy_blob(key, digest, size_bytes)
        await self._store.forget(self._id, [key], None)

    async def _send_last(self) -> None:
        number = self._handed + 1
        data, md5 = await to_thread.run_sync(_hashed, self._take_pending(), self._sha256)
        assert self._multipart is not None
        self._etags[number] = await self._store.client.put_part(self._multipart, number, data, md5=md5)
        self._handed = number

    async def _complete(self) -> tuple[str, bool]:
        """The key of the completed object, and whether it holds what was hashed here."""
        if self._state.data is not None:
            return self._state.data.key, False
        assert self._multipart is not None
        etags = [self._etags[number] for number in sorted(self._etags)]
        if await self._store.client.complete(self._multipart, etags):
            return self._multipart.key, self._sha256 is not None
        # Another server, which took our peer for gone, was quicker; it may have completed other parts than ours.
        data = (await self._store.load(self._id)).data
        if data is None:
            raise ServerBusy("another server goes on with this upload: ask for its offset", retry_after_s=1.0)
        return data.key, False

    # -- the task --------------------------------------------------------------------------------------------------

    async def _consume(self) -> None:
        with self._shield:
            async with anyio.create_task_group() as sending:
                async for number, chunks in self._receive:
                    if self._error is not None or not await self._prepare():
                        self._done()
                        continue
                    data, md5 = await to_thread.run_sync(_hashed, chunks, self._sha256)
                    chunks.clear()
                    await self._own_slots.acquire()
                    await self._store.slots.acquire()
                    sending.start_soon(self._send_part, number, data, md5, name=f"part {number} of {self._id}")
            if not self._committed and self._error is None:
                await self._save_tail()

    async def _prepare(self) -> bool:
        if self._multipart is None:
            try:
                self._multipart = await self._store.client.create_multipart(new_data_key(self._id))
            except ModelBoxError as exc:
                self._error = exc
        return self._multipart is not None

    async def _send_part(self, number: int, data: bytes, md5: str) -> None:
        assert self._multipart is not None
        try:
            self._etags[number] = await self._store.client.put_part(self._multipart, number, data, md5=md5)
        except ModelBoxError as exc:
            self._error = self._error or exc
        finally:
            self._store.slots.release()
            self._own_slots.release()
            self._done()

    def _done(self) -> None:
        self._under_way -= 1
        self._progress.set()
        self._progress = anyio.Event()

    async def _wait_sent(self) -> None:
        while self._under_way:
            await self._progress.wait()

    async def _save_tail(self) -> None:
        """Keeps what is less than a part."""
        if self._sealed or self._pending_bytes == self._tail_bytes or self._error is not None:
            return
        size, data = self._pending_bytes, b"".join(self._pending)
        try:
            await self._store.client.put(
                f"uploads/{self._id}/{_tail_name(self._handed + 1)}",
                data,
                md5=await to_thread.run_sync(md5_of, data),
            )
        except ModelBoxError as exc:
            self._error = exc
        else:
            self._tail_bytes = size

    # -- small things ----------------------------------------------------------------------------------------------

    def _total(self) -> int:
        if self._sealed:
            return self._state.offset
        return self._handed * self._store.part_bytes + self._pending_bytes

    def _cut(self, size_bytes: int) -> list[bytes]:
        taken, count = [], 0
        rest: list[bytes] = []
        for chunk in self._pending:
            if count + len(chunk) <= size_bytes:
                taken.append(chunk)
                count += len(chunk)
            elif count < size_bytes:
                taken.append(chunk[: size_bytes - count])
                rest.append(chunk[size_bytes - count :])
                count = size_bytes
            else:
                rest.append(chunk)
        self._pending = rest
        self._pending_bytes -= count
        return taken

    def _take_pending(self) -> list[bytes]:
        taken, self._pending = self._pending, []
        self._pending_bytes = self._tail_bytes = 0
        return taken

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error


def new_data_key(upload_id: str) -> str:
    """A key that nobody else knows, and nobody writes again after it was completed."""
    return f"uploads/{upload_id}/data-{secrets.token_hex(8)}"


def _tail_name(number: int) -> str:
    return f"tail-{number:05d}"


def _measured(chunks: list[bytes]) -> tuple[bytes, Digest, str]:
    """Bytes with both sums; in a thread."""
    data = b"".join(chunks)
    return data, Digest(f"sha256:{hashlib.sha256(data).hexdigest()}"), md5_of(data)


def _hashed(chunks: list[bytes], sha256: _Hash | None) -> tuple[bytes, str]:
    """Bytes with their MD5, counted into the upload's hash; in a thread."""
    data = b"".join(chunks)
    if sha256 is not None:
        sha256.update(data)
    return data, md5_of(data)


def _not_announced(digest: Digest, size_bytes: int, actual: Digest | None, actual_bytes: int) -> IntegrityError:
    return IntegrityError(
        f"the upload has {actual_bytes} bytes" + (f" of {actual}" if actual else "") + f", but {size_bytes} bytes of "
        f"{digest} were announced",
        expected=digest,
        actual=actual or actual_bytes,
    )
