"""The change feed's history in SQL.

Invariants: revisions are consecutive from 1; every one has at least one change; ``chain`` binds each to all before it.
`next_rev` locks the head row, so it comes after every other lock of a transaction and before the first write: business
rows first, the head last.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, Table, and_, bindparam, delete, func, insert, or_, select, update
from sqlalchemy.sql import ColumnElement

from modelbox.errors import StorageError
from modelbox.feed import Action, Change, Filter, Kind, ResumeToken, next_chain
from modelbox.objects import JsonValue, to_json
from modelbox.runtime.ports import FeedBatch, FeedHead, FeedListing, Key, StoredRevision
from modelbox.runtime.store.database import Database
from modelbox.runtime.store.prepared import Prepared
from modelbox.runtime.store.rows import (
    ALIASES,
    ARTIFACTS,
    MODELS,
    NAMESPACES,
    VERSIONS,
    alias_of,
    artifact_of,
    from_us,
    model_of,
    namespace_of,
    to_us,
    version_of,
)
from modelbox.runtime.store.schema import (
    aliases,
    artifacts,
    downloads,
    feed_changes,
    feed_head,
    models,
    namespaces,
    versions,
)

__all__ = (
    "NewChange",
    "Place",
    "SqlFeedStore",
    "append",
    "create_head",
    "next_rev",
    "read_head",
    "token_of",
    "verify_chain",
)

_GENESIS = bytes(32)


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
_ADD = Prepared(insert(feed_changes), [column.name for column in feed_changes.c])
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


def next_rev(conn: Connection) -> Place:
    """Takes the head row's lock and the next revision. Call it once, behind every other lock; then `append`."""
    place = _PLACE.first(conn, {}) if _BUMP.run(conn, {}) == 1 else None
    if place is None:
        raise StorageError("the database has no feed head: it was not set up")
    rev, chain = place
    return Place(rev=rev, chain=bytes(chain))


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
    chain = next_chain(place.chain, place.rev, [_body(row) for row in rows])
    for row in rows:
        row["chain"] = chain
    _ADD.run_many(conn, rows)
    _SET_CHAIN.run(conn, {"new_chain": chain})


def _body(row: dict[str, JsonValue]) -> bytes:
    """What the chain binds of a change: every column, in a form that the row gives back."""
    parts = [row[name] for name in ("idx", "namespace", "object", "kind", "action", "actor", "at_us", "state")]
    return json.dumps(parts, ensure_ascii=False, separators=(",", ":")).encode()


def read_head(conn: Connection) -> FeedHead:
    """The head as this transaction sees it."""
    row = conn.execute(_HEAD).one()
    return FeedHead(server_id=row[0], epoch=row[1], rev=row[2], chain=bytes(row[3]), compact_rev=row[4])


def token_of(head: FeedHead) -> str:
    """The resume token of the head."""
    return str(ResumeToken(server_id=head.server_id, epoch=head.epoch, rev=head.rev, chain=head.chain[:8].hex()))


def verify_chain(conn: Connection) -> int:
    """Recomputes the chain over everything that was not compacted, and returns the number of revisions.

    Raises:
        StorageError: A revision is missing or was altered; ``rev`` says the first one.
    """
    expected_rev, chain = conn.execute(select(feed_head.c.compact_rev, feed_head.c.compact_chain)).one()
    start = expected_rev
    head = read_head(conn)
    while expected_rev < head.rev:
        expected_rev += 1
        rows = [dict(row) for row in conn.execute(_REVISION, {"rev": expected_rev}).mappings()]
        chain = next_chain(bytes(chain), expected_rev, [_body(row) for row in rows])
        if not rows or any(bytes(row["chain"]) != chain for row in rows):
            raise StorageError(
                f"revision {expected_rev} of the change feed is missing or was altered", rev=expected_rev
            )
    if bytes(chain) != head.chain:
        raise StorageError("the change feed's head does not fit its last revision", rev=head.rev)
    return int(head.rev - start)


_REVISION = select(feed_changes).where(feed_changes.c.rev == bindparam("rev")).order_by(feed_changes.c.idx)
_CHAIN_AT = select(feed_changes.c.chain).where(feed_changes.c.rev == bindparam("rev"), feed_changes.c.idx == 0)
_COMPACT_AT = select(feed_head.c.compact_rev, feed_head.c.compact_chain).where(feed_head.c.id == 1)
_SIZES = (
    select(feed_changes.c.rev, func.sum(func.length(feed_changes.c.state)))
    .where(feed_changes.c.rev > bindparam("after"), feed_changes.c.rev <= bindparam("upto"))
    .group_by(feed_changes.c.rev)
    .order_by(feed_changes.c.rev)
)
_RANGE = (
    select(feed_changes)
    .where(feed_changes.c.rev > bindparam("after"), feed_changes.c.rev <= bindparam("upto"))
    .order_by(feed_changes.c.rev, feed_changes.c.idx)
)


def _read_after(conn: Connection, rev: int, limit: int, max_bytes: int) -> FeedBatch:
    head = read_head(conn)
    if rev >= head.rev or rev < head.compact_rev:
        return FeedBatch(head=head, revisions=())
    sizes: dict[int, int] = {}
    total = 0
    for found, size in conn.execute(_SIZES, {"after": rev, "upto": rev + limit}).all():
        total += int(size)
        if sizes and total > max_bytes:
            break
        sizes[found] = int(size)
    if not sizes:
        return FeedBatch(head=head, revisions=())
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
    )


def _check(conn: Connection, rev: int) -> tuple[FeedHead, bytes | None]:
    head = read_head(conn)
    compact_rev, compact_chain = conn.execute(_COMPACT_AT).one()
    if rev == compact_rev:
        return head, bytes(compact_chain)
    found = conn.execute(_CHAIN_AT, {"rev": rev}).scalar()
    return head, None if found is None else bytes(found)


def _compact(conn: Connection, keep_revs: int, before_us: int, batch: int) -> int:
    head = read_head(conn)
    upto = min(head.compact_rev + batch, head.rev - keep_revs)
    if upto <= head.compact_rev:
        return 0
    newest = select(func.max(feed_changes.c.at_us)).where(
        feed_changes.c.rev > head.compact_rev, feed_changes.c.rev <= upto
    )
    newest_us = conn.execute(newest).scalar()
    if newest_us is not None and newest_us >= before_us:
        # The batch reaches into what is to be kept: end before the first such revision.
        first = select(func.min(feed_changes.c.rev)).where(
            feed_changes.c.rev > head.compact_rev, feed_changes.c.rev <= upto, feed_changes.c.at_us >= before_us
        )
        upto = conn.execute(first).scalar_one() - 1
        if upto <= head.compact_rev:
            return 0
    chain = conn.execute(_CHAIN_AT, {"rev": upto}).scalar_one()
    conn.execute(update(feed_head).where(feed_head.c.id == 1).values(compact_rev=upto, compact_chain=chain))
    conn.execute(delete(feed_changes).where(feed_changes.c.rev <= upto))
    conn.execute(delete(downloads).where(downloads.c.mod_rev <= upto))
    return upto - head.compact_rev


# -- list ----------------------------------------------------------------------------------------------------------


def _paths(wanted: Filter) -> tuple[list[str], list[tuple[str, str]]]:
    """The texts without a slash (namespaces, artifact ids) and the models that the filter's objects name."""
    plain = [path for path in wanted.objects if "/" not in path]
    pairs = []
    for path in wanted.objects:
        namespace, slash, rest = path.partition("/")
        if slash:
            pairs.append((namespace, rest.partition("@")[0]))
    return plain, pairs


def _of_models(pairs: Sequence[tuple[str, str]]) -> ColumnElement[bool]:
    return or_(
        *(and_(namespaces.c.name == namespace, models.c.name == model) for namespace, model in dict.fromkeys(pairs))
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listing:
    """How the current states of one kind are read."""

    kind: Kind
    base: Select[Any]
    table: Table
    make: Callable[[Any], Change]

    def query(self, wanted: Filter, plain: Sequence[str], pairs: Sequence[tuple[str, str]]) -> Select[Any] | None:
        """Rows that the filter may let through, by id; None if there can be none."""
        if wanted.kinds and self.kind.value not in wanted.kinds:
            return None
        query = self.base.order_by(self.table.c.id)
        if wanted.namespace:
            query = query.where(namespaces.c.name == wanted.namespace)
        if not wanted.objects:
            return query
        if self.kind in (Kind.NAMESPACE, Kind.ARTIFACT):
            column = namespaces.c.name if self.kind is Kind.NAMESPACE else artifacts.c.uid
            return query.where(column.in_(plain)) if plain else None
        return query.where(_of_models(pairs)) if pairs else None


def _list_states(conn: Connection, wanted: Filter, limit: int, after: Key | None) -> FeedListing:
    head = read_head(conn)
    place, last = (int(after[0]), int(after[1])) if after is not None else (0, 0)
    plain, pairs = _paths(wanted)
    items: list[Change] = []
    while place < len(_LISTINGS):
        listing = _LISTINGS[place]
        query = listing.query(wanted, plain, pairs)
        rows = [] if query is None else conn.execute(query.where(listing.table.c.id > last).limit(limit)).all()
        for row in rows:
            change = listing.make(row)
            if wanted.matches(change):
                if len(items) == limit:
                    return FeedListing(head=head, items=tuple(items), next_key=(place, last))
                items.append(change)
            last = row.id
        if len(rows) < limit:
            place, last = place + 1, 0
    return FeedListing(head=head, items=tuple(items), next_key=None)


def _state(kind: Kind, namespace: str, path: str, state: Any, rev: int, at_us: int) -> Change:
    return Change(
        rev=rev,
        idx=0,
        namespace=namespace,
        object=path,
        kind=kind.value,
        action=Action.UPDATED.value,
        actor="",
        at=from_us(at_us),
        state=to_json(state),
    )


def _namespace_state(row: Any) -> Change:
    item = namespace_of(row)
    return _state(Kind.NAMESPACE, item.name, item.name, item, row.mod_rev, row.created_at_us)


def _model_state(row: Any) -> Change:
    item = model_of(row)
    return _state(Kind.MODEL, item.namespace, item.path, item, row.mod_rev, row.created_at_us)


def _version_state(row: Any) -> Change:
    item = version_of(row)
    return _state(Kind.VERSION, item.namespace, str(item.ref), item, row.mod_rev, row.created_at_us)


def _alias_state(row: Any) -> Change:
    item = alias_of(row)
    path = f"{item.namespace}/{item.model}@{item.name}"
    return _state(Kind.ALIAS, item.namespace, path, item, row.mod_rev, row.moved_at_us)


def _artifact_state(row: Any) -> Change:
    item = artifact_of(row)
    return _state(Kind.ARTIFACT, item.namespace, item.id, item, row.mod_rev, row.created_at_us)


_LISTINGS = (
    _Listing(kind=Kind.NAMESPACE, base=NAMESPACES, table=namespaces, make=_namespace_state),
    _Listing(kind=Kind.MODEL, base=MODELS, table=models, make=_model_state),
    _Listing(kind=Kind.VERSION, base=VERSIONS, table=versions, make=_version_state),
    _Listing(kind=Kind.ALIAS, base=ALIASES, table=aliases, make=_alias_state),
    _Listing(kind=Kind.ARTIFACT, base=ARTIFACTS, table=artifacts, make=_artifact_state),
)


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

    async def list_states(self, wanted: Filter, *, limit: int, after: Key | None) -> FeedListing:
        """See the port."""
        return await self._database.scan(lambda conn: _list_states(conn, wanted, limit, after))

    async def compact(self, *, keep_revs: int, before: datetime, batch: int) -> int:
        """See the port."""
        return await self._database.write(lambda conn: _compact(conn, keep_revs, to_us(before), batch))

    def on_commit(self, callback: Callable[[], None]) -> None:
        """See the port."""
        self._database.on_commit(callback)
