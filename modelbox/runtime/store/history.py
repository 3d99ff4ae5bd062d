"""The change feed's history in SQL: how a revision is taken, written and bound to all before it.

Invariants: revisions are consecutive from 1; every one has at least one change; ``chain`` binds each to all before it.
`next_rev` locks the head row, so it comes after every other lock of a transaction and before the first write: business
rows first, the head last. A writer of a shared database locks it before everything else and keeps what its group of
functions adds until the end, which saves four round trips for each: `open_group`, `close_group`.

Whose call a change comes from is a fact of the transaction. Who runs functions says so beforehand (`run_as`), from what
the task knew that asked for the change; so no store passes it on, and none can leave it out.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Connection, bindparam, func, insert, select, update

from modelbox.access import ALL, Scope
from modelbox.errors import ServerBusy, StorageError
from modelbox.feed import Action, Kind, ResumeToken, next_chain
from modelbox.objects import to_json
from modelbox.runtime.caller import NO_ORIGIN, Origin
from modelbox.runtime.ports import FeedHead
from modelbox.runtime.space_ports import ChainPlace
from modelbox.runtime.store.chain import change_body, follow
from modelbox.runtime.store.prepared import Prepared
from modelbox.runtime.store.rows import to_us
from modelbox.runtime.store.schema import feed_changes, feed_head

__all__ = (
    "NewChange",
    "Place",
    "append",
    "audit_place",
    "close_group",
    "create_head",
    "mark_group",
    "next_rev",
    "open_group",
    "read_head",
    "read_head_within",
    "return_to_mark",
    "run_as",
    "token_of",
    "verify_chain",
    "verify_part",
)

T = TypeVar("T")

_GENESIS = bytes(32)
_VERIFIED_AT_ONCE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class NewChange:
    """A change before it has its place in history.

    Attributes:
        actor: Where it is not the one that appends it.
        origin: The same.
    """

    namespace: str
    object: str
    kind: Kind
    action: Action
    state: Any
    actor: str | None = None
    origin: Origin | None = None


_BUMP = Prepared(update(feed_head).where(feed_head.c.id == 1).values(rev=feed_head.c.rev + 1))
_PLACE = Prepared(select(feed_head.c.rev, feed_head.c.chain).where(feed_head.c.id == 1))
_SET_CHAIN = Prepared(update(feed_head).where(feed_head.c.id == 1).values(chain=bindparam("new_chain")))
_SET_HEAD = Prepared(
    update(feed_head).where(feed_head.c.id == 1).values(rev=bindparam("new_rev"), chain=bindparam("new_chain"))
)
_ADD = Prepared(insert(feed_changes), [column.name for column in feed_changes.c])
_REVISIONS = (
    select(feed_changes)
    .where(feed_changes.c.rev > bindparam("begin"), feed_changes.c.rev <= bindparam("end"))
    .order_by(feed_changes.c.rev, feed_changes.c.idx)
)
_AUDIT_PLACE = select(
    func.coalesce(feed_head.c.audit_rev, feed_head.c.compact_rev),
    func.coalesce(feed_head.c.audit_chain, feed_head.c.compact_chain),
).where(feed_head.c.id == 1)
_HEAD = select(
    feed_head.c.server_id, feed_head.c.epoch, feed_head.c.rev, feed_head.c.chain, feed_head.c.compact_rev
).where(feed_head.c.id == 1)


def create_head(conn: Connection) -> None:
    """Begins history, once in the life of a database."""
    if _PLACE.first(conn, {}) is None:
        conn.execute(
            insert(feed_head).values(
                id=1,
                server_id=secrets.token_hex(16),
                epoch=secrets.token_hex(16),
                rev=0,
                chain=_GENESIS,
                compact_rev=0,
                compact_chain=_GENESIS,
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A revision that a transaction has taken; ``chain`` is that of the revision before."""

    rev: int
    chain: bytes


class _Group:
    """What a transaction adds to history, before it is written; ``rows`` is empty between its functions' flushes."""

    __slots__ = ("chain", "rev", "rows")

    def __init__(self, rev: int, chain: bytes) -> None:
        self.rev = rev
        self.chain = chain
        self.rows: list[dict[str, Any]] = []


GroupMark = tuple[int, bytes, tuple[dict[str, Any], ...]]
"""How far a group was."""

_GROUP = "modelbox.feed"
_ORIGIN = "modelbox.origin"


def run_as(conn: Connection, origin: Origin, fn: Callable[[Connection], T]) -> T:
    """Runs ``fn``; the changes that it appends come from ``origin``."""
    conn.info[_ORIGIN] = origin
    return fn(conn)


def open_group(conn: Connection, rev: int = -1, chain: bytes = _GENESIS) -> None:
    """Keeps in memory what this transaction, which nobody else's can be in the way of, adds to history.

    Args:
        conn: The transaction, until `close_group`.
        rev: Of the head; it is read when it is wanted where it is not given.
        chain: Of the head.
    """
    conn.info[_GROUP] = _Group(rev, bytes(chain))


def close_group(conn: Connection) -> None:
    """Writes what was kept, if there is anything."""
    _flush(conn)
    conn.info.pop(_GROUP, None)


def _flush(conn: Connection) -> None:
    group: _Group | None = conn.info.get(_GROUP)
    if group is not None and group.rows:
        _ADD.run_many(conn, group.rows)
        _SET_HEAD.run(conn, {"new_rev": group.rev, "new_chain": group.chain})
        group.rows = []


def mark_group(conn: Connection) -> GroupMark | None:
    """Beside a savepoint: how far the transaction's history is; None if it is not kept in memory."""
    group: _Group | None = conn.info.get(_GROUP)
    return None if group is None else (group.rev, group.chain, tuple(group.rows))


def return_to_mark(conn: Connection, mark: GroupMark | None) -> None:
    """After a rollback to the savepoint: forgets what was added since `mark_group`."""
    group: _Group | None = conn.info.get(_GROUP)
    if group is not None and mark is not None:
        group.rev, group.chain, group.rows = mark[0], mark[1], list(mark[2])


def next_rev(conn: Connection) -> Place:
    """Takes the head row's lock and the next revision. Call it once, behind every other lock; then `append`."""
    group: _Group | None = conn.info.get(_GROUP)
    if group is not None:
        if group.rev < 0:
            group.rev, group.chain = _place(_PLACE.first(conn, {}))
        group.rev += 1
        return Place(rev=group.rev, chain=group.chain)
    rev, chain = _place(_PLACE.first(conn, {}) if _BUMP.run(conn, {}) == 1 else None)
    return Place(rev=rev, chain=chain)


def _place(row: Sequence[Any] | None) -> tuple[int, bytes]:
    if row is None:
        raise StorageError("the database has no feed head: it was not set up")
    return row[0], bytes(row[1])


def append(conn: Connection, place: Place, changes: Sequence[NewChange], *, actor: str, at: datetime) -> None:
    """Writes the changes of a revision, at least one, and binds them into the chain."""
    at_us = to_us(at)
    origin: Origin = conn.info.get(_ORIGIN, NO_ORIGIN)
    rows: list[dict[str, Any]] = [
        {
            "rev": place.rev,
            "idx": idx,
            "namespace": change.namespace,
            "object": change.object,
            "kind": change.kind.value,
            "action": change.action.value,
            "actor": actor if change.actor is None else change.actor,
            "at_us": at_us,
            "state": json.dumps(to_json(change.state), ensure_ascii=False, separators=(",", ":"), allow_nan=False),
            **_columns_of(change.origin or origin),
        }
        for idx, change in enumerate(changes)
    ]
    chain = next_chain(place.chain, place.rev, [change_body(row) for row in rows])
    for row in rows:
        row["chain"] = chain
    group: _Group | None = conn.info.get(_GROUP)
    if group is not None:
        group.rows += rows
        group.chain = chain
        return
    _ADD.run_many(conn, rows)
    _SET_CHAIN.run(conn, {"new_chain": chain})


def read_head(conn: Connection) -> FeedHead:
    """The head: everything up to it is in what this transaction sees. The first statement of one that only reads.

    MariaDB makes a snapshot while transactions go on to end, and may catch one without the one before it; see
    docs/adr/0012-shared-databases.md. So the head is of a snapshot that was finished before that of the rows began.
    """
    if getattr(conn.dialect, "is_mariadb", False) and _GROUP not in conn.info:
        assert not conn.in_transaction(), "the head is to be read first"
        row = conn.execute(_HEAD).one()
        conn.rollback()
    else:
        _flush(conn)
        row = conn.execute(_HEAD).one()
    return FeedHead(server_id=row[0], epoch=row[1], rev=row[2], chain=bytes(row[3]), compact_rev=row[4])


def read_head_within(conn: Connection) -> FeedHead:
    """The head as the snapshot of a transaction has it, which began before.

    Raises:
        ServerBusy: The snapshot is one of those that lack a transaction (see `read_head`): begin again.
    """
    row = conn.execute(_HEAD).one()
    head = FeedHead(server_id=row[0], epoch=row[1], rev=row[2], chain=bytes(row[3]), compact_rev=row[4])
    if getattr(conn.dialect, "is_mariadb", False):
        # What a snapshot lacks is about as old as itself: never what was compacted, which may be a hundred times as
        # much. But it may be so that rows are to be gone.
        found = select(func.count(func.distinct(feed_changes.c.rev))).where(feed_changes.c.rev > head.compact_rev)
        oldest = conn.execute(select(func.min(feed_changes.c.rev))).scalar()
        if conn.execute(found).scalar_one() != head.rev - head.compact_rev or (
            oldest is not None and oldest <= audit_place(conn)[0]
        ):
            raise ServerBusy("the database changed while a snapshot of it was made: try again", retry_after_s=0.1)
    return head


def token_of(head: FeedHead, scope: Scope = ALL) -> str:
    """The resume token of the head, for a caller who sees so much."""
    return str(
        ResumeToken(
            server_id=head.server_id, epoch=head.epoch, rev=head.rev, chain=head.chain[:8].hex(), scope=scope.mark
        )
    )


def _columns_of(origin: Origin) -> dict[str, str]:
    return {"token_id": origin.token_id, "address": origin.address, "request_id": origin.request_id}


def audit_place(conn: Connection) -> tuple[int, bytes]:
    """The last revision whose rows are gone, and the chain there."""
    rev, chain = conn.execute(_AUDIT_PLACE).one()
    return rev, bytes(chain)


def verify_chain(conn: Connection) -> int:
    """Recomputes the chain over everything that is kept, and returns the number of revisions.

    Raises:
        StorageError: A revision is missing or was altered; ``rev`` says the first one.
    """
    place: ChainPlace | None = None
    while place is None or not place.done:
        place = verify_part(conn, place, _VERIFIED_AT_ONCE)
        for rev, fault in place.faults:
            raise StorageError(fault, rev=rev)
    return place.verified


def verify_part(conn: Connection, after: ChainPlace | None, limit: int) -> ChainPlace:
    """Verifies up to ``limit`` revisions after a place, in whichever transaction, and says what was tampered with.

    Revisions that were forgotten since the part before are left out.
    """
    head = read_head(conn)
    # In the snapshot of the rows: may be a little behind `head`.
    compact_rev, compact_chain = conn.execute(select(feed_head.c.compact_rev, feed_head.c.compact_chain)).one()
    rev, audit_chain = audit_place(conn)
    chains: tuple[bytes, ...] = (audit_chain,)
    verified = 0
    faults: list[tuple[int, str]] = []
    if after is None:
        oldest = conn.execute(select(func.min(feed_changes.c.rev))).scalar()
        if oldest is not None and oldest <= rev:
            faults.append((oldest, f"revision {oldest} of the change feed was inserted: all up to {rev} was removed"))
    else:
        verified = after.verified
        if after.rev >= rev:
            rev, chains = after.rev, after.chains
    end = min(head.rev, rev + limit)
    rows: dict[int, list[dict[str, Any]]] = {}
    for row in conn.execute(_REVISIONS, {"begin": rev, "end": end}).mappings():
        rows.setdefault(row["rev"], []).append(dict(row))
    for stop in (compact_rev, end):
        if not rev < stop <= end:
            continue
        followed = follow(rows, rev=rev, chains=chains, end=stop)
        rev, chains, verified = stop, followed.chains, verified + followed.verified
        faults += followed.faults
        if stop == compact_rev and chains and bytes(compact_chain) not in chains:
            faults.append((rev, f"the change feed's place of compaction does not fit revision {rev}"))
    if rev >= head.rev:
        if chains and head.chain not in chains and rev == head.rev:
            faults.append((rev, "the change feed's head does not fit its last revision"))
        newest, newest_head = conn.execute(
            select(func.max(feed_changes.c.rev), select(feed_head.c.rev).scalar_subquery())
        ).one()
        if newest is not None and newest > newest_head:
            faults.append((newest, f"revision {newest} of the change feed was inserted behind its head, {newest_head}"))
    return ChainPlace(rev=rev, chains=chains, verified=verified, done=rev >= head.rev, faults=tuple(faults))
