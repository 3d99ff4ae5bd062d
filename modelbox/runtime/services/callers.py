"""Who calls: what credentials are worth at this moment, and when tokens were last used.

Owns the one `AccessBook` in force. It is read anew after each change that this server makes, whenever the change feed
tells of one (so other replicas follow within a second), and once for a token that it does not have. Where the database
cannot be read the last book stays in force.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Self

import anyio
from anyio import to_thread

from modelbox.access import ANYBODY, Caller
from modelbox.errors import ModelBoxError, NotAuthenticated, ServerBusy
from modelbox.runtime.access_ports import AccessState, AccessStore
from modelbox.runtime.services.access_book import EMPTY_BOOK, AccessBook, Credentials, FailureCount, read_credentials

__all__ = ("SERVER_ACTOR", "CallerService", "Credentials")

_LOG = logging.getLogger(__name__)
SERVER_ACTOR = "server"
"""What history calls the server where it makes an account by itself."""
_EXPIRED_KNOWN = timedelta(days=30)
"""For so long an expired token is told that it is just that."""
_MAX_ACTOR_CHARS = 128
_NOTED_EVERY_S = 3600.0
_NOTE_INTERVAL_S = 60.0
_LAST_NOTE_S = 2.0
_LOOK_AGAIN_S = 1.0
_MAX_RETRY_S = 5.0


class CallerService:
    """Who calls. Use as an async context manager; it runs two tasks where access control is on.

    All but what is awaited is synchronous and does no I/O.

    Args:
        store: Where accounts, roles and tokens are kept.
        on: Whether there is access control; without it everybody may do everything.
        clock: Gives the time, seconds since 1970.
    """

    def __init__(
        self,
        store: AccessStore,
        *,
        on: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._on = on
        self._clock = clock
        self._book = EMPTY_BOOK
        self._failures = FailureCount()
        self._callbacks: list[Callable[[], None]] = []
        self._lock = anyio.Lock()
        self._asked = 0
        self._answered = 0
        self._looked_at = -math.inf
        self._news = anyio.Event()
        self._noted: dict[str, float] = {}
        self._used: dict[str, float] = {}
        self._stack: AsyncExitStack | None = None

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            if self._on:
                await self.refresh()
                tasks = await stack.enter_async_context(anyio.create_task_group())
                stack.callback(tasks.cancel_scope.cancel)
                tasks.start_soon(self._follow, name="access book")
                tasks.start_soon(self._note_for_ever, name="uses of tokens")
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._stack is None:
            return
        stack, self._stack = self._stack, None
        with anyio.move_on_after(_LAST_NOTE_S, shield=True):
            await self.note_uses()
        # As in the feed: an ordinary failure of the block must not come out wrapped.
        if isinstance(exc, Exception):
            await stack.__aexit__(None, None, None)
        else:
            await stack.__aexit__(exc_type, exc, traceback)

    # -- who calls -------------------------------------------------------------------------------------------------

    @property
    def on(self) -> bool:
        """Whether there is access control."""
        return self._on

    def credentials(
        self,
        authorization: str,
        *,
        declared: str = "",
        address: str = "",
        certificate_names: tuple[str, ...] = (),
    ) -> Credentials:
        """Reads the ``authorization`` header (empty if there is none) or the names of a client certificate.

        Never raises: what is wrong is said by `caller`. Hashes the secret once, so keep it as long as the headers hold.
        """
        if not self._on:
            return Credentials(declared=declared, address=address)
        return read_credentials(authorization, declared=declared, address=address, certificate_names=certificate_names)

    def caller(self, credentials: Credentials) -> Caller:
        """Who that is at this moment; cheap enough for each call.

        Raises:
            NotAuthenticated: Nobody, or nobody any more.
            ServerBusy: Too many bad credentials came from this address; good ones always pass.
        """
        if not self._on:
            return replace(ANYBODY, name=credentials.declared[:_MAX_ACTOR_CHARS], address=credentials.address)
        now = self._clock()
        try:
            caller = self._book.caller(credentials, now)
        except NotAuthenticated as exc:
            raise self._failed(credentials, exc) from None
        if caller.token_id and now >= self._noted.get(caller.token_id, -math.inf):
            self._noted[caller.token_id] = now + _NOTED_EVERY_S
            self._used[caller.token_id] = now
        return caller

    async def admit(self, credentials: Credentials) -> Caller:
        """`caller`, but for a token that this replica has not heard of yet it looks once (rate-limited)."""
        kid = credentials.kid
        if self._on and kid and not self._book.knows(kid) and anyio.current_time() >= self._looked_at + _LOOK_AGAIN_S:
            self._looked_at = anyio.current_time()
            try:
                await self.refresh()
            except ModelBoxError as exc:
                _LOG.warning("cannot look for the token %s: %s", kid, exc)
        return self.caller(credentials)

    def renewed(self, caller: Caller) -> Caller:
        """A caller as they are at this moment, for what goes on for long: their roles may have changed.

        Raises:
            NotAuthenticated: Their token was revoked or has expired, or their account is gone or disabled.
        """
        return self._book.renewed(caller, self._clock()) if self._on else caller

    def expires_in(self, caller: Caller) -> float | None:
        """Seconds until `renewed` will refuse them if nothing changes; None: never."""
        expires = self._book.expires(caller) if self._on else None
        return None if expires is None else max(0.0, expires - self._clock())

    def on_change(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Has ``callback`` called on the event loop after accounts, roles or tokens changed; returns what ends that."""
        self._callbacks.append(callback)

        def end() -> None:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

        return end

    def _failed(self, credentials: Credentials, error: NotAuthenticated) -> ModelBoxError:
        if not (credentials.kid or credentials.wrong or credentials.certificate_names):
            # Who says nothing has not guessed either.
            return error
        wait_s = self._failures.add(credentials.address, time.monotonic())
        if wait_s:
            return ServerBusy(
                "too many calls with bad credentials came from this address: correct the token, and wait",
                retry_after_s=round(wait_s, 1),
            )
        return error

    # -- the book --------------------------------------------------------------------------------------------------

    def changed(self) -> None:
        """The change feed tells of accounts, roles or tokens: the book is read soon."""
        self._news.set()

    async def refresh(self) -> None:
        """Reads accounts, roles and tokens again; calls that come meanwhile share one reading that begins after them.

        Raises:
            StorageError: The database cannot be read; the book stays as it was.
        """
        self._asked += 1
        mine = self._asked
        async with self._lock:
            if self._answered >= mine:
                return
            upto = self._asked
            since = datetime.fromtimestamp(self._clock(), UTC) - _EXPIRED_KNOWN
            state = await self._store.load(expired_since=since)
            # Of thousands of tokens it takes tens of milliseconds, which calls need not wait for.
            book = await to_thread.run_sync(_book_of, state, self._book)
            changed, self._book = book is not self._book, book
            self._answered = upto
        if not changed:
            return
        self._noted = {kid: at for kid, at in self._noted.items() if self._book.knows(kid)}
        for callback in tuple(self._callbacks):
            callback()

    async def _follow(self) -> None:
        pause_s = 0.5
        while True:
            await self._news.wait()
            self._news = anyio.Event()
            try:
                await self.refresh()
                pause_s = 0.5
            except ModelBoxError as exc:
                _LOG.warning("cannot read accounts, roles and tokens, trying again: %s", exc)
                self._news.set()
                await anyio.sleep(pause_s)
                pause_s = min(_MAX_RETRY_S, pause_s * 2)

    async def _note_for_ever(self) -> None:
        while True:
            await anyio.sleep(_NOTE_INTERVAL_S)
            await self.note_uses()

    async def note_uses(self) -> None:
        """Writes when tokens were last used, each at most once an hour; runs by itself every minute."""
        used, self._used = self._used, {}
        if not used:
            return
        rows = [(kid, datetime.fromtimestamp(at, UTC)) for kid, at in sorted(used.items())]
        try:
            await self._store.note_uses(rows, older_than_s=_NOTED_EVERY_S)
        except ModelBoxError as exc:
            _LOG.warning("cannot note when tokens were used: %s", exc)
            self._used = {**used, **self._used}

    async def _done(self) -> None:
        """After a change of ours: in force here before anybody is told that it was made."""
        with anyio.CancelScope(shield=True):
            try:
                await self.refresh()
            except ModelBoxError as exc:
                _LOG.warning("cannot read accounts, roles and tokens after a change, trying again: %s", exc)
                self._news.set()


def _book_of(state: AccessState, before: AccessBook) -> AccessBook:
    """The book of a state; the one before if nothing has changed."""
    return before if state == before.state else AccessBook(state)
