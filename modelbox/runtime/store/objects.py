"""Rows of ``objects``: one for everything that others attach to, whatever kind it is of.

Finding an object by what people write (an id, ``namespace``, ``namespace/model``, ``namespace/model@7``), making its
row, and removing it with all that attaches to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, or_, select, update

from modelbox.errors import InvalidError, NotFoundError
from modelbox.refs import ModelRef, check_name, shown
from modelbox.runtime.store.lookups import find_model_row, model_row, no_model, ref_row
from modelbox.runtime.store.prepared import Prepared
from modelbox.runtime.store.schema import (
    attribute_history,
    attribute_leaves,
    attributes,
    comments,
    event_values,
    events,
    lineage_edges,
    namespaces,
    objects,
    readmes,
)
from modelbox.runtime.store.visible import Visible
from modelbox.tracking import ObjectKind, kind_of_id

__all__ = (
    "OBJECTS",
    "ObjectRow",
    "add_object",
    "find_object",
    "find_objects",
    "hide_with",
    "object_by_id",
    "object_id",
    "object_row",
    "remove_objects",
    "seen_object",
)

_IN_CHUNK = 500

OBJECTS = select(objects, namespaces.c.name.label("namespace")).join(
    namespaces, objects.c.namespace_id == namespaces.c.id
)
_BY_UID = OBJECTS.where(objects.c.uid == bindparam("the_uid"))
_BY_ROW = OBJECTS.where(objects.c.id == bindparam("row_id"))
_BY_UID_LOCKED = _BY_UID.with_for_update(of=objects)
_BY_UIDS = OBJECTS.where(objects.c.uid.in_(bindparam("uids", expanding=True)))
_NAMESPACE = OBJECTS.where(namespaces.c.name == bindparam("ns"), objects.c.kind == ObjectKind.NAMESPACE.value)
_NAMESPACE_LOCKED = _NAMESPACE.with_for_update(of=objects)
_ADD = Prepared(insert(objects), ("uid", "kind", "namespace_id", "parent_id", "created_at_us", "created_by", "mod_rev"))
_ID_OF = select(objects.c.id).where(objects.c.uid == bindparam("the_uid"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectRow:
    """An object as others refer to it.

    Attributes:
        id: The row's number, for foreign keys.
        uid: The id outside.
        namespace: Name of its namespace.
        parent_id: Row number of what it belongs to.
        deleted: It is in the bin, by itself or with what it belongs to.
    """

    id: int
    uid: str
    kind: ObjectKind
    namespace: str
    namespace_id: int
    parent_id: int | None
    deleted: bool


def _of(row: Any) -> ObjectRow:
    return ObjectRow(
        id=row.id,
        uid=row.uid,
        kind=ObjectKind(row.kind),
        namespace=row.namespace,
        namespace_id=row.namespace_id,
        parent_id=row.parent_id,
        deleted=row.deleted_at_us is not None,
    )


def find_object(conn: Connection, text: str, *, lock: bool = False) -> ObjectRow | None:
    """The object that ``text`` names, in the bin or not; None if there is none.

    Args:
        conn: The transaction.
        text: An id, a namespace, ``namespace/model``, or ``namespace/model@7`` (an alias or digest will do).
        lock: Locks the row for the rest of the transaction.

    Raises:
        InvalidError: The text can name nothing.
    """
    try:
        return object_row(conn, text, lock=lock, deleted_ok=True)
    except NotFoundError:
        return None


def object_row(conn: Connection, text: str, *, lock: bool = False, deleted_ok: bool = False) -> ObjectRow:
    """As `find_object`.

    Raises:
        NotFoundError: There is no such object, or it is in the bin; where it is named by a path, ``exists`` lists what
            there is instead.
        InvalidError: The text can name nothing.
    """
    if not isinstance(text, str):
        raise InvalidError(f"{shown(text)} names no object: expected an id or a path", what="object")
    if kind_of_id(text) is not None:
        row = conn.execute(_BY_UID_LOCKED if lock else _BY_UID, {"the_uid": text}).first()
    elif "/" in text:
        uid = ref_row(conn, ModelRef.parse(text)).uid if "@" in text else _model_uid(conn, text)
        row = conn.execute(_BY_UID_LOCKED if lock else _BY_UID, {"the_uid": uid}).first()
    else:
        check_name(text, "namespace")
        row = conn.execute(_NAMESPACE_LOCKED if lock else _NAMESPACE, {"ns": text}).first()
    if row is None:
        raise _no_object(text)
    found = _of(row)
    if found.deleted and not deleted_ok:
        raise _binned(text, found)
    return found


def seen_object(conn: Connection, text: str, visible: Visible | None, *, deleted_ok: bool = False) -> ObjectRow:
    """As `object_row`; what the caller may not see is not there. A namespace is, where something in it may be seen."""
    if visible is None:
        return object_row(conn, text, deleted_ok=deleted_ok)
    if isinstance(text, str) and "/" in text:
        ref = ModelRef.parse(text)
        model = find_model_row(conn, ref.namespace, ref.model)
        if model is None or not visible.shows_model(model.namespace_id, model.id):
            raise no_model(conn, ref.namespace, ref.model, visible)
    found = object_row(conn, text, deleted_ok=True)
    if found.kind is ObjectKind.NAMESPACE:
        shows = found.namespace_id in visible.named_ids
    else:
        shows = visible.shows_object(conn, found.id)
    if not shows:
        raise _no_object(text)
    if found.deleted and not deleted_ok:
        raise _binned(text, found)
    return found


def _no_object(text: str) -> NotFoundError:
    return NotFoundError(f"no object {shown(text)}: was it made on this server, or purged?", what="object", name=text)


def _binned(text: str, found: ObjectRow) -> NotFoundError:
    return NotFoundError(
        f"{shown(text)} is in the bin: restore it first", what=found.kind.value, name=text, deleted=True
    )


def find_objects(conn: Connection, uids: list[str]) -> dict[str, ObjectRow]:
    """Those of some ids that there are, in the bin or not; at most 1000 at once."""
    return {row.uid: _of(row) for row in conn.execute(_BY_UIDS, {"uids": uids})} if uids else {}


def _model_uid(conn: Connection, text: str) -> str:
    namespace, _, name = text.partition("/")
    uid: str = model_row(conn, check_name(namespace, "namespace"), check_name(name, "model")).uid
    return uid


def add_object(
    conn: Connection,
    *,
    uid: str,
    kind: ObjectKind,
    namespace_id: int,
    parent_id: int | None = None,
    at_us: int,
    actor: str,
    rev: int,
) -> int:
    """Makes the row of a new object and returns its number; see also `Writing.add_object`."""
    return _ADD.insert(
        conn,
        {
            "uid": uid,
            "kind": kind.value,
            "namespace_id": namespace_id,
            "parent_id": parent_id,
            "created_at_us": at_us,
            "created_by": actor,
            "mod_rev": rev,
        },
    )


def object_id(conn: Connection, uid: str) -> int:
    """Row number of an object that there is."""
    return int(conn.execute(_ID_OF, {"the_uid": uid}).scalar_one())


def object_by_id(conn: Connection, row_id: int) -> ObjectRow:
    """The object with a row's number, which there is."""
    return _of(conn.execute(_BY_ROW, {"row_id": row_id}).one())


def hide_with(conn: Connection, row_id: int, parent_id: int) -> None:
    """Puts what was just made below something in the bin there with it, so that it comes back with it."""
    above = select(objects.c.deleted_at_us, objects.c.deleted_root).where(objects.c.id == parent_id)
    deleted_at_us, root = conn.execute(above).one()
    hidden = {"deleted_at_us": deleted_at_us, "deleted_root": root}
    conn.execute(update(objects).where(objects.c.id == row_id).values(**hidden))


def remove_objects(conn: Connection, ids: Sequence[int]) -> None:
    """Removes objects for good, with their attributes, events, comments, readmes and edges.

    Rows of their kind, and objects that belong to them, must be gone already; series of metrics are the caller's.
    """
    for start in range(0, len(ids), _IN_CHUNK):
        some = ids[start : start + _IN_CHUNK]
        conn.execute(
            delete(lineage_edges).where(or_(lineage_edges.c.source_id.in_(some), lineage_edges.c.target_id.in_(some)))
        )
        of_objects = select(events.c.id).where(events.c.object_id.in_(some))
        conn.execute(delete(event_values).where(event_values.c.event_id.in_(of_objects)))
        for table in (attribute_leaves, attributes, attribute_history, events, comments, readmes):
            conn.execute(delete(table).where(table.c.object_id.in_(some)))
        conn.execute(delete(objects).where(objects.c.id.in_(some)))
