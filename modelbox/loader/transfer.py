"""One stream of bytes into one file: read, hash and write side by side.

Three stages: the event loop reads and gathers batches of about a megabyte, one worker thread hashes a batch while
another writes the one before. Between the stages lie at most a few batches, so memory stays flat and a slow disk slows
the peer down. A stream that stalls is broken off; what had arrived is kept, for going on from there.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeVar

import anyio
from anyio.streams.memory import MemoryObjectSendStream

from modelbox.errors import IntegrityError, Unavailable
from modelbox.ports import ByteStream

__all__ = ("Sink", "receive")

T = TypeVar("T")

_BATCH_BYTES = 1 << 20
_AHEAD = 2
_LINGER_S = 1.0

Batch = list[bytes]


class Thread(Protocol):
    """Runs a function in a worker thread and waits for it, cancelled or not."""

    def __call__(self, fn: Callable[..., T], *args: object) -> Awaitable[T]: ...


class Sink(Protocol):
    """A file under way, such as `modelbox.loader.cache_blob.BlobWriter`."""

    @property
    def missing(self) -> int:
        """How many bytes are still to be checked."""

    def check(self, chunks: Sequence[bytes], /) -> None:
        """Counts and hashes the next bytes; may run beside `store` of those before."""

    def store(self, chunks: Sequence[bytes], /) -> None:
        """Appends what was checked."""


async def receive(
    opening: AbstractAsyncContextManager[ByteStream],
    writer: Sink,
    *,
    thread: Thread,
    advance: Callable[[int], None],
    stall_s: float,
    min_bytes_per_s: int,
) -> None:
    """Feeds a stream into ``writer`` until nothing is missing.

    Args:
        opening: The stream, from what ``writer`` holds on.
        writer: Takes the bytes; the caller finishes it.
        thread: Runs blocking work.
        advance: Told how many bytes were written.
        stall_s: The window, in seconds of waiting for the peer, over which the rate is judged.
        min_bytes_per_s: Slower streams are broken off.

    Raises:
        Unavailable: The stream ended early or stalled; ``writer`` holds what had come.
        IntegrityError: The peer sends more than the manifest declares.
        CacheError: The disk refused.

    Cancellation: waits for the batch that is being written, then raises; ``writer`` can only be aborted after that.
    """
    to_check, checks = anyio.create_memory_object_stream[Batch](_AHEAD)
    to_store, stores = anyio.create_memory_object_stream[Batch](_AHEAD)
    reader = _Reader(writer.missing, stall_s=stall_s, min_bytes_per_s=min_bytes_per_s)
    failures: list[Exception] = []

    async def guard(stage: Callable[[], Awaitable[None]]) -> None:
        try:
            await stage()
        except Exception as exc:
            failures.append(exc)
            tasks.cancel_scope.cancel()

    async def check() -> None:
        with checks, to_store:
            async for batch in checks:
                await thread(writer.check, batch)
                await to_store.send(batch)

    async def store() -> None:
        with stores:
            async for batch in stores:
                await thread(writer.store, batch)
                advance(sum(map(len, batch)))

    broken: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(guard, check, name="hash")
        tasks.start_soon(guard, store, name="write")
        watch = anyio.CancelScope()
        tasks.start_soon(reader.watch, watch, name="watch for a stall")
        with to_check:
            try:
                await reader.read(opening, to_check)
            except Exception as exc:
                broken = exc  # Not yet raised: what has come is still hashed and written.
            finally:
                watch.cancel()
    if failures:
        raise failures[0]
    if broken is not None:
        raise broken


class _Reader:
    """Reads a stream, and knows how long it has waited for it."""

    def __init__(self, wanted: int, *, stall_s: float, min_bytes_per_s: int) -> None:
        self._wanted = wanted
        self._stall_s = stall_s
        self._min_bytes_per_s = min_bytes_per_s
        self._scope = anyio.CancelScope()
        self._got = 0
        self._waited = 0.0
        self._waiting_since: float | None = None
        self._stalled = False

    async def read(
        self, opening: AbstractAsyncContextManager[ByteStream], batches: MemoryObjectSendStream[Batch]
    ) -> None:
        with self._scope:
            self._waiting_since = time.monotonic()
            async with opening as stream:
                await self._gather(stream, batches)
        if self._stalled:
            raise Unavailable(
                f"the download stalled: fewer than {self._min_bytes_per_s} bytes a second over {self._stall_s:g} s"
            )
        if self._got < self._wanted:
            raise Unavailable(f"the download ended after {self._got} of {self._wanted} bytes")

    async def _gather(self, stream: ByteStream, batches: MemoryObjectSendStream[Batch]) -> None:
        batch: Batch = []
        size = 0
        try:
            while self._got < self._wanted:
                chunk = await anext(stream, None)
                now = time.monotonic()
                self._waited += now - (self._waiting_since or now)
                self._waiting_since = None
                if chunk is None:
                    break
                self._got += len(chunk)
                batch.append(chunk)
                size += len(chunk)
                if size >= _BATCH_BYTES:
                    await batches.send(batch)
                    batch, size = [], 0
                self._waiting_since = time.monotonic()
        finally:
            self._waiting_since = None
            if batch:
                with anyio.CancelScope(shield=self._stalled):
                    await batches.send(batch)
        if self._got == self._wanted:
            await self._expect_end(stream)

    async def _expect_end(self, stream: ByteStream) -> None:
        with anyio.move_on_after(_LINGER_S):
            if await anext(stream, None):
                raise IntegrityError(f"the peer sends more than the {self._wanted} bytes that were still missing")

    async def watch(self, scope: anyio.CancelScope) -> None:
        """Cancels the reading when too little comes.

        Time in which we did not ask does not count, nor does time in which this process did not run: what has come
        meanwhile is still to be read.
        """
        turn_s = self._stall_s / 8
        seen = waited = 0.0
        got = 0
        with scope:
            while True:
                await anyio.sleep(turn_s)
                since = self._waiting_since
                total = self._waited + (0.0 if since is None else time.monotonic() - since)
                waited += min(total - seen, 2 * turn_s)
                seen = total
                if waited < self._stall_s:
                    continue
                if self._got - got < self._min_bytes_per_s * waited:
                    self._stalled = True
                    self._scope.cancel()
                    return
                waited, got = 0.0, self._got
