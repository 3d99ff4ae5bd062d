"""The change feed's use cases: list what is, then watch what changes.

Owns the tailer (one task that reads committed revisions into one ring) and the rules of the contract in
`modelbox.feed`. A watcher is a cursor into the ring, never a queue, so a thousand of them cost no memory, and one that
nothing is for sleeps (`modelbox.runtime.services.feed_ring`); one that falls off the ring reads the database in
batches, and one behind the compaction gets a `Resync`.

Refuses to judge who is slow: an adapter closes a stream whose send takes too long, and the cursor is gone with it.
"""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Self

import anyio
import anyio.lowlevel
from anyio.abc import TaskStatus

from modelbox.access import ALL, Caller, Scope
from modelbox.errors import InvalidError, LimitError, ModelBoxError, ServerBusy
from modelbox.feed import (
    Bookmark,
    FeedItem,
    Filter,
    Kind,
    ResumeToken,
    Resync,
    ResyncReason,
    Revision,
    Snapshot,
)
from modelbox.refs import check_name, shown
from modelbox.runtime.limits import check_text
from modelbox.runtime.ports import FeedBatch, FeedHead, FeedStore, StoredRevision
from modelbox.runtime.services.feed_ring import Interest, Ring
from modelbox.runtime.services.feed_scope import FindPlaces, Reader, place_nothing
from modelbox.runtime.services.paging import decode_key, encode_key, page_size_of

__all__ = ("FeedService", "check_filter")

_LOG = logging.getLogger(__name__)
_BATCH_REVS = 500
_BATCH_BYTES = 4 << 20
_COMPACT_BATCH = 5000
_MAX_OBJECTS = 1000
_CHECK_S = 5.0
"""Between two looks whether a reader's token has expired; what is revoked is noticed at once."""
_ENDS_PER_S = 200
"""Streams that end each second while the server drains."""


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """Revisions for a watcher, and the place in history that it has reached with them."""

    revisions: tuple[StoredRevision, ...]
    rev: int
    chain: str


_AUTHZ = Resync(reason=ResyncReason.AUTHZ, message="what you may see is not what it was: list again")


class FeedService:
    """List, watch and compaction of the change feed. Use as an async context manager; it runs the tailer.

    Args:
        store: The history.
        bookmark_interval_s: Pause between two bookmarks on an idle stream.
        poll_interval_s: Longest pause between two looks at the history; commits of this process wake it up at once.
        max_changes: Changes in the ring.
        max_bytes: Estimated memory of the ring, in bytes.
        keep_revs: Revisions that compaction always keeps.
        keep: Age that compaction always keeps.
        keep_audit: Age up to which changes are kept for the audit log, behind the compaction too.
        compact_interval_s: Pause between two compactions; None where somebody else calls `compact`.
        places: Says where objects are, for readers who may not see everything.
        max_watches: Open streams at a time of one token or certificate.
        clock: Gives the time, aware and in UTC.
    """

    def __init__(
        self,
        store: FeedStore,
        *,
        bookmark_interval_s: float = 10.0,
        poll_interval_s: float = 0.5,
        max_changes: int = 10_000,
        max_bytes: int = 16 << 20,
        keep_revs: int = 100_000,
        keep: timedelta = timedelta(days=7),
        keep_audit: timedelta = timedelta(days=365),
        compact_interval_s: float | None = 600.0,
        places: FindPlaces = place_nothing,
        max_watches: int = 100,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        self._store = store
        self._bookmark_interval_s = bookmark_interval_s
        self._poll_interval_s = poll_interval_s
        self._keep_revs = keep_revs
        self._keep = keep
        self._keep_audit = keep_audit
        self._compact_interval_s = compact_interval_s
        self._clock = clock
        self._ring = Ring(max_changes=max_changes, max_bytes=max_bytes)
        self._observers: list[tuple[Kind, Callable[[], None]]] = []
        self._wake = anyio.Event()
        self._epoch = ""
        self._histories = 0
        self._draining = False
        self._drain_s = 0.0
        self._watchers = 0
        self._places = places
        self._max_watches = max_watches
        self._holders: Counter[str] = Counter()
        self._access_changes = 0
        self._stack: AsyncExitStack | None = None

    @property
    def watchers(self) -> int:
        """Open streams."""
        return self._watchers

    def observe(self, kind: Kind, callback: Callable[[], None]) -> None:
        """Has ``callback`` called on the event loop when there are new changes of a kind, or may be."""
        self._observers.append((kind, callback))

    @property
    def rev(self) -> int:
        """The newest revision that was seen."""
        return self._ring.last

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(tasks.cancel_scope.cancel)
            self._store.on_commit(self._on_commit)
            await tasks.start(self._tail, name="feed tailer")
            if self._compact_interval_s is not None:
                tasks.start_soon(self._compact_for_ever, self._compact_interval_s, name="feed compaction")
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.drain()
        if self._stack is None:
            return
        stack, self._stack = self._stack, None
        # An ordinary failure of the block is not the task group's business, and must not come out wrapped.
        if isinstance(exc, Exception):
            await stack.__aexit__(None, None, None)
        else:
            await stack.__aexit__(exc_type, exc, traceback)

    def drain(self, *, spread_s: float = 0.0) -> None:
        """Ends all streams: each sends what it has, a last bookmark, and stops. New ones are refused.

        Args:
            spread_s: Many streams do not end at once, so that their readers do not all ask another server at once, but
                at most this much later; few of them do.
        """
        if not self._draining:
            self._drain_s = min(spread_s, self._watchers / _ENDS_PER_S)
            self._draining = True
            self._ring.wake_all()

    # -- list and watch --------------------------------------------------------------------------------------------

    async def list(self, wanted: Filter, *, page_size: int = 0, page_token: str = "", scope: Scope = ALL) -> Snapshot:
        """One page of the current state of everything that the filter lets through, downloads left out.

        Every page carries the *first* page's token and revision, so that a watch from any of them misses nothing.

        Args:
            wanted: The filter.
            page_size: 1 to 1000, 0 for 100.
            page_token: Where the page before ended.
            scope: What the reader may see. Where that changes between two pages, the list begins anew.

        Raises:
            InvalidError: The filter, page size or page token is not valid.
        """
        check_filter(wanted)
        asked = f"feed:{wanted.namespace}:{','.join(wanted.objects)}:{','.join(wanted.kinds)}{scope.mark}"
        key = decode_key(asked, page_token, int, int, str)
        after, first = (None, "") if key is None else (key[:2], str(key[2]))
        listing = await self._store.list_states(wanted, limit=page_size_of(page_size), after=after, scope=scope)
        token = first or _token(listing.head, listing.head.rev, listing.head.chain[:8].hex(), scope)
        return Snapshot(
            items=listing.items,
            next_token=encode_key(asked, None if listing.next_key is None else (*listing.next_key, token)),
            token=token,
            rev=ResumeToken.parse(token).rev,
        )

    def watch(
        self,
        wanted: Filter,
        token: str = "",
        *,
        scope: Scope = ALL,
        holder: str = "",
        renew: Callable[[], Caller] | None = None,
    ) -> AbstractAsyncContextManager[AsyncIterator[FeedItem]]:
        """Follows the feed from ``token`` on, from now on for an empty one.

        The stream begins with a bookmark, and ends with a `Resync`, or after `drain` with a bookmark. Changes that the
        reader may not see only move the bookmark.

        Args:
            wanted: The filter.
            token: Where to go on.
            scope: What the reader may see. The stream ends when that becomes another, and does not go on from a token
                of another: what was hidden, or is hidden now, is settled by a list.
            holder: Whose streams are counted together; nobody's if it is empty.
            renew: Says who the reader is at a moment, and raises `AuthError` once it is nobody; see
                `modelbox.runtime.caller.RENEWAL`. It is asked after `access_changed`, and every few seconds.

        Raises:
            InvalidError: The filter or token is not valid.
            LimitError: The holder has too many streams.
            ServerBusy: The server is draining.
        """
        return self._watch(Reader(wanted, scope, self._places, renew), token, holder)

    def access_changed(self) -> None:
        """Has all streams look whether their readers may still see what they see."""
        self._access_changes += 1
        self._ring.wake_all()

    @asynccontextmanager
    async def _watch(self, reader: Reader, token: str, holder: str) -> AsyncIterator[AsyncIterator[FeedItem]]:
        check_filter(reader.wanted)
        asked = ResumeToken.parse(token) if token else None
        if self._draining:
            raise ServerBusy("the server is shutting down: watch again at another one", retry_after_s=1.0)
        with self._hold(holder):
            self._watchers += 1
            interest = Interest(reader.wanted, reader.scope)
            self._ring.add(interest)
            stream = self._stream(reader, asked, interest)
            try:
                yield stream
            finally:
                self._watchers -= 1
                self._ring.remove(interest)
                await stream.aclose()

    @contextmanager
    def _hold(self, holder: str) -> Iterator[None]:
        if not holder:
            yield
            return
        if self._holders[holder] >= self._max_watches:
            raise LimitError(
                f"{self._max_watches} watches are open with this token: close some, use another token for other "
                "programs, or raise max_watches of the server",
                what="watches",
            )
        self._holders[holder] += 1
        try:
            yield
        finally:
            self._holders[holder] -= 1
            if not self._holders[holder]:
                del self._holders[holder]

    async def _stream(
        self, reader: Reader, asked: ResumeToken | None, interest: Interest
    ) -> AsyncGenerator[FeedItem, None]:
        history, access = self._histories, self._access_changes
        scope = reader.scope
        if not reader.is_as_before():
            # Since the call was let in.
            yield _AUTHZ
            return
        head, refused = await self._start_of(asked, scope)
        if refused is not None:
            yield refused
            return
        cursor, chain = (head.rev, head.chain[:8].hex()) if asked is None else (asked.rev, asked.chain)
        sent = cursor
        # What is older than the ring's end comes now; a second bookmark says where "now" begins.
        behind = cursor < head.rev
        if not behind:
            self._ring.caught_up(interest)
        yield self._bookmark(head, cursor, chain, scope)
        due = anyio.current_time() + self._bookmark_interval_s
        check_s = math.inf if reader.renew is None else min(self._bookmark_interval_s, _CHECK_S)
        check = anyio.current_time() + check_s
        ends = math.inf
        while True:
            interest.rearm()
            if self._access_changes != access or anyio.current_time() >= check:
                access, check = self._access_changes, anyio.current_time() + check_s
                if not reader.is_as_before():
                    yield _AUTHZ
                    return
            if self._histories != history:
                yield Resync(
                    reason=ResyncReason.DIVERGED,
                    message="history is another one than before, as after a restore or a failover: list again",
                )
                return
            if self._draining and ends == math.inf:
                ends = anyio.current_time() + random.uniform(0, self._drain_s)
            read = await self._next_after(cursor, chain, interest)
            if read is None:
                yield Resync(
                    reason=ResyncReason.COMPACTED,
                    message=f"revision {cursor + 1} is not kept any more: list again",
                )
                return
            for revision in read.revisions:
                changes = await reader.pick(revision.changes)
                cursor, chain = revision.rev, revision.chain[:8].hex()
                if changes:
                    token = _token(head, cursor, chain, scope)
                    yield Revision(rev=cursor, prev_rev=sent, changes=changes, token=token)
                    sent = cursor
                if anyio.current_time() >= due:
                    yield self._bookmark(head, cursor, chain, scope)
                    due = anyio.current_time() + self._bookmark_interval_s
            cursor, chain = read.rev, read.chain
            if behind and cursor >= head.rev:
                behind = False
                self._ring.caught_up(interest)
                yield self._bookmark(head, cursor, chain, scope)
            if read.revisions:
                continue
            if anyio.current_time() >= ends:
                yield self._bookmark(head, cursor, chain, scope)
                return
            with anyio.move_on_after(max(0.0, min(due, ends, check) - anyio.current_time())):
                await interest.wait()
            if anyio.current_time() >= due:
                yield self._bookmark(head, cursor, chain, scope)
                due = anyio.current_time() + self._bookmark_interval_s

    async def _start_of(self, asked: ResumeToken | None, scope: Scope) -> tuple[FeedHead, Resync | None]:
        """The head, and why the token cannot be honoured."""
        if asked is None:
            return await self._store.head(), None
        head, chain = await self._store.check(asked.rev)
        if asked.server_id != head.server_id or asked.epoch != head.epoch:
            return head, Resync(reason=ResyncReason.DIVERGED, message="the token is of another history: list again")
        if asked.rev > head.rev:
            return head, Resync(
                reason=ResyncReason.FUTURE,
                message=f"the token is of revision {asked.rev}, but history ends at {head.rev}: list again",
            )
        if asked.rev < head.compact_rev or chain is None:
            return head, Resync(
                reason=ResyncReason.COMPACTED,
                message=f"revisions up to {head.compact_rev} are not kept any more: list again",
            )
        if asked.scope != scope.mark:
            return head, _AUTHZ
        if asked.chain != chain[:8].hex():
            return head, Resync(
                reason=ResyncReason.DIVERGED,
                message=f"history was another one at revision {asked.rev}, as after a restore: list again",
            )
        return head, None

    async def _next_after(self, cursor: int, chain: str, interest: Interest) -> _Read | None:
        """What may be for a watcher after its cursor: out of the ring, or of the database; None if it was compacted."""
        if cursor >= self._ring.last:
            return _Read(revisions=(), rev=cursor, chain=chain)
        if self._ring.holds(cursor + 1):
            found = self._ring.next_for(interest, cursor)
            if found is None:
                return _Read(revisions=(), rev=self._ring.last, chain=self._ring.last_chain[:8].hex())
            return _Read(revisions=(found,), rev=found.rev, chain=found.chain[:8].hex())
        batch = await self._store.read_after(cursor, limit=_BATCH_REVS, max_bytes=_BATCH_BYTES)
        if cursor < batch.head.compact_rev:
            return None
        if not batch.revisions:
            return _Read(revisions=(), rev=cursor, chain=chain)
        last = batch.revisions[-1]
        return _Read(revisions=batch.revisions, rev=last.rev, chain=last.chain[:8].hex())

    def _bookmark(self, head: FeedHead, rev: int, chain: str, scope: Scope) -> Bookmark:
        return Bookmark(rev=rev, head_rev=max(rev, head.rev, self._ring.last), token=_token(head, rev, chain, scope))

    # -- the tailer ------------------------------------------------------------------------------------------------

    def _on_commit(self) -> None:
        self._wake.set()

    async def _tail(self, *, task_status: TaskStatus[None]) -> None:
        head = await self._store.head()
        self._ring.start(head.rev, head.chain)
        self._epoch = head.epoch
        task_status.started()
        pause_s = self._poll_interval_s
        while True:
            with anyio.move_on_after(pause_s):
                await self._wake.wait()
            self._wake = anyio.Event()
            try:
                await self._read_news()
                pause_s = self._poll_interval_s
            except ModelBoxError as exc:
                # Streams stay open and silent, which their readers notice by the missing bookmarks' head.
                _LOG.warning("the change feed cannot be read: %s", exc)
                pause_s = min(5.0, pause_s * 2)

    async def _read_news(self) -> None:
        while True:
            batch = await self._store.read_after(self._ring.last, limit=_BATCH_REVS, max_bytes=_BATCH_BYTES)
            if self._is_other(batch):
                _LOG.warning("revision %d is another one than before: all watchers list again", self._ring.last)
                self._histories += 1
                self._epoch = batch.head.epoch
                self._ring.start(batch.head.rev, batch.head.chain)
                self._tell(None)
                return
            for revision in batch.revisions:
                self._ring.append(revision)
            if batch.revisions and self._observers:
                self._tell({change.kind for revision in batch.revisions for change in revision.changes})
            if not batch.revisions and self._ring.last < batch.head.compact_rev:
                self._ring.start(batch.head.rev, batch.head.chain)
                self._tell(None)
            if self._ring.last >= batch.head.rev:
                return

    def _tell(self, kinds: set[str] | None) -> None:
        """Tells observers of new changes; None where nobody knows of which kinds these are."""
        for kind, callback in self._observers:
            if kinds is None or kind in kinds:
                callback()

    def _is_other(self, batch: FeedBatch) -> bool:
        """Whether the database holds another history than was read: restored, or failed over with a loss."""
        head, chain = batch.head, batch.chain
        if head.epoch != self._epoch or head.rev < self._ring.last:
            return True
        return chain is not None and chain != self._ring.last_chain

    async def _compact_for_ever(self, interval_s: float) -> None:
        while True:
            await anyio.sleep(interval_s)
            try:
                await self.compact()
            except ModelBoxError as exc:
                _LOG.warning("the change feed cannot be compacted: %s", exc)

    async def compact(self) -> int:
        """Drops revisions that are both old and many enough, in short transactions; runs by itself now and then.

        They stay in the audit log until they are as old as that keeps them.

        Returns:
            How many revisions were dropped.
        """
        total = 0
        while dropped := await self._store.compact(
            keep_revs=self._keep_revs, before=self._clock() - self._keep, batch=_COMPACT_BATCH
        ):
            total += dropped
            await anyio.lowlevel.checkpoint()
        while await self._store.forget(before=self._clock() - self._keep_audit, batch=_COMPACT_BATCH):
            await anyio.lowlevel.checkpoint()
        return total


def check_filter(wanted: Filter) -> None:
    """Checks what a caller wants to see.

    Raises:
        InvalidError: A name or kind is not valid, or there are more than 1000 objects.
    """
    if wanted.namespace:
        check_name(wanted.namespace, "namespace")
    if len(wanted.objects) > _MAX_OBJECTS:
        raise InvalidError(f"a filter names at most {_MAX_OBJECTS} objects, got {len(wanted.objects)}")
    for path in wanted.objects:
        check_text(path, "object", max_chars=255)
    for kind in wanted.kinds:
        if kind not in set(Kind):
            raise InvalidError(f"{shown(kind)} is not a kind of object: expected one of {', '.join(Kind)}")


def _token(head: FeedHead, rev: int, chain: str, scope: Scope) -> str:
    return str(ResumeToken(server_id=head.server_id, epoch=head.epoch, rev=rev, chain=chain, scope=scope.mark))
