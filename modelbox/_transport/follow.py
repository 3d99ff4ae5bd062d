"""The change feed without an end: one stream after another, from where the last one stopped.

Owns `Follower`, which lists, watches, reconnects with growing pauses, and notices what a stream lost. Refuses to hide
lost history: a `Resync` goes to the reader, and the current state follows it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass

import anyio

from modelbox._transport.faults import backoff_s
from modelbox._transport.source import RemoteSource
from modelbox.errors import DeadlineExceeded, InvalidError, ModelBoxError, ServerBusy, Unavailable
from modelbox.feed import Bookmark, Change, FeedItem, Filter, ResumeToken, Resync, Revision

__all__ = ("Batch", "Follower")

_PAUSE_BASE_S = 0.25
_PAUSE_CAP_S = 10.0
_PAGE_SIZE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What arrived together, never split.

    Attributes:
        number: Counts from 1.
        token: Resumes after this batch; empty while the state is being listed.
    """

    number: int
    items: tuple[Change | Resync, ...]
    token: str


class Follower:
    """Reads one filter's changes from one server.

    Concurrency: one task at a time, on the source's loop.
    """

    def __init__(self, source: RemoteSource, wanted: Filter, *, token: str, list_first: bool) -> None:
        self.source = source
        self._wanted = wanted
        self._token = token
        self._page: str | None = "" if list_first else None
        self._list_token = ""
        self._linked, self._linked_token = _rev(token), token
        self._gaps = self._resyncs = 0
        self._failures = 0
        self._met = False
        self._stack = AsyncExitStack()
        self._stream: AsyncIterator[FeedItem] | None = None
        self._batch = Batch(number=0, items=(), token=token)

    async def aclose(self) -> None:
        """Ends the stream. Idempotent."""
        self._stream = None
        stack, self._stack = self._stack, AsyncExitStack()
        with suppress(ModelBoxError):
            await stack.aclose()

    async def next(self, received: int) -> Batch:
        """The next batch; waits for it as long as it takes. It may be empty, just to move the token.

        Args:
            received: Number of the last batch that reached the reader, 0 for none. A batch that got lost on the way
                (its reader was cancelled) is returned again.

        Raises:
            Unavailable: The server cannot be reached and never was.
            ModelBoxError: The server refuses.

        Cancellation: nothing is lost.
        """
        if self._batch.number > received:
            return self._batch
        items, token = await self._advance()
        self._batch = Batch(number=received + 1, items=items, token=token)
        return self._batch

    async def _advance(self) -> tuple[tuple[Change | Resync, ...], str]:
        while True:
            try:
                if self._page is not None:
                    return await self._next_page(self._page)
                item = await self._next_item()
            except (Unavailable, ServerBusy, DeadlineExceeded):
                await self.aclose()
                if not self._met:
                    raise
                self._failures += 1
                await anyio.sleep(backoff_s(self._failures, base_s=_PAUSE_BASE_S, cap_s=_PAUSE_CAP_S))
                continue
            except BaseException:
                # Cancelled in the middle of a message, or refused: this stream cannot be read on.
                with anyio.CancelScope(shield=True):
                    await self.aclose()
                raise
            self._met = True
            match item:
                case Bookmark():
                    self._failures = 0
                    if self._linked is None:
                        self._linked, self._linked_token = item.rev, item.token
                    self._token = item.token
                    return (), item.token
                case Revision():
                    if await self._lost(item):
                        continue
                    self._linked, self._linked_token = item.rev, item.token
                    self._token = item.token
                    self._gaps = self._resyncs = 0
                    return item.changes, item.token
                case Resync():
                    await self.aclose()
                    self._resyncs += 1
                    self._relist()
                    return (item,), ""

    async def _next_item(self) -> FeedItem:
        if self._stream is None:
            # Once is news. Again and again, without a change that fits in between, is a server in trouble.
            if (again := self._gaps + self._resyncs) > 1:
                await anyio.sleep(backoff_s(again - 1, base_s=_PAUSE_BASE_S, cap_s=_PAUSE_CAP_S))
            self._linked, self._linked_token = _rev(self._token), self._token
            self._stream = await self._stack.enter_async_context(self.source.grpc.watch(self._wanted, self._token))
        try:
            return await anext(self._stream)
        except StopAsyncIteration:
            raise Unavailable("the server ended the watch") from None

    async def _lost(self, item: Revision) -> bool:
        """Whether ``item`` is a repetition, or shows that something before it did not arrive."""
        if self._linked is None or item.prev_rev == self._linked < item.rev:
            return False
        if item.rev <= self._linked:
            return True
        self._gaps += 1
        await self.aclose()
        # Bookmarks since the last whole link promised what did not come: they do not count.
        self._token = self._linked_token
        if self._gaps > 1 or not self._token:
            self._relist()
        return True

    async def _next_page(self, page_token: str) -> tuple[tuple[Change | Resync, ...], str]:
        snapshot = await self.source.grpc.list_state(self._wanted, page_size=_PAGE_SIZE, page_token=page_token)
        self._met = True
        if not page_token:
            # What changes while we page arrives again in the watch from the first page's place.
            self._list_token = snapshot.token
        if snapshot.next_token:
            self._page = snapshot.next_token
            return snapshot.items, ""
        self._page = None
        self._token = self._list_token
        return snapshot.items, self._token

    def _relist(self) -> None:
        self._page, self._token = "", ""


def _rev(token: str) -> int | None:
    try:
        return ResumeToken.parse(token).rev if token else None
    except InvalidError:
        # A token of a newer form; the server will say what it thinks of it.
        return None
