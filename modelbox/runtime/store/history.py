"""The change feed's history in SQL: how a revision is taken, written and bound to all before it.

Invariants: revisions are consecutive from 1; every one has at least one change; ``chain`` binds each to all before it.
`next_rev` locks the head row, so it comes after every other lock of a transaction and before the first write: business
rows first, the head last. A writer of a shared database locks it before everything else and keeps what its group of
functions adds until the end, which saves four round trips for each: `open_group`, `close_group`.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, func, insert, select, update

from modelbox.errors import ServerBusy, StorageError
from modelbox.feed import Action, Kind, ResumeToken, next_chain
from modelbox.objects import to_json
from modelbox.runtime.ports import FeedHead
from modelbox.runtime.space_ports import ChainPlace
from modelbox.runtime.store.prepared import Prepared
from modelbox.runtime.store.rows import to_us
from modelbox.runtime.store.schema import feed_changes, feed_head

__all__ = (
    "NewChange",
    "Place",
    "append",
    "change_body",
    "close_group",
    "create_head",
    "mark_group",
    "next_rev",
    "open_group",
    "read_head",
    "read_head_within",
    "return_to_mark",
    "token_of",
    "verify_chain",
    "verify_part",
)

_GENESIS = bytes(32)
_VERIFIED_AT_ONCE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class NewChange:
    """A change before it has its place in history."""

    namespace: str
    object: str
    kind: Kind
    action: Action
    state: Any


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
    rows: list[dict[str, Any]] = [
        {
            "rev": place.rev,
            "idx": idx,
            "namespace": change.namespace,
            "object": change.object,
            "kind": change.kind.value,
            "action": change.action.value,
            "actor": actor,
            "at_us": at_us,
            "state": json.dumps(to_json(change.state), ensure_ascii=False, separators=(",", ":"), allow_nan=False),
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


def change_body(row: Mapping[str, Any]) -> bytes:
    """What the chain binds of a change: every column, in a form that the row gives back."""
    parts = [row[name] for name in ("idx", "namespace", "object", "kind", "action", "actor", "at_us", "state")]
    return json.dumps(parts, ensure_ascii=False, separators=(",", ":")).encode()


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
        found = conn.execute(select(func.count(func.distinct(feed_changes.c.rev)))).scalar_one()
        if found != head.rev - head.compact_rev:
            raise ServerBusy("the database changed while a snapshot of it was made: try again", retry_after_s=0.1)
    return head


def token_of(head: FeedHead) -> str:
    """The resume token of the head."""
    return str(ResumeToken(server_id=head.server_id, epoch=head.epoch, rev=head.rev, chain=head.chain[:8].hex()))


def verify_chain(conn: Connection) -> int:
    """Recomputes the chain over everything that was not compacted, and returns the number of revisions.

    Raises:
        StorageError: A revision is missing or was altered; ``rev`` says the first one.
    """
    place = verify_part(conn, None, _VERIFIED_AT_ONCE)
    while not place.done:
        place = verify_part(conn, place, _VERIFIED_AT_ONCE)
    return place.verified


def verify_part(conn: Connection, after: ChainPlace | None, limit: int) -> ChainPlace:
    """`verify_chain` in parts: up to ``limit`` revisions after a place, in whichever transaction.

    Revisions that were compacted since the part before are left out.
    """
    head = read_head(conn)
    compact_rev, compact_chain = conn.execute(select(feed_head.c.compact_rev, feed_head.c.compact_chain)).one()
    rev, chain, verified = (
        (compact_rev, bytes(compact_chain), 0) if after is None else (after.rev, after.chain, after.verified)
    )
    if compact_rev > rev:
        rev, chain = compact_rev, bytes(compact_chain)
    end = min(head.rev, rev + limit)
    rows: dict[int, list[dict[str, Any]]] = {}
    for row in conn.execute(_REVISIONS, {"begin": rev, "end": end}).mappings():
        rows.setdefault(row["rev"], []).append(dict(row))
    while rev < end:
        rev += 1
        changes = rows.get(rev, [])
        chain = next_chain(chain, rev, [change_body(row) for row in changes])
        if not changes or any(bytes(row["chain"]) != chain for row in changes):
            raise StorageError(f"revision {rev} of the change feed is missing or was altered", rev=rev)
        verified += 1
    if rev == head.rev and chain != head.chain:
        raise StorageError("the change feed's head does not fit its last revision", rev=head.rev)
    return ChainPlace(rev=rev, chain=chain, verified=verified, done=rev >= head.rev)
