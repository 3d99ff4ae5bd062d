"""Who holds which bytes, and within which quota.

A namespace holds bytes from their upload until they are collected; only what it holds can be published or attached. A
holding is in use while a version or artifact of the namespace has the bytes. Out of use, it stays for a grace time that
counts from ``used_at_us``: the last upload, question for them (`touch`) or end of a use (`release_version`,
`release_artifact`), by the clock of the database.

Knowing a digest grants nothing. Who sees all of a namespace may use what it holds; who sees only some models of it may
use what these have, and what they have sent themselves (`known_blobs`).

Invariant: ``quotas.used_bytes`` is the sum of the sizes of the namespace's holdings. Whoever makes or removes a holding
calls `charge` in the same transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Select, bindparam, delete, func, insert, select, update

from modelbox.access import Caller
from modelbox.errors import LimitError
from modelbox.refs import Digest
from modelbox.runtime.store.clock import database_now_us
from modelbox.runtime.store.schema import (
    artifact_blobs,
    artifacts,
    blobs,
    holdings,
    quotas,
    uploads,
    version_blobs,
    versions,
)
from modelbox.runtime.store.visible import find_visible

__all__ = (
    "charge",
    "check_quota",
    "database_time_us",
    "find_fresh",
    "hold",
    "known_blobs",
    "release_artifact",
    "release_version",
    "touch",
    "used_bytes",
)

_FRESH_US = 3600 * 1_000_000
"""A holding that was used within the last hour is not touched: questions are frequent, and writing costs a commit."""

_NOW = select(database_now_us())
_OF_DIGEST = (
    select(holdings.c.blob_id, blobs.c.size_bytes, holdings.c.used_at_us)
    .join(blobs, holdings.c.blob_id == blobs.c.id)
    .where(holdings.c.namespace == bindparam("ns"), blobs.c.digest == bindparam("content"))
)
_QUOTA = select(quotas.c.limit_bytes, quotas.c.used_bytes).where(quotas.c.namespace == bindparam("ns"))


def database_time_us(conn: Connection) -> int:
    """The time by the database's clock."""
    return int(conn.execute(_NOW).scalar_one())


def find_fresh(conn: Connection, namespace: str, digest: Digest) -> tuple[int | None, bool]:
    """Size of bytes that the namespace holds, None if it does not; and whether they were used a short while ago."""
    row = conn.execute(_OF_DIGEST, {"ns": namespace, "content": digest}).first()
    if row is None:
        return None, False
    now_us = database_time_us(conn)
    return row.size_bytes, row.used_at_us is not None and now_us - _FRESH_US < row.used_at_us <= now_us


def known_blobs(conn: Connection, namespace: str, blob_ids: Sequence[int], caller: Caller) -> set[int]:
    """Which of these bytes somebody has a right to who sees only some models of the namespace, by row id.

    Those of versions and artifacts that they see, and those that they have sent themselves as long as the upload is
    remembered (a day).
    """
    visible = find_visible(conn, caller.scope)
    model_ids = () if visible is None else visible.model_ids
    known: set[int] = set()
    for start in range(0, len(blob_ids), 500):
        some = blob_ids[start : start + 500]
        of_versions = (
            select(version_blobs.c.blob_id)
            .join(versions, versions.c.id == version_blobs.c.version_id)
            .where(versions.c.model_id.in_(model_ids), version_blobs.c.blob_id.in_(some))
        )
        of_artifacts = (
            select(artifact_blobs.c.blob_id)
            .join(artifacts, artifacts.c.id == artifact_blobs.c.artifact_id)
            .where(artifacts.c.model_id.in_(model_ids), artifact_blobs.c.blob_id.in_(some))
        )
        sent = (
            select(blobs.c.id)
            .join(uploads, uploads.c.digest == blobs.c.digest)
            .where(
                blobs.c.id.in_(some),
                uploads.c.namespace == namespace,
                uploads.c.account == caller.name,
                uploads.c.done.is_(True),
            )
        )
        for query in (of_versions, of_artifacts, sent):
            known.update(conn.execute(query).scalars())
    return known


def touch(conn: Connection, namespace: str, digest: Digest) -> int | None:
    """Has the grace time of a holding begin anew; returns the size of the bytes, None if they are not held."""
    row = conn.execute(_OF_DIGEST, {"ns": namespace, "content": digest}).first()
    if row is None:
        return None
    conn.execute(
        update(holdings)
        .where(holdings.c.namespace == namespace, holdings.c.blob_id == row.blob_id)
        .values(used_at_us=database_time_us(conn))
    )
    return int(row.size_bytes)


def hold(conn: Connection, namespace: str, digest: Digest, size_bytes: int, at_us: int) -> None:
    """Has the namespace hold bytes, which are in the blob store.

    Raises:
        LimitError: Its quota does not allow that.
    """
    if touch(conn, namespace, digest) is not None:
        return
    check_quota(conn, namespace, size_bytes)
    by_digest = select(blobs.c.id).where(blobs.c.digest == digest)
    blob_id = conn.execute(by_digest).scalar()
    if blob_id is None:
        conn.execute(insert(blobs).values(digest=digest, size_bytes=size_bytes, created_at_us=at_us))
        blob_id = conn.execute(by_digest).scalar_one()
    used_at_us = database_time_us(conn)
    conn.execute(
        insert(holdings).values(namespace=namespace, blob_id=blob_id, created_at_us=at_us, used_at_us=used_at_us)
    )
    charge(conn, namespace, size_bytes)


def check_quota(conn: Connection, namespace: str, size_bytes: int) -> None:
    """Raises `LimitError` if the namespace may not hold so many more bytes."""
    row = conn.execute(_QUOTA, {"ns": namespace}).first()
    if row is not None and row.used_bytes + size_bytes > row.limit_bytes:
        raise LimitError(
            f"the quota of {namespace} is {row.limit_bytes} bytes, {row.used_bytes} are used, {size_bytes} more do not "
            "fit: delete versions or artifacts (their bytes are free after the grace time), or ask for a larger quota",
            what="quota",
            limit=row.limit_bytes,
            used=row.used_bytes,
            wanted=size_bytes,
        )


def charge(conn: Connection, namespace: str, size_bytes: int) -> None:
    """Counts bytes that the namespace holds from now on, or no more if negative."""
    conn.execute(
        update(quotas).where(quotas.c.namespace == namespace).values(used_bytes=quotas.c.used_bytes + size_bytes)
    )


def used_bytes(conn: Connection, namespace: str) -> int:
    """The sum of what a namespace holds."""
    query = (
        select(func.coalesce(func.sum(blobs.c.size_bytes), 0))
        .join(holdings, holdings.c.blob_id == blobs.c.id)
        .where(holdings.c.namespace == namespace)
    )
    return int(conn.execute(query).scalar_one())


def release_version(conn: Connection, namespace: str, version_id: int) -> None:
    """Ends the use of bytes by a version."""
    _release(conn, namespace, select(version_blobs.c.blob_id).where(version_blobs.c.version_id == version_id))
    conn.execute(delete(version_blobs).where(version_blobs.c.version_id == version_id))


def release_artifact(conn: Connection, namespace: str, artifact_id: int) -> None:
    """Ends the use of bytes by an artifact."""
    _release(conn, namespace, select(artifact_blobs.c.blob_id).where(artifact_blobs.c.artifact_id == artifact_id))
    conn.execute(delete(artifact_blobs).where(artifact_blobs.c.artifact_id == artifact_id))


def _release(conn: Connection, namespace: str, blob_ids: Select[Any]) -> None:
    ids: Sequence[int] = list(conn.execute(blob_ids).scalars())
    now_us = database_time_us(conn) if ids else 0
    for start in range(0, len(ids), 500):
        conn.execute(
            update(holdings)
            .where(holdings.c.namespace == namespace, holdings.c.blob_id.in_(ids[start : start + 500]))
            .values(used_at_us=now_us)
        )
