"""Membership: which servers share this database.

A server says every few seconds that it is there, and is a member for as long as its lease lasts. Nothing depends on
everybody agreeing on who is a member: it is for people, for balancers, and for servers without bytes to name one that
has them.
"""

from __future__ import annotations

import logging
import random
import secrets
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import TaskStatus

from modelbox.access import ALL, Scope
from modelbox.errors import ModelBoxError
from modelbox.objects import Member
from modelbox.runtime.replica_ports import Beat, MemberStore

__all__ = ("MemberService",)

_LOG = logging.getLogger(__name__)
_FORGET_S = 3600.0
_CLOCK_TOLERANCE_S = 1.0
_LEAVE_S = 2.0


def _now() -> datetime:
    return datetime.now(UTC)


class MemberService:
    """Makes this server a member, and lists the members. Use as an async context manager; entering joins.

    Args:
        store: Where members are kept.
        name: For people.
        role: See `modelbox.objects.Member`.
        grpc_address: Where clients reach it.
        http_address: The same for HTTP.
        version: Of the release.
        rev: Gives the newest revision that this server has seen.
        trouble: Says why it cannot work at the moment; empty while all is well.
        on_trouble: Told of ``trouble`` after each beat, and within a second of its begin.
        alone: Whether no other server can use this database.
        lease_s: How long it is a member without saying so again.
        clock: Gives the time, aware and in UTC.
    """

    def __init__(
        self,
        store: MemberStore,
        *,
        name: str,
        role: str,
        grpc_address: str,
        http_address: str,
        version: str,
        rev: Callable[[], int],
        trouble: Callable[[], str] = lambda: "",
        on_trouble: Callable[[str], None] = lambda _: None,
        alone: bool = False,
        lease_s: float = 15.0,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        self._store = store
        self._name = name
        self._role = role
        self._grpc_address = grpc_address
        self._http_address = http_address
        self._version = version
        self._rev = rev
        self._trouble = trouble
        self._on_trouble = on_trouble
        self._alone = alone
        self._lease_s = lease_s
        self._clock = clock
        self._started_at = clock()
        self._clock_ahead_s = 0.0
        self._warned = False
        self._draining = False
        self._seen: Sequence[Member] = ()
        self._stack: AsyncExitStack | None = None
        self.id = secrets.token_hex(16)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(tasks.cancel_scope.cancel)
            await tasks.start(self._beat_for_ever, name="membership")
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._stack is None:
            return
        stack, self._stack = self._stack, None
        # An ordinary failure of the block is not the task group's business, and must not come out wrapped.
        if isinstance(exc, Exception):
            await stack.__aexit__(None, None, None)
        else:
            await stack.__aexit__(exc_type, exc, traceback)
        with anyio.move_on_after(_LEAVE_S, shield=True):
            try:
                await self._store.leave(self.id)
            except ModelBoxError as exc:
                _LOG.info("cannot leave, so this server stays a member for %s s: %s", self._lease_s, exc)

    async def drain(self) -> None:
        """Says that this server takes no more work; what cannot be said now is said with the next beat."""
        self._draining = True
        with anyio.move_on_after(_LEAVE_S):
            try:
                await self._beat()
            except ModelBoxError as exc:
                _LOG.debug("cannot say that this server drains: %s", exc)

    def now(self) -> datetime:
        """The time by the database's clock, as far as it is known: what all servers agree on."""
        return self._clock() - timedelta(seconds=self._clock_ahead_s)

    async def list_members(self, *, scope: Scope = ALL) -> tuple[Member, ...]:
        """All servers of this database, those that were lost within the last hour too.

        They belong to no namespace: whoever may not see everything sees none.
        """
        if not scope.everything:
            return ()
        return tuple(await self._store.list_members())

    def http_with_bytes(self) -> str:
        """The HTTP address of a server that has bytes, another one each time; empty if none is known.

        As of the last beat, so that naming one costs nothing.
        """
        places = [
            member.http_address
            for member in self._seen
            if member.alive and member.role in ("blobs", "all") and member.state == "ready"
        ]
        return random.choice(places) if places else ""

    async def _beat_for_ever(self, *, task_status: TaskStatus[None]) -> None:
        try:
            if self._alone:
                await self._store.clear()
            await self._beat()
        except ModelBoxError as exc:
            # A full disk, say: what can be read is served all the same.
            _LOG.warning("cannot make this server a member yet: %s", exc)
        task_status.started()
        while True:
            await self._pause()
            try:
                await self._beat()
            except ModelBoxError as exc:
                _LOG.debug("cannot renew this server's membership: %s", exc)
            self._on_trouble(self._trouble())

    async def _pause(self) -> None:
        """Until the next beat: sooner when something is wrong, as the beat is what notices that all is well again."""
        left_s = self._lease_s / 3 * random.uniform(0.8, 1.0)
        while left_s > 0:
            await anyio.sleep(min(left_s, random.uniform(0.8, 1.0)))
            left_s -= 1.0
            if trouble := self._trouble():
                # Before the beat, which waits for the database.
                self._on_trouble(trouble)
                return

    async def _beat(self) -> None:
        asked, began = self._clock(), anyio.current_time()
        now = await self._store.renew(
            Beat(
                id=self.id,
                name=self._name,
                role=self._role,
                state="draining" if self._draining else "degraded" if self._trouble() else "ready",
                grpc_address=self._grpc_address,
                http_address=self._http_address,
                version=self._version,
                started_at=self._started_at,
                clock_ahead_s=self._clock_ahead_s,
                rev=self._rev(),
            ),
            lease_s=self._lease_s,
            forget_s=_FORGET_S,
        )
        self._compare(asked, anyio.current_time() - began, now)
        if self._role == "control":
            self._seen = await self._store.list_members()

    def _compare(self, asked: datetime, took_s: float, now: datetime) -> None:
        """Notes by how much this machine's clock is surely ahead: the answer was made at any moment of the wait."""
        low = (asked - now).total_seconds()
        high = low + took_s
        self._clock_ahead_s = low if low > 0 else min(0.0, high)
        if abs(self._clock_ahead_s) <= _CLOCK_TOLERANCE_S:
            self._warned = False
        elif not self._warned:
            self._warned = True
            _LOG.warning(
                "this machine's clock is %+.1f s off the database's: so will be times of what is written here",
                self._clock_ahead_s,
            )
