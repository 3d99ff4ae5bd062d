"""A client's view of the change feed: an iterator that reconnects, resumes and lists again by itself.

Owns the place in the feed that its reader has reached. The connection, and the making up for what was lost, belong to
`modelbox._transport.follow` in the engine.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

import anyio

from modelbox.feed import Change, Filter, Resync

if TYPE_CHECKING:
    from modelbox._transport.follow import Batch, Follower
    from modelbox._transport.source import RemoteSource
    from modelbox.client.connection import ClientConnection

__all__ = ("ChangeFeed",)

_CLOSE_S = 5.0


class ChangeFeed(AsyncIterator[Change | Resync]):
    """Changes as they happen; made by `Client.changes`.

    A `Resync` among them means that history between then and now is gone: forget what you hold. The current state of
    everything follows it, then changes again. Every change carries the whole new state of its object; apply it iff its
    ``mod_rev`` is greater than what you hold, as it may come more than once.

    Cancellation: a cancelled ``anext`` loses nothing; the next one goes on after the last change that was returned.
    Concurrency: one task at a time. Leave it with `aclose`, or use it in ``async with``.
    """

    def __init__(self, client: ClientConnection, wanted: Filter, *, token: str, list_first: bool) -> None:
        self._client = client
        self._wanted = wanted
        self._start = (token, list_first)
        self._token = token
        self._follower: Follower | None = None
        self._ready: list[Change | Resync] = []
        self._received = 0
        self._token_after = ""
        self._closed = False

    @property
    def token(self) -> str:
        """Resumes after everything returned so far; keep it once that is worked off. Empty before the first contact."""
        return self._token

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def __anext__(self) -> Change | Resync:
        if self._closed:
            raise StopAsyncIteration
        while not self._ready:
            batch = await self._client._call(self._fetch)
            self._received = batch.number
            self._ready = list(batch.items)
            # A revision is atomic: only behind its last change may a reader go on from the next one.
            self._token_after = batch.token
            if not self._ready:
                self._token = batch.token
        item = self._ready.pop(0)
        if not self._ready:
            self._token = self._token_after
        return item

    async def _fetch(self, source: RemoteSource) -> Batch:
        if self._follower is None or self._follower.source is not source:
            from modelbox._transport.follow import Follower

            token, list_first = self._start
            self._received = 0
            self._follower = Follower(
                source, self._wanted, token=self._token or token, list_first=list_first and not self._token
            )
        return await self._follower.next(self._received)

    async def aclose(self) -> None:
        """Ends the stream. Idempotent."""
        self._closed = True
        follower, self._follower = self._follower, None
        if follower is not None and not self._client._closed:
            with anyio.move_on_after(_CLOSE_S, shield=True):
                await self._client.engine.call(follower.aclose)
