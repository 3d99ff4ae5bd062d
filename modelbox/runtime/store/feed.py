"""The change feed's store: reading its history, listing what there is now, and forgetting what is old.

What is old goes in two steps: readers do not get it any more (`compact`), and much later its rows, which are the audit
log, are removed (`forget`).

`modelbox.runtime.store.history` writes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from sqlalchemy import Connection, bindparam, delete, func, select, update

from modelbox.access import ALL, Scope
from modelbox.errors import StorageError
from modelbox.feed import Change, Filter
from modelbox.runtime.ports import FeedBatch, FeedHead, FeedListing, Key, StoredRevision
from modelbox.runtime.store.database import Database
from modelbox.runtime.store.history import audit_place, read_head
from modelbox.runtime.store.listing import list_states
from modelbox.runtime.store.rows import from_us, to_us
from modelbox.runtime.store.schema import downloads, feed_changes, feed_head

__all__ = ("SqlFeedStore",)

_CHAIN_AT = select(feed_changes.c.chain).where(feed_changes.c.rev == bindparam("rev"), feed_changes.c.idx == 0)
_COMPACT_AT = select(feed_head.c.compact_rev, feed_head.c.compact_chain).where(feed_head.c.id == 1)
_SIZES = (
    select(feed_changes.c.rev, func.sum(func.length(feed_changes.c.state)))
    .where(feed_changes.c.rev > bindparam("after"), feed_changes.c.rev <= bindparam("upto"))
    .group_by(feed_changes.c.rev)
    .order_by(feed_changes.c.rev)
)
_RANGE = (
    select(
        feed_changes.c.rev,
        feed_changes.c.idx,
        feed_changes.c.namespace,
        feed_changes.c.object,
        feed_changes.c.kind,
        feed_changes.c.action,
        feed_changes.c.actor,
        feed_changes.c.at_us,
        feed_changes.c.state,
        feed_changes.c.chain,
    )
    .where(feed_changes.c.rev > bindparam("after"), feed_changes.c.rev <= bindparam("upto"))
    .order_by(feed_changes.c.rev, feed_changes.c.idx)
)


def _read_after(conn: Connection, rev: int, limit: int, max_bytes: int) -> FeedBatch:
    head = read_head(conn)
    chain = _chain_at(conn, rev)
    if rev >= head.rev or rev < head.compact_rev:
        return FeedBatch(head=head, revisions=(), chain=chain)
    sizes: dict[int, int] = {}
    total = 0
    for found, size in conn.execute(_SIZES, {"after": rev, "upto": min(head.rev, rev + limit)}).all():
        total += int(size)
        if sizes and total > max_bytes:
            break
        sizes[found] = int(size)
    if list(sizes) != list(range(rev + 1, rev + 1 + len(sizes))):
        compact_rev, _ = conn.execute(_COMPACT_AT).one()
        if rev < compact_rev:
            # Since the head was read.
            return FeedBatch(head=replace(head, compact_rev=compact_rev), revisions=())
        raise StorageError("the change feed has a gap: run modelbox server fsck", after=rev)
    if not sizes:
        return FeedBatch(head=head, revisions=(), chain=chain)
    changes: dict[int, list[Change]] = {found: [] for found in sizes}
    chains: dict[int, bytes] = {}
    for row in conn.execute(_RANGE, {"after": rev, "upto": max(sizes)}):
        chains[row.rev] = bytes(row.chain)
        changes[row.rev].append(
            Change(
                rev=row.rev,
                idx=row.idx,
                namespace=row.namespace,
                object=row.object,
                kind=row.kind,
                action=row.action,
                actor=row.actor,
                at=from_us(row.at_us),
                state=json.loads(row.state),
            )
        )
    return FeedBatch(
        head=head,
        revisions=tuple(
            StoredRevision(rev=found, chain=chains[found], changes=tuple(changes[found]), size_bytes=size)
            for found, size in sizes.items()
        ),
        chain=chain,
    )


def _check(conn: Connection, rev: int) -> tuple[FeedHead, bytes | None]:
    return read_head(conn), _chain_at(conn, rev)


def _chain_at(conn: Connection, rev: int) -> bytes | None:
    found = conn.execute(_CHAIN_AT, {"rev": rev}).scalar()
    if found is None:
        compact_rev, compact_chain = conn.execute(_COMPACT_AT).one()
        found = compact_chain if rev == compact_rev else None
    return None if found is None else bytes(found)


def _compact(conn: Connection, keep_revs: int, before_us: int, batch: int) -> int:
    head = read_head(conn)
    upto = _older(conn, head.compact_rev, min(head.compact_rev + batch, head.rev - keep_revs), before_us)
    if upto <= head.compact_rev:
        return 0
    audit_rev, audit_chain = audit_place(conn)
    chain = conn.execute(_CHAIN_AT, {"rev": upto}).scalar_one()
    places = {"compact_rev": upto, "compact_chain": chain, "audit_rev": audit_rev, "audit_chain": audit_chain}
    conn.execute(update(feed_head).where(feed_head.c.id == 1).values(places))
    conn.execute(delete(downloads).where(downloads.c.mod_rev <= upto))
    return upto - head.compact_rev


def _forget(conn: Connection, before_us: int, batch: int) -> int:
    head = read_head(conn)
    rev, _ = audit_place(conn)
    upto = _older(conn, rev, min(rev + batch, head.compact_rev), before_us)
    if upto <= rev:
        return 0
    chain = conn.execute(_CHAIN_AT, {"rev": upto}).scalar_one()
    conn.execute(update(feed_head).where(feed_head.c.id == 1).values(audit_rev=upto, audit_chain=chain))
    conn.execute(delete(feed_changes).where(feed_changes.c.rev <= upto))
    return upto - rev


def _older(conn: Connection, after: int, upto: int, before_us: int) -> int:
    """The last revision up to ``upto`` such that all behind ``after`` are older than a time."""
    newest = select(func.max(feed_changes.c.at_us)).where(feed_changes.c.rev > after, feed_changes.c.rev <= upto)
    newest_us = conn.execute(newest).scalar()
    if newest_us is None or newest_us < before_us:
        return upto
    # The batch reaches into what is to be kept: end before the first such revision.
    first = select(func.min(feed_changes.c.rev)).where(
        feed_changes.c.rev > after, feed_changes.c.rev <= upto, feed_changes.c.at_us >= before_us
    )
    return int(conn.execute(first).scalar_one()) - 1


class SqlFeedStore:
    """`modelbox.runtime.ports.FeedStore` over a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def head(self) -> FeedHead:
        """See the port."""
        return await self._database.read(read_head)

    async def check(self, rev: int) -> tuple[FeedHead, bytes | None]:
        """See the port."""
        return await self._database.read(lambda conn: _check(conn, rev))

    async def read_after(self, rev: int, *, limit: int, max_bytes: int) -> FeedBatch:
        """See the port."""
        return await self._database.read(lambda conn: _read_after(conn, rev, limit, max_bytes))

    async def list_states(self, wanted: Filter, *, limit: int, after: Key | None, scope: Scope = ALL) -> FeedListing:
        """See the port."""
        return await self._database.scan(lambda conn: list_states(conn, wanted, limit, after, scope))

    async def compact(self, *, keep_revs: int, before: datetime, batch: int) -> int:
        """See the port."""
        return await self._database.write(lambda conn: _compact(conn, keep_revs, to_us(before), batch))

    async def forget(self, *, before: datetime, batch: int) -> int:
        """See the port."""
        return await self._database.write(lambda conn: _forget(conn, to_us(before), batch))

    def on_commit(self, callback: Callable[[], None]) -> None:
        """See the port."""
        self._database.on_commit(callback)
