"""The informer: knows at every moment what the movable references of this process point to.

Owns one stream of the change feed per server, the cursor in it, and the loop that lists again, resumes and reconnects.
Changes are taken as hints: a change that touches a reference makes the informer resolve it again and hand the answer,
the newest whole state, to the reference's owner. So a change that comes twice or late does no harm, and one that is
lost is found by the link between revisions (`Revision.prev_rev`) or by the periodic check of everything.

Refuses to judge what it delivers, and never takes anything away: with the server gone, or its answer an error, what
was delivered last stays in force. An answer that cannot be true (`answers`) is delivered as such, and asked for again.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import anyio
from anyio import CancelScope
from anyio.abc import TaskGroup

from modelbox.errors import AuthError, IntegrityError, ModelBoxError, NotFoundError, ProtocolError
from modelbox.feed import Action, Bookmark, Kind, ResumeToken, Resync, ResyncReason, Revision
from modelbox.loader.answers import check_answer, check_leap, same_history
from modelbox.objects import Resolved
from modelbox.ports import ModelSource
from modelbox.refs import ModelRef

__all__ = ("Informer", "InformerSettings", "Subscriber")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class InformerSettings:
    """When to try again.

    Attributes:
        backoff_base_s: The first pause after a broken stream is up to this; it doubles with each further failure.
        backoff_max_s: The longest pause; the true one is drawn evenly from nothing to the current bound, so that a
            thousand loaders do not return at once.
        denied_pause_s: Pause while the server refuses this client.
        healthy_s: A stream that lasted this long resets the pauses.
        relist_s: Every reference is resolved anew about this often, whatever the stream says.
        jitter_s: A reference that moved is resolved up to so much later, so that a large fleet does not ask, download
            and open at once.
    """

    backoff_base_s: float = 0.5
    backoff_max_s: float = 10.0
    denied_pause_s: float = 60.0
    healthy_s: float = 60.0
    relist_s: float = 600.0
    jitter_s: float = 0.0


class Subscriber(Protocol):
    """Who holds a reference and wants to know what it points to."""

    @property
    def ref(self) -> ModelRef:
        """The movable reference."""

    def offer(self, resolved: Resolved, *, reset: bool = False) -> None:
        """Takes the newest state; ``reset`` says that the server's history is another one than before."""

    def missing(self, error: NotFoundError) -> None:
        """The reference does not exist on the server (any more)."""

    def refused(self, error: ModelBoxError) -> None:
        """What the server says of the reference cannot be true; it is asked for again."""


class _Gap(Exception):
    """The stream skipped a revision."""


class Informer:
    """Follows the change feed for a set of references.

    Concurrency: all methods belong to the engine's loop.
    """

    def __init__(
        self,
        source: ModelSource,
        *,
        settings: InformerSettings | None = None,
        on_contact: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self._source = source
        self._settings = settings or InformerSettings()
        self._on_contact = on_contact
        self._subscribers: dict[ModelRef, Subscriber] = {}
        self._unlisted: set[ModelRef] = set()
        self._cursor: str | None = None
        self._reset = False
        self._changed = anyio.Event()
        self._stream_scope: CancelScope | None = None
        self._moved: dict[ModelRef, ResumeToken] = {}
        self._doubted: dict[ModelRef, ResumeToken | None] = {}
        self._known: ResumeToken | None = None
        self._tasks: TaskGroup | None = None

    def add(self, subscriber: Subscriber, token: str | None) -> None:
        """Follows ``subscriber.ref`` from the snapshot ``token`` on; None lists it as soon as the server answers."""
        ref = subscriber.ref
        self._subscribers[ref] = subscriber
        if token and self._known is None:
            self._known = ResumeToken.parse(token)
        if not token:
            self._unlisted.add(ref)
        elif not self._cursor:
            # What the others are known to be may be from before it, or not known at all.
            self._unlisted.update(other for other in self._subscribers if other != ref)
            self._unlisted.discard(ref)
            self._cursor = token
        elif not _covers(self._cursor, token):
            # The stream went on while this one was brought into service, and did not carry its moves.
            self._unlisted.add(ref)
        self._restart()

    def remove(self, subscriber: Subscriber) -> None:
        """Stops following a reference."""
        if self._subscribers.get(subscriber.ref) is subscriber:
            del self._subscribers[subscriber.ref]
            self._unlisted.discard(subscriber.ref)
            self._restart()

    def _restart(self) -> None:
        self._changed.set()
        if self._stream_scope is not None:
            self._stream_scope.cancel()

    async def run(self) -> None:
        """Follows for ever; every failure is waited out.

        Cancellation: the stream is closed, nothing else is held.
        """
        # What was to be looked at when an error ended the run before.
        self._unlisted.update(ref for ref in (*self._moved, *self._doubted) if ref in self._subscribers)
        self._moved.clear()
        self._doubted.clear()
        async with anyio.create_task_group() as self._tasks:
            self._tasks.start_soon(self._check_periodically, name="modelbox informer check")
            await self._run_streams()

    async def _run_streams(self) -> None:
        failures = gaps = 0
        while True:
            self._changed = anyio.Event()
            if not self._subscribers:
                self._cursor = None
                await self._changed.wait()
                continue
            began = anyio.current_time()
            ended = False
            try:
                with CancelScope() as self._stream_scope:
                    await self._list()
                    await self._follow()
                    ended = True
                if not ended:
                    failures = gaps = 0
                    continue
                # One RESYNC is news. Several in a row are a server in trouble.
                failures, pause = self._backed_off(failures, began)
            except _Gap as exc:
                gaps += 1
                _log.warning("the change feed skipped something, resuming: %s", exc)
                if gaps == 1:
                    continue
                self._forget_cursor()
                failures, pause = self._backed_off(failures, began)
            except AuthError as exc:
                pause = self._settings.denied_pause_s
                _log.warning("the server refuses this client; what is loaded goes on")
                self._lost(exc, pause)
            except ModelBoxError as exc:
                failures, pause = self._backed_off(failures, began)
                self._lost(exc, pause)
            finally:
                self._stream_scope = None
            with anyio.move_on_after(pause):
                await self._changed.wait()

    def _backed_off(self, failures: int, began: float) -> tuple[int, float]:
        """How many failures there are now in a row, and how long to pause after this one."""
        if anyio.current_time() - began > self._settings.healthy_s:
            failures = 0
        bound = min(self._settings.backoff_max_s, self._settings.backoff_base_s * 2.0**failures)
        return min(failures + 1, 16), random.uniform(0, bound)

    def _lost(self, error: ModelBoxError, pause_s: float) -> None:
        _log.info("no change feed (%s); next attempt in %.1f s", error, pause_s)
        self._on_contact(False)

    def _forget_cursor(self) -> None:
        self._cursor = None
        self._unlisted.update(self._subscribers)
        # Places in a history that may have been replaced; everything is listed anyway.
        self._doubted = dict.fromkeys(self._doubted)

    async def _list(self) -> None:
        """Resolves what has no known state, and makes sure that there is a cursor."""
        if self._cursor is None:
            self._unlisted.update(self._subscribers)
        first: str | None = None
        for ref in sorted(self._unlisted, key=str):
            # The cursor is past what the stream told before: it will not tell that again.
            token = await self._refresh(ref, ResumeToken.parse(self._cursor) if self._cursor else None)
            first = first or token
        if self._cursor is None:
            self._cursor = first
        self._reset = False

    async def _refresh(self, ref: ModelRef, since: ResumeToken | None = None) -> str | None:
        """Asks what ``ref`` points to; again later where the answer is of a moment before ``since``."""
        subscriber = self._subscribers.get(ref)
        token = None
        if subscriber is not None:
            try:
                resolved = await self._source.resolve(ref)
                check_answer(ref, resolved, self._known)
                token = resolved.token
                self._advance(token)
                if self._subscribers.get(ref) is subscriber:
                    subscriber.offer(resolved, reset=self._reset)
                if since is not None and token and _is_before(token, since):
                    # It came out of a copy of the database that lags behind the one that told of the change.
                    self._ask_again(ref, since)
            except NotFoundError as exc:
                subscriber.missing(exc)
            except (ProtocolError, IntegrityError) as exc:
                # The others are served all the same.
                subscriber.refused(exc)
                self._ask_again(ref, since)
        if self._subscribers.get(ref) is subscriber:
            # Not for one that has taken its place meanwhile, and was told nothing.
            self._unlisted.discard(ref)
        return token

    def _ask_again(self, ref: ModelRef, since: ResumeToken | None = None) -> None:
        if self._tasks is None:
            return
        if ref not in self._doubted:
            self._tasks.start_soon(self._ask_later, ref, name=f"modelbox doubt of {ref}")
        held = self._doubted.get(ref)
        if since is None or (held is not None and same_history(since, held) and since.rev < held.rev):
            since = held
        self._doubted[ref] = since

    async def _ask_later(self, ref: ModelRef) -> None:
        await anyio.sleep(self._settings.backoff_max_s * random.uniform(0.5, 1.0))
        since = self._doubted.pop(ref)
        try:
            await self._refresh(ref, since)
        except ModelBoxError as exc:
            _log.debug("could not ask for %s again: %s", ref, exc)
            self._ask_again(ref, since)
        except BaseException:
            # Whatever ends the informer: its next run looks.
            self._unlisted.add(ref)
            raise

    def _advance(self, token: str) -> None:
        """Notes how far history is, so that a leap is noticed.

        Raises:
            ProtocolError: No history grows so fast.
        """
        if not token:
            return
        place = ResumeToken.parse(token)
        check_leap(place, self._known)
        if self._known is None or not same_history(place, self._known) or place.rev > self._known.rev:
            self._known = place

    async def _follow(self) -> None:
        """Reads one stream to its end."""
        models = sorted({ref.path for ref in self._subscribers})
        cursor = linked = self._cursor or ""
        sent = ResumeToken.parse(cursor).rev if cursor else None
        async with self._source.watch(models, cursor) as items:
            async for item in items:
                self._on_contact(True)
                if isinstance(item, Revision):
                    if sent is not None and item.rev <= sent:
                        continue  # it came before
                    if sent is not None and item.prev_rev != sent:
                        # Bookmarks since the last whole link promised what did not come: they do not count.
                        self._cursor = linked or None
                        raise _Gap(f"expected a link to revision {sent}, got {item.prev_rev}")
                    self._advance(item.token)
                    for ref in self._touched(item):
                        await self._moved_now_or_later(ref, item.token)
                    sent = item.rev
                    self._cursor = linked = item.token
                elif isinstance(item, Bookmark):
                    if sent is not None and item.rev < sent:
                        raise ProtocolError(f"a bookmark went back from revision {sent} to {item.rev}")
                    self._advance(item.token)
                    if sent is None:
                        sent, linked = item.rev, item.token
                    if self._cursor is None:  # nothing that was asked for existed; it may have come since
                        for ref in list(self._subscribers):
                            await self._refresh(ref)
                    self._cursor = item.token
                elif isinstance(item, Resync):
                    _log.info("the server asks to list again (%s): %s", item.reason, item.message)
                    self._reset = item.reason in (ResyncReason.DIVERGED, ResyncReason.FUTURE)
                    self._forget_cursor()
                    return

    async def _moved_now_or_later(self, ref: ModelRef, token: str) -> None:
        since = ResumeToken.parse(token)
        if not self._settings.jitter_s:
            await self._refresh(ref, since)
        else:
            # Moves that follow before its time has come are found by the same look.
            assert self._tasks is not None
            waits = ref in self._moved
            self._moved[ref] = since
            if not waits:
                self._tasks.start_soon(self._refresh_later, ref, name=f"modelbox move of {ref}")

    async def _refresh_later(self, ref: ModelRef) -> None:
        await anyio.sleep(random.uniform(0, self._settings.jitter_s))
        since = self._moved.pop(ref)
        try:
            await self._refresh(ref, since)
        except ModelBoxError as exc:
            _log.info("could not resolve %s, which has moved (%s); listing again", ref, exc)
            if ref in self._subscribers:
                self._unlisted.add(ref)
                self._restart()
        except BaseException:
            self._unlisted.add(ref)
            raise

    def _touched(self, revision: Revision) -> list[ModelRef]:
        """References whose target, or whose target's editable part, a revision may have changed."""
        touched: dict[ModelRef, None] = {}
        for change in revision.changes:
            for ref in self._subscribers:
                moved = change.kind == Kind.ALIAS and change.object == str(ref)
                edited = (
                    change.kind == Kind.VERSION
                    and change.action == Action.UPDATED
                    and change.object.startswith(f"{ref.path}@")
                )
                if moved or edited:
                    touched[ref] = None
        return list(touched)

    async def _check_periodically(self) -> None:
        while True:
            await anyio.sleep(self._settings.relist_s * random.uniform(0.8, 1.2))
            for ref in list(self._subscribers):
                try:
                    await self._refresh(ref)
                except ModelBoxError as exc:
                    _log.debug("could not check %s: %s", ref, exc)


def _is_before(token: str, since: ResumeToken) -> bool:
    """Whether ``token`` is an earlier place of the same history."""
    place = ResumeToken.parse(token)
    return same_history(place, since) and place.rev < since.rev


def _covers(cursor: str, token: str) -> bool:
    """Whether a stream from ``cursor`` on tells of everything behind ``token``."""
    begin, place = ResumeToken.parse(cursor), ResumeToken.parse(token)
    return same_history(begin, place) and begin.rev <= place.rev
