"""What callers were refused, for the audit log: summed up, so that nobody can flood history.

Refusals of one caller about one object are one entry a minute, however many they are. New entries come out of a budget
that is filled slowly; what exceeds it is told as one sum. So history grows by two entries a minute at most, in the long
run, whoever knocks. The sums of the last minute are lost where a server is killed; calls are never held up.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import anyio

from modelbox.access import Caller
from modelbox.audit import Denial
from modelbox.errors import InvalidError, ModelBoxError
from modelbox.redaction import redact
from modelbox.refs import check_name
from modelbox.runtime.audit_ports import AuditStore, DeniedCalls
from modelbox.runtime.caller import NO_ORIGIN, Origin

__all__ = ("AUTHENTICATION", "Denials")

AUTHENTICATION = "authentication"
"""What a caller lacked whom nobody knows, in place of a permission."""

_LOG = logging.getLogger(__name__)
_MAX_WAITING = 1000
_MAX_CHARS = 255
_LONGEST_CHARS = 4096
_BURST = 200
_FLUSH_S = 5.0


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True)
class _Sum:
    """Refusals that are alike."""

    first_at: datetime
    last_at: datetime
    request_id: str
    count: int = 0


_Alike = tuple[str, str, str, str, str, str, str]


class Denials:
    """Gathers refusals, and writes them into history once a minute.

    Use as an async context manager; it runs the task that writes.

    Args:
        store: Where they go.
        interval_s: Time between two writes.
        burst: Entries of their own that a while without any allows at once; one more comes with each interval.
        clock: Gives the time, aware and in UTC.
    """

    def __init__(
        self,
        store: AuditStore,
        *,
        interval_s: float = 60.0,
        burst: int = _BURST,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        self._store = store
        self._interval_s = interval_s
        self._burst = burst
        self._budget = burst
        self._clock = clock
        self._sums: dict[_Alike, _Sum] = {}
        self._others: _Sum | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Writes until the block ends, and then what is left."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._write_for_ever, name="denials")
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()
                with anyio.move_on_after(_FLUSH_S, shield=True):
                    await self._flush_safely()

    def note(
        self,
        caller: Caller,
        *,
        method: str,
        permission: str,
        namespace: str = "",
        object: str = "",
        request_id: str = "",
    ) -> None:
        """Counts a call that was refused. Never fails, and never waits.

        Args:
            caller: Who, as far as that is known.
            method: The gRPC method or HTTP route, as the table of calls names it: none that a caller makes up.
            permission: What was needed; `AUTHENTICATION` where nobody knows who it is.
            namespace: Of the object; whose admins see it.
            object: As the call named it.
            request_id: The call.
        """
        now = self._clock()
        key = (
            _printable(caller.name),
            caller.token_id,
            caller.address,
            method,
            permission,
            _name_or_nothing(namespace),
            _printable(redact(object[:_LONGEST_CHARS])),
        )
        found = self._sums.get(key)
        if found is None and len(self._sums) < _MAX_WAITING:
            found = self._sums[key] = _Sum(now, now, request_id)
        if found is None:
            found = self._others = self._others or _Sum(now, now, "")
        found.count += 1
        found.last_at = now

    async def flush(self) -> int:
        """Writes what was gathered; returns the number of entries.

        Raises:
            ModelBoxError: They could not be written, and are dropped.
        """
        sums, self._sums = self._sums, {}
        others, self._others = self._others, None
        allowed = self._budget
        self._budget = min(self._burst, max(0, allowed - len(sums)) + 1)
        told = [_entry_of(key, one) for key, one in list(sums.items())[:allowed]]
        rest = list(sums.values())[allowed:]
        if rest or others is not None:
            told.append(_sum_of(rest, others))
        if told:
            await self._store.add_denials(told, at=self._clock())
        return len(told)

    async def _write_for_ever(self) -> None:
        while True:
            await anyio.sleep(self._interval_s)
            await self._flush_safely()

    async def _flush_safely(self) -> None:
        try:
            await self.flush()
        except ModelBoxError as exc:
            _LOG.warning("what callers were refused cannot be written into the audit log: %s", exc)


def _printable(text: str) -> str:
    """What every database can hold of a text that a caller has made up."""
    return "".join(char if char.isprintable() else "?" for char in text[:_MAX_CHARS])


def _name_or_nothing(namespace: str) -> str:
    try:
        return check_name(namespace, "namespace") if namespace else ""
    except InvalidError:
        return ""


def _entry_of(key: _Alike, one: _Sum) -> DeniedCalls:
    name, token_id, address, method, permission, namespace, path = key
    return DeniedCalls(
        actor=name,
        origin=Origin(token_id=token_id[:64], address=address[:64], request_id=one.request_id[:64]),
        namespace=namespace,
        denial=Denial(
            method=method,
            permission=permission,
            object=path,
            count=one.count,
            first_at=one.first_at,
            last_at=one.last_at,
        ),
    )


def _sum_of(rest: list[_Sum], others: _Sum | None) -> DeniedCalls:
    different = len(rest) + (0 if others is None else others.count)
    everything = [*rest, *([] if others is None else [others])]
    return DeniedCalls(
        actor="",
        origin=NO_ORIGIN,
        namespace="",
        denial=Denial(
            method="",
            permission="",
            object="",
            count=sum(one.count for one in everything),
            first_at=min(one.first_at for one in everything),
            last_at=max(one.last_at for one in everything),
            others=different,
        ),
    )
