"""Space in SQL: who uses how much, quotas, and whether what the rows say of the bytes is consistent.

Nothing here is in the change feed.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, delete, func, insert, select, update

from modelbox.access import ALL, Scope
from modelbox.refs import Digest
from modelbox.runtime.ports import Key, Listed
from modelbox.runtime.space_ports import ChainPlace, GivenUp, IdleBlob, StoredBlob, WrongSeries
from modelbox.runtime.store import removal
from modelbox.runtime.store.database import MainDatabase
from modelbox.runtime.store.history import verify_part
from modelbox.runtime.store.holdings import charge, database_time_us, used_bytes
from modelbox.runtime.store.metric_check import check_series
from modelbox.runtime.store.objects import find_objects
from modelbox.runtime.store.rows import ARTIFACTS, VERSIONS, artifact_of, from_us, version_of
from modelbox.runtime.store.schema import (
    artifact_blobs,
    artifacts,
    blob_removals,
    blobs,
    holdings,
    models,
    namespaces,
    quotas,
    uploads,
    version_blobs,
    versions,
)
from modelbox.runtime.store.visible import find_visible, is_named_so
from modelbox.space import Finding, FindingKind, Quota, SpaceTotals, Usage

__all__ = ("SqlSpaceStore",)

_REVS = 500
_US = 1_000_000


# -- quotas ----------------------------------------------------------------------------------------------------------


def _quota_of(row: Any) -> Quota:
    return Quota(
        namespace=row.namespace,
        limit_bytes=row.limit_bytes,
        used_bytes=row.used_bytes,
        updated_at=from_us(row.updated_at_us),
        updated_by=row.updated_by,
    )


def _list_quotas(conn: Connection, namespace: str, scope: Scope = ALL) -> tuple[Quota, ...]:
    query = select(quotas).order_by(quotas.c.namespace)
    if not scope.everything:
        query = query.where(is_named_so(scope, quotas.c.namespace))
    if namespace:
        query = query.where(quotas.c.namespace == namespace)
    return tuple(_quota_of(row) for row in conn.execute(query))


def _set_quota(conn: Connection, namespace: str, limit_bytes: int | None, actor: str) -> Quota | None:
    conn.execute(delete(quotas).where(quotas.c.namespace == namespace))
    if limit_bytes is None:
        return None
    conn.execute(
        insert(quotas).values(
            namespace=namespace,
            limit_bytes=limit_bytes,
            used_bytes=used_bytes(conn, namespace),
            updated_at_us=database_time_us(conn),
            updated_by=actor,
        )
    )
    return _list_quotas(conn, namespace)[0]


def _check_quotas(conn: Connection, repair: bool) -> tuple[list[Finding], int]:
    found = []
    every = _list_quotas(conn, "")
    for quota in every:
        right = used_bytes(conn, quota.namespace)
        if right == quota.used_bytes:
            continue
        if repair:
            conn.execute(update(quotas).where(quotas.c.namespace == quota.namespace).values(used_bytes=right))
        found.append(
            Finding(
                kind=FindingKind.QUOTA,
                subject=quota.namespace,
                detail=f"{quota.used_bytes} bytes are counted, {right} are held",
                repaired=repair,
            )
        )
    return found, len(every)


# -- usage -----------------------------------------------------------------------------------------------------------


def _sum(conn: Connection, blob_ids: Select[Any]) -> int:
    """The bytes of some blobs, each once."""
    query = select(func.coalesce(func.sum(blobs.c.size_bytes), 0)).where(blobs.c.id.in_(blob_ids))
    return int(conn.execute(query).scalar_one())


def _of_versions(where: ColumnElement[bool]) -> Select[Any]:
    return (
        select(version_blobs.c.blob_id)
        .join(versions, version_blobs.c.version_id == versions.c.id)
        .join(models, versions.c.model_id == models.c.id)
        .where(where)
    )


def _of_artifacts(where: ColumnElement[bool]) -> Select[Any]:
    return select(artifact_blobs.c.blob_id).join(artifacts, artifact_blobs.c.artifact_id == artifacts.c.id).where(where)


def _count_versions(conn: Connection, where: ColumnElement[bool]) -> int:
    query = select(func.count()).select_from(versions).join(models, versions.c.model_id == models.c.id).where(where)
    return int(conn.execute(query).scalar_one())


def _list_namespaces(conn: Connection, limit: int, after: Key | None, scope: Scope) -> Listed[Usage]:
    # An upload does not make a namespace, and yet takes space.
    names = select(namespaces.c.name).union(select(holdings.c.namespace), select(quotas.c.namespace)).subquery("names")
    query = select(names.c.name).order_by(names.c.name).limit(limit + 1)
    if not scope.everything:
        query = query.where(is_named_so(scope, names.c.name))
    if after is not None:
        query = query.where(names.c.name > after[0])
    found = list(conn.execute(query).scalars())
    items = []
    for name in found[:limit]:
        ids = select(namespaces.c.id).where(namespaces.c.name == name)
        of_models = models.c.namespace_id.in_(ids)
        unused = select(holdings.c.blob_id).where(holdings.c.namespace == name, ~removal.in_use())
        quota = _list_quotas(conn, name)
        items.append(
            Usage(
                path=name,
                versions=_count_versions(conn, of_models),
                bytes_versions=_sum(conn, _of_versions(of_models)),
                bytes_artifacts=_sum(conn, _of_artifacts(artifacts.c.namespace_id.in_(ids))),
                bytes_held=used_bytes(conn, name),
                bytes_unused=_sum(conn, unused),
                quota_bytes=quota[0].limit_bytes if quota else None,
            )
        )
    return Listed(items=tuple(items), next_key=(items[-1].path,) if len(found) > limit else None)


def _list_models(conn: Connection, namespace: str, limit: int, after: Key | None, scope: Scope) -> Listed[Usage]:
    query = (
        select(models.c.id, models.c.name)
        .join(namespaces, models.c.namespace_id == namespaces.c.id)
        .where(namespaces.c.name == namespace)
        .order_by(models.c.name)
        .limit(limit + 1)
    )
    visible = find_visible(conn, scope)
    if visible is not None:
        query = query.where(visible.of_model(models.c.namespace_id, models.c.id))
    if after is not None:
        query = query.where(models.c.name > after[0])
    rows = conn.execute(query).all()
    items = [
        Usage(
            path=f"{namespace}/{row.name}",
            versions=_count_versions(conn, models.c.id == row.id),
            bytes_versions=_sum(conn, _of_versions(models.c.id == row.id)),
            bytes_artifacts=_sum(conn, _of_artifacts(artifacts.c.model_id == row.id)),
        )
        for row in rows[:limit]
    ]
    return Listed(items=tuple(items), next_key=(rows[limit - 1].name,) if len(rows) > limit else None)


def _totals(conn: Connection) -> SpaceTotals:
    count, size = conn.execute(
        select(func.count(), func.coalesce(func.sum(blobs.c.size_bytes), 0)).select_from(blobs)
    ).one()
    unfinished = select(func.count()).select_from(uploads).where(uploads.c.done.is_(False))
    removing = select(func.count()).select_from(blob_removals)
    return SpaceTotals(
        blobs=int(count),
        bytes_blobs=int(size),
        uploads=int(conn.execute(unfinished).scalar_one()),
        removals=int(conn.execute(removing).scalar_one()),
    )


# -- checking --------------------------------------------------------------------------------------------------------


def _list_blobs(conn: Connection, limit: int, after: Key | None) -> Listed[StoredBlob]:
    query = select(blobs).order_by(blobs.c.id).limit(limit + 1)
    if after is not None:
        query = query.where(blobs.c.id > after[0])
    rows = conn.execute(query).all()
    items = tuple(
        StoredBlob(row_id=row.id, digest=Digest(row.digest), size_bytes=row.size_bytes) for row in rows[:limit]
    )
    return Listed(items=items, next_key=(items[-1].row_id,) if len(rows) > limit else None)


def _users_of(conn: Connection, digest: Digest, limit: int) -> tuple[str, ...]:
    blob_ids = select(blobs.c.id).where(blobs.c.digest == digest)
    of_versions = (
        select(versions.c.version, models.c.name, namespaces.c.name.label("namespace"))
        .join(version_blobs, version_blobs.c.version_id == versions.c.id)
        .join(models, versions.c.model_id == models.c.id)
        .join(namespaces, models.c.namespace_id == namespaces.c.id)
        .where(version_blobs.c.blob_id.in_(blob_ids))
        .limit(limit)
    )
    of_artifacts = (
        select(artifacts.c.uid)
        .join(artifact_blobs, artifact_blobs.c.artifact_id == artifacts.c.id)
        .where(artifact_blobs.c.blob_id.in_(blob_ids))
        .limit(limit)
    )
    users = [f"{row.namespace}/{row.name}@{row.version}" for row in conn.execute(of_versions)]
    return tuple([*users, *conn.execute(of_artifacts).scalars()][:limit])


def _check_files(
    conn: Connection, limit: int, after: Key | None, repair: bool
) -> tuple[list[Finding], int, Key | None]:
    stage, last = (int(after[0]), int(after[1])) if after is not None else (0, 0)
    if stage == 0:
        rows = conn.execute(VERSIONS.where(versions.c.id > last).order_by(versions.c.id).limit(limit)).all()
    else:
        rows = conn.execute(ARTIFACTS.where(artifacts.c.id > last).order_by(artifacts.c.id).limit(limit)).all()
    findings: list[Finding] = []
    for row in rows:
        if stage == 0:
            version = version_of(row)
            files = {file.digest for file in version.manifest.files}
            findings += _check_uses(conn, str(version.ref), version.namespace, row.id, files, version_blobs, repair)
        else:
            artifact = artifact_of(row)
            files = {file.digest for file in artifact.files if not file.uri}
            findings += _check_uses(conn, artifact.id, artifact.namespace, row.id, files, artifact_blobs, repair)
    if len(rows) == limit:
        return findings, len(rows), (stage, rows[-1].id)
    return findings, len(rows), (1, 0) if stage == 0 else None


def _check_uses(
    conn: Connection, name: str, namespace: str, row_id: int, files: set[Digest], table: Any, repair: bool
) -> list[Finding]:
    owner = table.c.version_id if table is version_blobs else table.c.artifact_id
    uses = select(blobs.c.digest).join(table, table.c.blob_id == blobs.c.id).where(owner == row_id)
    counted = set(conn.execute(uses).scalars())
    there = {row.digest: row for row in conn.execute(select(blobs).where(blobs.c.digest.in_(files)))}
    held = set(
        conn.execute(
            select(blobs.c.digest)
            .join(holdings, holdings.c.blob_id == blobs.c.id)
            .where(holdings.c.namespace == namespace, blobs.c.digest.in_(files))
        ).scalars()
    )
    findings = []
    for digest in sorted(files):
        if digest not in there:
            findings.append(
                Finding(kind=FindingKind.MISSING, subject=digest, detail="no row tells of these bytes", used_by=(name,))
            )
            continue
        if digest in counted and digest in held:
            continue
        if repair:
            blob = there[digest]
            if digest not in counted:
                conn.execute(insert(table).values({owner.name: row_id, "blob_id": blob.id}))
            if digest not in held:
                now_us = database_time_us(conn)
                conn.execute(
                    insert(holdings).values(
                        namespace=namespace, blob_id=blob.id, created_at_us=now_us, used_at_us=now_us
                    )
                )
                charge(conn, namespace, blob.size_bytes)
        detail = "the file does not count as in use" if digest not in counted else f"{namespace} does not hold the file"
        findings.append(
            Finding(kind=FindingKind.UNLISTED, subject=digest, detail=detail, used_by=(name,), repaired=repair)
        )
    return findings


class SqlSpaceStore:
    """`modelbox.runtime.space_ports.SpaceStore` over a database; see there for each method."""

    def __init__(self, database: MainDatabase) -> None:
        self._db = database
        self._metrics = database.metrics

    async def set_quota(self, namespace: str, limit_bytes: int | None, *, actor: str) -> Quota | None:
        """See the port."""
        return await self._db.write(lambda conn: _set_quota(conn, namespace, limit_bytes, actor))

    async def list_quotas(self, namespace: str, *, scope: Scope = ALL) -> Sequence[Quota]:
        """See the port."""
        return await self._db.scan(lambda conn: _list_quotas(conn, namespace, scope))

    async def list_usage(self, namespace: str, *, limit: int, after: Key | None, scope: Scope = ALL) -> Listed[Usage]:
        """See the port."""
        if namespace:
            return await self._db.scan(lambda conn: _list_models(conn, namespace, limit, after, scope))
        return await self._db.scan(lambda conn: _list_namespaces(conn, limit, after, scope))

    async def totals(self) -> SpaceTotals:
        """See the port."""
        return await self._db.scan(_totals)

    async def find_idle(self, *, grace_s: float, limit: int, after: Key | None) -> Listed[IdleBlob]:
        """See the port."""
        return await self._db.scan(lambda conn: removal.find_idle(conn, int(grace_s * _US), limit, after))

    async def find_unheld(self, *, limit: int, after: Key | None) -> Listed[IdleBlob]:
        """See the port."""
        return await self._db.scan(lambda conn: removal.find_unheld(conn, limit, after))

    async def give_up(self, row_ids: Sequence[int], *, grace_s: float, batch: str) -> GivenUp:
        """See the port."""
        return await self._db.write(lambda conn: removal.give_up(conn, row_ids, int(grace_s * _US), batch))

    async def find_orphans(self, digests: Sequence[Digest]) -> tuple[Sequence[Digest], datetime]:
        """See the port."""
        found, now_us = await self._db.scan(lambda conn: removal.find_orphans(conn, digests))
        return found, from_us(now_us)

    async def condemn_orphans(self, digests: Sequence[Digest], *, batch: str) -> Sequence[Digest]:
        """See the port."""
        return await self._db.write(lambda conn: removal.condemn_orphans(conn, digests, batch))

    async def take_over(self, *, older_than_s: float, limit: int, batch: str) -> Sequence[Digest]:
        """See the port."""
        return await self._db.write(lambda conn: removal.take_over(conn, int(older_than_s * _US), limit, batch))

    async def finish_removal(self, digests: Sequence[Digest], *, batch: str) -> None:
        """See the port."""
        await self._db.write(lambda conn: removal.finish_removal(conn, digests, batch))

    async def list_blobs(self, *, limit: int, after: Key | None) -> Listed[StoredBlob]:
        """See the port."""
        return await self._db.scan(lambda conn: _list_blobs(conn, limit, after))

    async def users_of(self, digest: Digest, *, limit: int) -> Sequence[str]:
        """See the port."""
        return await self._db.scan(lambda conn: _users_of(conn, digest, limit))

    async def check_files(
        self, *, limit: int, after: Key | None, repair: bool
    ) -> tuple[Sequence[Finding], int, Key | None]:
        """See the port."""
        run = self._db.write if repair else self._db.scan
        return await run(lambda conn: _check_files(conn, limit, after, repair))

    async def check_quotas(self, *, repair: bool) -> tuple[Sequence[Finding], int]:
        """See the port."""
        run = self._db.write if repair else self._db.scan
        return await run(lambda conn: _check_quotas(conn, repair))

    async def check_series(self, *, limit: int, after: Key | None) -> tuple[Sequence[WrongSeries], int, Key | None]:
        """See the port."""
        found, count = await self._metrics.scan(lambda conn: check_series(conn, limit, after))
        if not found.items:
            return (), count, found.next_key
        # Objects go first, and then, in parts, their points: what has no object any more is on its way out.
        uids = [one.object_id for one in found.items]
        known = await self._db.scan(lambda conn: find_objects(conn, uids))
        return [one for one in found.items if one.object_id in known], count, found.next_key

    async def verify_feed(self, after: ChainPlace | None) -> ChainPlace:
        """See the port."""
        return await self._db.scan(lambda conn: verify_part(conn, after, _REVS))
