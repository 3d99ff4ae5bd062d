"""Locks on versions in SQL: what is locked is not deleted, by hand or by a policy, until somebody unlocks it.

Not in the change feed: a lock changes nothing of what a version is or who serves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from modelbox.access import ALL, Scope
from modelbox.errors import InUseError
from modelbox.retention import VersionLock
from modelbox.runtime.store.holdings import database_time_us
from modelbox.runtime.store.lookups import model_row, version_row
from modelbox.runtime.store.rows import from_us
from modelbox.runtime.store.schema import models, namespaces, version_locks, versions
from modelbox.runtime.store.visible import find_visible

__all__ = ("check_unlocked", "list_locks", "lock_version", "unlock_version")

_LOCKS = (
    select(version_locks, versions.c.version, models.c.name.label("model"), namespaces.c.name.label("namespace"))
    .join(versions, version_locks.c.version_id == versions.c.id)
    .join(models, versions.c.model_id == models.c.id)
    .join(namespaces, models.c.namespace_id == namespaces.c.id)
    .order_by(namespaces.c.name, models.c.name, versions.c.version)
)


def _lock_of(row: Any) -> VersionLock:
    return VersionLock(
        namespace=row.namespace,
        model=row.model,
        version=row.version,
        reason=row.reason,
        locked_at=from_us(row.locked_at_us),
        locked_by=row.locked_by,
    )


def check_unlocked(conn: Connection, *, model_id: int | None = None, version_id: int | None = None) -> None:
    """Raises `InUseError` if the version, or any version of the model, is locked."""
    which = versions.c.model_id == model_id if version_id is None else versions.c.id == version_id
    locked = [_lock_of(row) for row in conn.execute(_LOCKS.where(which).limit(10))]
    if locked:
        names = [f"{lock.namespace}/{lock.model}@{lock.version}" for lock in locked]
        first = locked[0]
        raise InUseError(
            f"{', '.join(names)} locked by {first.locked_by or 'somebody'}"
            f"{f' ({first.reason})' if first.reason else ''}: unlock first",
            held_by=names,
            what="lock",
        )


def lock_version(conn: Connection, namespace: str, model: str, version: int, reason: str, actor: str) -> VersionLock:
    """Locks a version; one that is locked stays as it is."""
    row = version_row(conn, model_row(conn, namespace, model, lock=True), version)
    by_version = _LOCKS.where(version_locks.c.version_id == row.id)
    there = conn.execute(by_version).first()
    if there is None:
        conn.execute(
            insert(version_locks).values(
                version_id=row.id, reason=reason, locked_at_us=database_time_us(conn), locked_by=actor
            )
        )
        there = conn.execute(by_version).one()
    return _lock_of(there)


def unlock_version(conn: Connection, namespace: str, model: str, version: int) -> bool:
    """Unlocks a version; returns whether it was locked."""
    row = version_row(conn, model_row(conn, namespace, model, lock=True), version)
    return conn.execute(delete(version_locks).where(version_locks.c.version_id == row.id)).rowcount == 1


def list_locks(conn: Connection, namespace: str, model: str, limit: int, scope: Scope = ALL) -> Sequence[VersionLock]:
    """Locks of a namespace or model, of all for empty names."""
    query = _LOCKS.limit(limit)
    visible = find_visible(conn, scope)
    if visible is not None:
        query = query.where(visible.of_model(models.c.namespace_id, models.c.id))
    if namespace:
        query = query.where(namespaces.c.name == namespace)
    if model:
        query = query.where(models.c.name == model)
    return tuple(_lock_of(row) for row in conn.execute(query))
