"""The one connection of a replica that changes things: group commit on a database that others share.

Functions that wait share a transaction. Its first statement locks the feed's head row, which no other replica's writer
gets until this one has committed; so functions of all replicas run one after the other, just as with the one writer of
SQLite, and need no locks of their own. Invariants:

* Nobody hears of success before the commit.
* A function never fails for another's sake. They run without savepoints, each of which would cost two round trips;
  where one fails, the group is rolled back and all of it runs again, each function in a savepoint.
* What was surely not committed is run again where that can help: after a conflict, and on a new connection. Where the
  connection breaks within a commit, the feed tells whether it was carried out; what is not in the feed, or cannot be
  looked up in time, is not run again (`Unavailable`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import Connection, Executable, bindparam, select
from sqlalchemy.exc import IntegrityError, PendingRollbackError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from modelbox.errors import ModelBoxError, ServerBusy, Unavailable
from modelbox.runtime.store.backend import Backend, Trouble, error_of, said
from modelbox.runtime.store.database import DatabaseObserver
from modelbox.runtime.store.history import close_group, mark_group, open_group, return_to_mark, run_as
from modelbox.runtime.store.jobs import Job, copy_of
from modelbox.runtime.store.schema import feed_changes

__all__ = ("SharedWriter",)

T = TypeVar("T")

_LOG = logging.getLogger(__name__)
_MAX_GROUP = 256
_MAX_GROUP_S = 0.05
_MAX_WAITING = 20_000
_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 0.5

_AGAIN = frozenset([Trouble.CONFLICT, Trouble.BUSY, Trouble.LOST, Trouble.READ_ONLY])
_LEAST_TRIES = {Trouble.CONFLICT: 3, Trouble.LOST: 2}
"""However long a try took: one that loses a deadlock, or finds that its connection died long ago."""
_UNSOUND = frozenset([Trouble.LOST, Trouble.READ_ONLY, Trouble.REFUSED, Trouble.INTERRUPTED])


_Place = tuple[int, bytes]
_CHAIN_OF = select(feed_changes.c.chain).where(feed_changes.c.rev == bindparam("rev"), feed_changes.c.idx == 0)


class _NeedsSavepoints(Exception):
    """A function of a group failed: the others are to run without it."""


class _Undecided(Exception):
    """The connection broke while a commit was on its way.

    Attributes:
        outcomes: What the functions of the group returned.
        place: The last revision that it adds, and the chain behind it; None if it adds none.
    """

    def __init__(self, outcomes: list[Any], place: _Place | None) -> None:
        super().__init__()
        self.outcomes = outcomes
        self.place = place


class SharedWriter:
    """Runs functions that change things, one group after the other.

    Args:
        engine: Makes the connection.
        backend: The kind of database.
        lock_head: `Backend.lock_head`; None for what is not in the feed, and which others write at the same time.
        patience_s: How long a group is tried while the database is away or locked.
        observe: Told how long functions and commits take.
        committed: Called on the event loop after each commit.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        backend: Backend,
        *,
        lock_head: Executable | None,
        patience_s: float,
        observe: DatabaseObserver | None,
        committed: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._backend = backend
        self._lock_head = lock_head
        self._patience_s = patience_s
        self._observe = observe
        self._committed = committed
        self._connection: AsyncConnection | None = None
        self._waiting: deque[Job[Any]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._place: _Place | None = None
        self.trouble = ""
        """Why nothing can be changed at the moment; empty while all is well."""

    @property
    def waiting(self) -> int:
        """Functions whose transaction has not begun."""
        return len(self._waiting)

    async def write(self, fn: Callable[[Connection], T]) -> T:
        """See `modelbox.runtime.store.database.Database.write`."""
        if self._closed or len(self._waiting) >= _MAX_WAITING:
            what = "the server is shutting down" if self._closed else "too many changes wait for the database"
            raise ServerBusy(f"{what}: try again", retry_after_s=1.0)
        loop = asyncio.get_running_loop()
        job: Job[T] = Job(fn, loop)
        self._waiting.append(job)
        if self._task is None:
            self._task = loop.create_task(self._write_waiting(), name="write to the database")
        return await job.future

    async def aclose(self) -> None:
        """Carries out what waits, and closes the connection."""
        self._closed = True
        if self._task is not None:
            await self._task
        await self._drop()

    # -- groups ----------------------------------------------------------------------------------------------------

    async def _write_waiting(self) -> None:
        """Writes until nothing waits; cancelled only when the event loop ends."""
        group: list[Job[Any]] = []
        try:
            while self._waiting:
                group = []
                await self._write_group(group)
        except BaseException as exc:
            _fail((*group, *self._waiting), ServerBusy("the server stops: try again", retry_after_s=1.0))
            self._waiting.clear()
            if isinstance(exc, Exception):
                _LOG.exception("the writer failed unexpectedly; going on")
            else:
                raise
        finally:
            self._task = None

    async def _write_group(self, group: list[Job[Any]]) -> None:
        """Takes functions off the queue into ``group``, and tries until each has its outcome."""
        until = time.monotonic() + self._patience_s
        pause_s = _PAUSE_S
        savepoints = False
        tries = 0
        while True:
            tries += 1
            try:
                outcomes = await self._transaction(group, savepoints=savepoints)
            except _NeedsSavepoints:
                savepoints = True
                continue
            except _Undecided as exc:
                self.trouble = f"the connection broke: {said(exc.__cause__ or exc)}"
                stored = None if exc.place is None else await self._find_out(exc.place)
                if stored:
                    self._succeed(group, exc.outcomes)
                    return
                if stored is not None:
                    continue
                _fail(
                    group,
                    Unavailable(
                        f"the connection to {self._backend.name} broke while a change was committed: look whether it"
                        " is stored before you try again"
                    ),
                )
                return
            except Exception as exc:
                trouble = self._trouble_of(exc)
                if trouble not in _AGAIN or (time.monotonic() >= until and tries >= _LEAST_TRIES.get(trouble, 1)):
                    error = error_of(exc, self._backend)
                    if trouble in (Trouble.LOST, Trouble.READ_ONLY, Trouble.REFUSED, Trouble.FULL):
                        self.trouble = str(error)
                    if not group:
                        # There was no transaction to begin with: whoever waits for one need not wait as long again.
                        group += self._waiting
                        self._waiting.clear()
                    _fail(group, error)
                    return
            else:
                self._succeed(group, outcomes)
                return
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)

    async def _transaction(self, group: list[Job[Any]], *, savepoints: bool) -> list[Any]:
        """One try: results of the functions, or exceptions in their places where there are savepoints."""
        connection = await self._connect()
        try:
            transaction = await connection.begin()
            outcomes = await connection.run_sync(self._run_group, group, savepoints)
        except BaseException as exc:
            await self._roll_back(connection, exc)
            raise
        began = time.perf_counter()
        try:
            await transaction.commit()
        except BaseException as exc:
            self._seen("commit", began, succeeded=False)
            await self._roll_back(connection, exc)
            if not isinstance(exc, Exception):
                raise _Undecided(outcomes, None) from exc
            if self._trouble_of(exc) is Trouble.LOST:
                raise _Undecided(outcomes, self._place) from exc
            raise
        self._seen("commit", began, succeeded=True)
        return outcomes

    def _run_group(self, conn: Connection, group: list[Job[Any]], savepoints: bool) -> list[Any]:
        """Runs functions, and more that come meanwhile; the first time, ``group`` is filled."""
        rev = 0
        if self._lock_head is not None:
            rev, chain = conn.execute(self._lock_head).one()[:2]
            open_group(conn, rev, chain)
        outcomes = [self._run(conn, job, group, savepoints=savepoints) for job in group]
        if not group:
            until = time.monotonic() + _MAX_GROUP_S
            while self._waiting and len(group) < _MAX_GROUP and (not group or time.monotonic() < until):
                job = self._waiting.popleft()
                if job.future.cancelled():
                    continue
                group.append(job)
                outcomes.append(self._run(conn, job, group, savepoints=savepoints))
        added = mark_group(conn)
        self._place = None if added is None or added[0] == rev else (added[0], added[1])
        close_group(conn)
        return outcomes

    async def _find_out(self, place: _Place) -> bool | None:
        """Whether a commit that the connection broke in was carried out; None if that was not to be learned in time.

        Behind the head's lock: the server may be at it still, and lets go of the lock at its end.
        """
        until = time.monotonic() + self._patience_s
        while True:
            connection = None
            try:
                connection = await self._connect()
                await connection.begin()
                stored = await connection.run_sync(self._has_place, place)
                await connection.rollback()
                return stored
            except Exception as exc:
                if connection is not None:
                    await self._roll_back(connection, exc)
                if time.monotonic() >= until:
                    return None
            await asyncio.sleep(_LONGEST_PAUSE_S * random.uniform(0.2, 1.0))

    def _has_place(self, conn: Connection, place: _Place) -> bool:
        assert self._lock_head is not None
        rev, chain = conn.execute(self._lock_head).one()[:2]
        if rev > place[0]:
            # Of others, who went on behind it or instead of it.
            chain = conn.execute(_CHAIN_OF, {"rev": place[0]}).scalar()
        return bool(rev >= place[0] and chain is not None and bytes(chain) == place[1])

    def _run(self, conn: Connection, job: Job[Any], group: list[Job[Any]], *, savepoints: bool) -> Any:
        began = time.perf_counter()
        try:
            if not savepoints:
                result = run_as(conn, job.origin, job.fn)
            else:
                mark = mark_group(conn)
                try:
                    with conn.begin_nested():
                        result = run_as(conn, job.origin, job.fn)
                except BaseException:
                    return_to_mark(conn, mark)
                    raise
        except Exception as exc:
            self._seen("write", began, succeeded=False)
            if self._trouble_of(exc) in _AGAIN or (len(group) == 1 and not savepoints):
                raise
            if not savepoints:
                raise _NeedsSavepoints from exc
            return _Failed(exc)
        self._seen("write", began, succeeded=True)
        return result

    def _trouble_of(self, exc: BaseException) -> Trouble:
        if isinstance(exc, ModelBoxError):
            return Trouble.OTHER
        if self._lock_head is None and isinstance(exc, IntegrityError):
            # Nothing kept another replica from making the same row at the same moment.
            return Trouble.CONFLICT
        if isinstance(exc, PendingRollbackError):
            # What is left of a transaction whose connection broke within a savepoint.
            return Trouble.LOST
        return self._backend.trouble_of(exc)

    def _seen(self, operation: Any, began: float, *, succeeded: bool) -> None:
        if self._observe is not None:
            self._observe(operation, time.perf_counter() - began, succeeded)

    def _succeed(self, group: list[Job[Any]], outcomes: list[Any]) -> None:
        self.trouble = ""
        self._committed()
        self._settle(group, outcomes)

    def _settle(self, group: list[Job[Any]], outcomes: list[Any]) -> None:
        for job, outcome in zip(group, outcomes, strict=True):
            if job.future.done():
                continue
            if isinstance(outcome, _Failed):
                job.future.set_exception(error_of(outcome.error, self._backend))
            else:
                job.future.set_result(outcome)

    # -- the connection --------------------------------------------------------------------------------------------

    async def _connect(self) -> AsyncConnection:
        if self._connection is None:
            self._connection = await self._engine.connect()
        return self._connection

    async def _roll_back(self, connection: AsyncConnection, exc: BaseException) -> None:
        """Leaves the transaction; the connection goes with it where it is not sure to be well."""
        sound = isinstance(exc, Exception) and self._trouble_of(exc) not in _UNSOUND
        if sound:
            try:
                await connection.rollback()
            except Exception:
                sound = False
        if not sound:
            await self._drop()

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                await connection.invalidate()
            with contextlib.suppress(Exception):
                await connection.close()


class _Failed:
    """What a function raised, in the place of its result."""

    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        self.error = error


def _fail(group: Any, error: BaseException) -> None:
    for job in group:
        if not job.future.done():
            job.future.set_exception(copy_of(error))
