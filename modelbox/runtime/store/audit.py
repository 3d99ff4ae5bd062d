"""The audit log in SQL: reads the feed's rows, with the state that each object had before.

A question may fit one entry in a year, and only the object has an index; so one call looks at a bounded part of
history, and says where it ended.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, and_, bindparam, case, func, null, or_, select
from sqlalchemy.sql import ColumnElement

from modelbox.audit import AuditEntry, AuditFilter
from modelbox.feed import Action, Kind
from modelbox.runtime.audit_ports import AuditPlace, DeniedCalls, FoundEntries
from modelbox.runtime.store.database import Database
from modelbox.runtime.store.history import NewChange, append, audit_place, next_rev, read_head
from modelbox.runtime.store.rows import from_us, to_us
from modelbox.runtime.store.schema import feed_changes
from modelbox.tracking import AttributeKind, kind_of_id

__all__ = ("SqlAuditStore",)

_ALL_OF_IT = (1 << 31) - 1
_WINDOW = 20_000
"""Revisions that one call looks at."""
_SLACK = timedelta(minutes=10)
"""How far the clocks of servers, whose times history keeps in the order of revisions, may be apart."""
_NOTHING_BEFORE = (Action.CREATED.value, Action.DENIED.value)

_AT = select(feed_changes.c.at_us).where(feed_changes.c.rev == bindparam("rev"), feed_changes.c.idx == 0)


def _find(
    conn: Connection,
    wanted: AuditFilter,
    namespaces: frozenset[str] | None,
    limit: int,
    after: AuditPlace | None,
    oldest_first: bool,
) -> FoundEntries:
    head = read_head(conn)
    first, last = audit_place(conn)[0] + 1, head.rev
    if wanted.since is not None:
        first = max(first, _rev_at(conn, first, last, to_us(wanted.since - _SLACK)))
    if wanted.until is not None:
        last = min(last, _rev_at(conn, first, last, to_us(wanted.until + _SLACK)))
    if after is not None:
        first, last = (max(first, after[0]), last) if oldest_first else (first, min(last, after[0]))
    conditions = [*_conditions(wanted, namespaces)]
    begin, end = first, last
    if not _is_exact(wanted.object):
        begin, end = (first, min(last, first + _WINDOW)) if oldest_first else (max(first, last - _WINDOW), last)
    items = _read(conn, [*conditions, *_behind(after, oldest_first)], begin, end, limit, oldest_first)
    if len(items) == limit:
        return FoundEntries(items=items, next=(items[-1].rev, items[-1].idx))
    if oldest_first:
        # Behind all changes of the revision.
        rest: AuditPlace | None = (end, _ALL_OF_IT) if end < last else None
    else:
        rest = (begin, 0) if begin > first else None
    return FoundEntries(items=items, next=rest)


def _rev_at(conn: Connection, first: int, last: int, at_us: int) -> int:
    """About the first revision of a time or later, between two; that behind the last if there is none."""
    low, high = first, last + 1
    while low < high:
        middle = (low + high) // 2
        found = conn.execute(_AT, {"rev": middle}).scalar()
        if found is None:
            # There should be one: look at everything, then.
            return first if low == first else low
        if found < at_us:
            low = middle + 1
        else:
            high = middle
    return low


def _behind(after: AuditPlace | None, oldest_first: bool) -> list[ColumnElement[bool]]:
    if after is None:
        return []
    # One that was made up could be greater than the column holds.
    rev, idx = after[0], min(after[1], _ALL_OF_IT)
    same = feed_changes.c.rev == rev
    if oldest_first:
        return [or_(feed_changes.c.rev > rev, and_(same, feed_changes.c.idx > idx))]
    return [or_(feed_changes.c.rev < rev, and_(same, feed_changes.c.idx < idx))]


def _conditions(wanted: AuditFilter, namespaces: frozenset[str] | None) -> list[ColumnElement[bool]]:
    columns = feed_changes.c
    conditions: list[ColumnElement[bool]] = [
        columns[name] == getattr(wanted, name)
        for name in ("actor", "namespace", "token_id", "address", "request_id")
        if getattr(wanted, name)
    ]
    if namespaces is not None:
        conditions.append(columns.namespace.in_(sorted(namespaces)))
    if wanted.kinds:
        conditions.append(columns.kind.in_(wanted.kinds))
    if wanted.actions:
        conditions.append(columns.action.in_(wanted.actions))
    if wanted.since is not None:
        conditions.append(columns.at_us >= to_us(wanted.since))
    if wanted.until is not None:
        conditions.append(columns.at_us < to_us(wanted.until))
    if wanted.object:
        conditions.append(_about(wanted.object))
    return conditions


def _is_exact(path: str) -> bool:
    """Whether everything that a path takes in can be named."""
    return bool(path) and ("/" not in path or "@" in path or kind_of_id(path.partition("/")[0]) is not None)


def _about(path: str) -> ColumnElement[bool]:
    column = feed_changes.c.object
    if kind_of_id(path) is not None:
        # What the feed calls the parts of an object.
        return column.in_([path, *(f"{path}/{kind.value}" for kind in AttributeKind), f"{path}/readme"])
    if _is_exact(path):
        return column == path
    below = f"{path}@"
    namespace = feed_changes.c.namespace == path.partition("/")[0]
    return and_(namespace, or_(column == path, func.substr(column, 1, len(below)) == below))


def _read(
    conn: Connection,
    conditions: Sequence[ColumnElement[bool]],
    begin: int,
    end: int,
    limit: int,
    oldest_first: bool,
) -> tuple[AuditEntry, ...]:
    columns = feed_changes.c
    order = (columns.rev, columns.idx) if oldest_first else (columns.rev.desc(), columns.idx.desc())
    page = (
        select(columns.rev, columns.idx)
        .where(columns.rev >= begin, columns.rev <= end, *conditions)
        .order_by(*order)
        .limit(limit)
        .subquery("page")
    )
    earlier = feed_changes.alias("earlier")
    before = (
        select(earlier.c.state)
        .where(
            earlier.c.object == columns.object,
            earlier.c.kind == columns.kind,
            earlier.c.rev <= columns.rev,
            or_(earlier.c.rev < columns.rev, earlier.c.idx < columns.idx),
        )
        .order_by(earlier.c.rev.desc(), earlier.c.idx.desc())
        .limit(1)
        .correlate(feed_changes)
        .scalar_subquery()
    )
    query = (
        select(feed_changes, case((columns.action.in_(_NOTHING_BEFORE), null()), else_=before).label("before"))
        .join(page, and_(page.c.rev == columns.rev, page.c.idx == columns.idx))
        .order_by(*order)
    )
    return tuple(_entry_of(row) for row in conn.execute(query))


def _entry_of(row: Any) -> AuditEntry:
    state = json.loads(row.state)
    deleted = row.action == Action.DELETED.value
    if deleted:
        # The feed keeps the last state of what is gone.
        before, after = state, None
    else:
        before, after = None if row.before is None else json.loads(row.before), state
    return AuditEntry(
        rev=row.rev,
        idx=row.idx,
        at=from_us(row.at_us),
        actor=row.actor,
        token_id=row.token_id,
        address=row.address,
        request_id=row.request_id,
        namespace=row.namespace,
        object=row.object,
        kind=row.kind,
        action=row.action,
        before=before,
        after=after,
        chain=bytes(row.chain).hex(),
    )


def _add_denials(conn: Connection, denials: Sequence[DeniedCalls], at: datetime) -> None:
    place = next_rev(conn)
    changes = [
        NewChange(
            namespace=one.namespace,
            object=one.denial.object,
            kind=Kind.DENIAL,
            action=Action.DENIED,
            state=one.denial,
            actor=one.actor,
            origin=one.origin,
        )
        for one in denials
    ]
    append(conn, place, changes, actor="", at=at)


class SqlAuditStore:
    """`modelbox.runtime.audit_ports.AuditStore` over a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(
        self,
        wanted: AuditFilter,
        *,
        namespaces: frozenset[str] | None,
        limit: int,
        after: AuditPlace | None,
        oldest_first: bool,
    ) -> FoundEntries:
        """See the port."""
        return await self._database.scan(lambda conn: _find(conn, wanted, namespaces, limit, after, oldest_first))

    async def add_denials(self, denials: Sequence[DeniedCalls], *, at: datetime) -> None:
        """See the port."""
        await self._database.write(lambda conn: _add_denials(conn, denials, at))
