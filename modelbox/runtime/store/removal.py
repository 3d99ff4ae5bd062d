"""Which bytes nobody needs any more, and how they are removed while others upload and publish, on any replica.

The blob store and the database share no transaction, so bytes are removed in three steps:

1. `give_up` (one transaction): holdings that are out of use for the grace time go. Where that leaves bytes without any
   holding, use, or unfinished upload, their row in ``blobs`` goes too, and a row in ``blob_removals`` comes.
2. The bytes are deleted.
3. `finish_removal` (one transaction): the row in ``blob_removals`` goes.

Why no row ever loses its bytes. Transactions that write run one after the other, on every database, so each of these
comes wholly before or after step 1:

* A publication or an artifact needs a holding (`modelbox.runtime.store.artifacts.held_blobs`). Before step 1 it makes a
  use, and step 1 leaves the bytes alone; after it there is no holding, and the caller is told to upload again.
* A question whether the bytes are held (`modelbox.runtime.store.holdings.touch`) begins the grace time anew, or the
  answer is no.
* An upload puts bytes into place only between `check_not_removed` in the transaction that made its row and the one that
  finishes it. If its row came before step 1, step 1 leaves the bytes alone. If it came after step 3, the bytes were
  deleted before they were put into place. In between there is none: `check_not_removed` refuses it (`ServerBusy`; the
  client tries again, and the three steps take milliseconds).

What is left is a remover that stands still between two steps. One that died leaves its rows behind, and others take
them over after `TAKE_OVER_S` (`take_over`). One that was stopped and wakes up deletes nothing any more: it looks at its
clock after it asked the store for the generation of the bytes, and deletes no other generation.

Bytes that no row of ``blobs`` names (a server died between putting them into place and the row; an upload was swept)
take the same three steps from `condemn_orphans` on.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, delete, exists, func, insert, select, update

from modelbox.errors import ServerBusy
from modelbox.refs import Digest
from modelbox.runtime.ports import Key, Listed
from modelbox.runtime.space_ports import GivenUp, IdleBlob
from modelbox.runtime.store.holdings import charge, database_time_us
from modelbox.runtime.store.schema import (
    artifact_blobs,
    artifacts,
    blob_removals,
    blobs,
    holdings,
    models,
    namespaces,
    uploads,
    version_blobs,
    versions,
)

__all__ = (
    "check_not_removed",
    "condemn_orphans",
    "find_idle",
    "find_orphans",
    "find_unheld",
    "finish_removal",
    "give_up",
    "in_use",
    "take_over",
)

_RETRY_AFTER_S = 1.0


def check_not_removed(conn: Connection, digest: Digest) -> None:
    """Raises `ServerBusy` while bytes of this digest are being removed."""
    if conn.execute(select(blob_removals.c.digest).where(blob_removals.c.digest == digest)).first() is not None:
        raise ServerBusy(
            f"{digest} is being removed from the blob store at this moment: try again", retry_after_s=_RETRY_AFTER_S
        )


def in_use() -> ColumnElement[bool]:
    """That the bytes of a holding are in a version or an artifact of its namespace."""
    of_versions = (
        select(version_blobs.c.blob_id)
        .join(versions, version_blobs.c.version_id == versions.c.id)
        .join(models, versions.c.model_id == models.c.id)
        .join(namespaces, models.c.namespace_id == namespaces.c.id)
        .where(version_blobs.c.blob_id == holdings.c.blob_id, namespaces.c.name == holdings.c.namespace)
    )
    of_artifacts = (
        select(artifact_blobs.c.blob_id)
        .join(artifacts, artifact_blobs.c.artifact_id == artifacts.c.id)
        .join(namespaces, artifacts.c.namespace_id == namespaces.c.id)
        .where(artifact_blobs.c.blob_id == holdings.c.blob_id, namespaces.c.name == holdings.c.namespace)
    )
    return of_versions.correlate(holdings).exists() | of_artifacts.correlate(holdings).exists()


def _idle_since(cutoff_us: int) -> ColumnElement[bool]:
    return func.coalesce(holdings.c.used_at_us, holdings.c.created_at_us) < cutoff_us


def _free() -> tuple[ColumnElement[bool], ...]:
    """That nothing at all needs the bytes of a row of ``blobs``."""
    return (
        ~exists(select(holdings.c.blob_id).where(holdings.c.blob_id == blobs.c.id)),
        ~exists(select(version_blobs.c.blob_id).where(version_blobs.c.blob_id == blobs.c.id)),
        ~exists(select(artifact_blobs.c.blob_id).where(artifact_blobs.c.blob_id == blobs.c.id)),
        ~exists(select(uploads.c.id).where(uploads.c.digest == blobs.c.digest, uploads.c.done.is_(False))),
    )


def find_idle(conn: Connection, grace_us: int, limit: int, after: Key | None) -> Listed[IdleBlob]:
    """Blobs that a namespace holds and has not used for the grace time. Key: (row number,)."""
    cutoff_us = database_time_us(conn) - grace_us
    idle = select(holdings.c.blob_id).where(_idle_since(cutoff_us), ~in_use()).distinct()
    idle = idle.order_by(holdings.c.blob_id).limit(limit + 1)
    if after is not None:
        idle = idle.where(holdings.c.blob_id > after[0])
    ids = list(conn.execute(idle).scalars())
    page = ids[:limit]
    if not page:
        return Listed(items=(), next_key=None)
    pairs = select(holdings.c.blob_id, holdings.c.namespace).where(
        holdings.c.blob_id.in_(page), _idle_since(cutoff_us), ~in_use()
    )
    by_blob: dict[int, list[str]] = {}
    for blob_id, namespace in conn.execute(pairs.order_by(holdings.c.blob_id, holdings.c.namespace)):
        by_blob.setdefault(blob_id, []).append(namespace)
    count = select(func.count()).select_from(holdings).where(holdings.c.blob_id == blobs.c.id).scalar_subquery()
    rows = conn.execute(select(blobs.c.id, blobs.c.size_bytes, count.label("held")).where(blobs.c.id.in_(page)))
    items = tuple(
        IdleBlob(
            row_id=row.id,
            namespaces=tuple(by_blob.get(row.id, ())),
            size_bytes=row.size_bytes,
            last=row.held == len(by_blob.get(row.id, ())),
        )
        for row in rows
    )
    return Listed(items=items, next_key=(page[-1],) if len(ids) > limit else None)


def find_unheld(conn: Connection, limit: int, after: Key | None) -> Listed[IdleBlob]:
    """Blobs that nothing needs although they have a row: an upload was unfinished when they were given up."""
    query = select(blobs.c.id, blobs.c.size_bytes).where(*_free()).order_by(blobs.c.id).limit(limit + 1)
    if after is not None:
        query = query.where(blobs.c.id > after[0])
    rows = conn.execute(query).all()
    page = rows[:limit]
    items = tuple(IdleBlob(row_id=row.id, namespaces=(), size_bytes=row.size_bytes, last=True) for row in page)
    return Listed(items=items, next_key=(page[-1].id,) if len(rows) > limit else None)


def give_up(conn: Connection, row_ids: Sequence[int], grace_us: int, batch: str) -> GivenUp:
    """Step 1 for some blobs. Whatever was found before is looked at once more; what is needed again stays."""
    now_us = database_time_us(conn)
    idle = select(holdings.c.namespace, holdings.c.blob_id, blobs.c.size_bytes).join(
        blobs, holdings.c.blob_id == blobs.c.id
    )
    rows = conn.execute(idle.where(holdings.c.blob_id.in_(row_ids), _idle_since(now_us - grace_us), ~in_use())).all()
    for row in rows:
        conn.execute(delete(holdings).where(holdings.c.namespace == row.namespace, holdings.c.blob_id == row.blob_id))
        charge(conn, row.namespace, -row.size_bytes)
    free = conn.execute(select(blobs.c.id, blobs.c.digest, blobs.c.size_bytes).where(blobs.c.id.in_(row_ids), *_free()))
    doomed = free.all()
    if doomed:
        conn.execute(delete(blobs).where(blobs.c.id.in_([row.id for row in doomed])))
        _condemn(conn, [row.digest for row in doomed], batch, now_us)
    return GivenUp(holdings=len(rows), blobs=tuple((Digest(row.digest), row.size_bytes) for row in doomed))


def _condemn(conn: Connection, digests: Sequence[str], batch: str, now_us: int) -> None:
    conn.execute(insert(blob_removals), [{"digest": one, "batch": batch, "started_at_us": now_us} for one in digests])


def _unnamed(conn: Connection, digests: Sequence[Digest]) -> list[Digest]:
    """Those that no row of the database names, nor an upload that is under way."""
    named = (
        select(blobs.c.digest)
        .where(blobs.c.digest.in_(digests))
        .union_all(
            select(uploads.c.digest).where(uploads.c.digest.in_(digests), uploads.c.done.is_(False)),
            select(blob_removals.c.digest).where(blob_removals.c.digest.in_(digests)),
        )
    )
    known = set(conn.execute(named).scalars())
    return [one for one in digests if one not in known]


def find_orphans(conn: Connection, digests: Sequence[Digest]) -> tuple[list[Digest], int]:
    """Those of some blobs of the store that nothing names, and the time by the database's clock."""
    return _unnamed(conn, digests), database_time_us(conn)


def condemn_orphans(conn: Connection, digests: Sequence[Digest], batch: str) -> list[Digest]:
    """Step 1 for blobs that have no row; returns those that still have none."""
    doomed = _unnamed(conn, digests)
    if doomed:
        _condemn(conn, doomed, batch, database_time_us(conn))
    return doomed


def take_over(conn: Connection, older_than_us: int, limit: int, batch: str) -> list[Digest]:
    """Has a batch of removals go on that a remover began so long ago, and left."""
    now_us = database_time_us(conn)
    left = select(blob_removals.c.digest).where(blob_removals.c.started_at_us <= now_us - older_than_us).limit(limit)
    digests = [Digest(one) for one in conn.execute(left).scalars()]
    if digests:
        conn.execute(
            update(blob_removals).where(blob_removals.c.digest.in_(digests)).values(batch=batch, started_at_us=now_us)
        )
    return digests


def finish_removal(conn: Connection, digests: Sequence[Digest], batch: str) -> None:
    """Step 3; only the remover of this batch may do it."""
    if digests:
        conn.execute(delete(blob_removals).where(blob_removals.c.digest.in_(digests), blob_removals.c.batch == batch))
