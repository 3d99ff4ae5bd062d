"""Values by key of objects: rows for `find`, and the history of every one.

``attributes`` holds one row per key, ``attribute_leaves`` the scalars inside values that are JSON objects or lists, and
``attribute_history`` every set and removal. Labels and metadata of models and versions, and the metrics of versions and
checkpoints, are kept in those objects' own rows; `project` repeats them here whenever they change.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, and_, bindparam, delete, select, update

from modelbox.objects import JsonValue, to_json
from modelbox.runtime.ports import Key, Listed
from modelbox.runtime.store.objects import ObjectRow
from modelbox.runtime.store.prepared import Prepared
from modelbox.runtime.store.prepared_rows import PreparedRows
from modelbox.runtime.store.rows import from_us
from modelbox.runtime.store.schema import attribute_history, attribute_leaves, attributes, objects
from modelbox.tracking import Attribute, AttributeChange, AttributeKind

__all__ = (
    "MAX_LEAVES",
    "MAX_PATH_CHARS",
    "METRIC",
    "AttributeWrites",
    "compared",
    "encode",
    "list_history",
    "project",
    "read_attributes",
    "read_values",
    "same",
)

METRIC = "metric"
"""The kind under which metrics of versions and checkpoints are projected; nobody else sees it."""

MAX_LEAVES = 1000
"""Scalars of one value that `find` knows."""
MAX_PATH_CHARS = 250
"""Of a path that `find` knows."""
_MAX_TEXT_CHARS = 255

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True, allow_nan=False)

_VALUE_COLUMNS = ("object_id", "kind", "key", "value", "number", "text", "updated_at_us", "updated_by")
_LEAF_COLUMNS = ("object_id", "kind", "key", "path", "value", "number", "text")
_HISTORY_COLUMNS = ("object_id", "kind", "key", "value", "at_us", "actor", "rev")
_ADD = PreparedRows(attributes, _VALUE_COLUMNS)
_ADD_LEAVES = PreparedRows(attribute_leaves, _LEAF_COLUMNS)
_ADD_HISTORY = PreparedRows(attribute_history, _HISTORY_COLUMNS)
_OF = and_(
    attributes.c.object_id == bindparam("the_object"),
    attributes.c.kind == bindparam("the_kind"),
    attributes.c.key == bindparam("the_key"),
)
_SET = Prepared(
    update(attributes)
    .where(_OF)
    .values(
        value=bindparam("new_value"),
        number=bindparam("new_number"),
        text=bindparam("new_text"),
        updated_at_us=bindparam("new_at_us"),
        updated_by=bindparam("new_by"),
    )
)
_DROP = Prepared(delete(attributes).where(_OF))
_DROP_LEAVES = Prepared(
    delete(attribute_leaves).where(
        attribute_leaves.c.object_id == bindparam("the_object"),
        attribute_leaves.c.kind == bindparam("the_kind"),
        attribute_leaves.c.key == bindparam("the_key"),
    )
)
_VALUES = select(attributes.c.key, attributes.c.value).where(
    attributes.c.object_id == bindparam("the_object"), attributes.c.kind == bindparam("the_kind")
)
_READ = (
    select(attributes, objects.c.uid)
    .join(objects, attributes.c.object_id == objects.c.id)
    .where(
        objects.c.id.in_(bindparam("ids", expanding=True)), attributes.c.kind.in_(bindparam("kinds", expanding=True))
    )
    .order_by(attributes.c.object_id, attributes.c.kind, attributes.c.key)
)


def encode(value: JsonValue) -> str:
    """JSON text of a value, equal for equal ones."""
    return _ENCODER.encode(value)


def same(one: JsonValue, other: JsonValue) -> bool:
    """Whether two values are the same: numbers by their value, and ``true`` is not 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, int | float) and isinstance(other, int | float):
        return one == other
    return encode(one) == encode(other)


def compared(value: JsonValue) -> tuple[float | None, str | None]:
    """What find compares: a number, or the beginning of a text."""
    if value is True or value is False:
        return None, "true" if value else "false"
    if isinstance(value, int | float):
        return float(value), None
    if isinstance(value, str):
        return None, value[:_MAX_TEXT_CHARS]
    return None, None


def _leaves(path: str, value: JsonValue) -> Iterator[tuple[str, JsonValue]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(f"{path}.{key}", inner)
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            yield from _leaves(f"{path}.{place}", inner)
    else:
        yield path, value


class AttributeWrites:
    """Gathers rows of one revision, and writes them in as few statements as can be.

    Args:
        at_us: When.
        actor: Who.
        rev: The revision.
    """

    def __init__(self, *, at_us: int, actor: str, rev: int) -> None:
        self._at_us = at_us
        self._actor = actor
        self._rev = rev
        # Rows to insert, one row's values after the other's.
        self._new: list[Any] = []
        self._leaves: list[Any] = []
        self._history: list[Any] = []
        self._set: list[dict[str, Any]] = []
        self._dropped: list[dict[str, Any]] = []
        self._stale: list[dict[str, Any]] = []

    def add(self, object_id: int, kind: str, key: str, value: JsonValue) -> None:
        """A key that the object has not yet."""
        number, text = compared(value)
        encoded = encode(value)
        self._new += (object_id, kind, key, encoded, number, text, self._at_us, self._actor)
        self._remember(object_id, kind, key, value, encoded)

    def set(self, object_id: int, kind: str, key: str, value: JsonValue) -> None:
        """Another value for a key that the object has."""
        number, text = compared(value)
        encoded = encode(value)
        place = {"the_object": object_id, "the_kind": kind, "the_key": key}
        self._set.append(
            {
                **place,
                "new_value": encoded,
                "new_number": number,
                "new_text": text,
                "new_at_us": self._at_us,
                "new_by": self._actor,
            }
        )
        self._stale.append(place)
        self._remember(object_id, kind, key, value, encoded)

    def drop(self, object_id: int, kind: str, key: str) -> None:
        """A key that goes."""
        place = {"the_object": object_id, "the_kind": kind, "the_key": key}
        self._dropped.append(place)
        self._stale.append(place)
        self._remember(object_id, kind, key, None, None)

    def _remember(self, object_id: int, kind: str, key: str, value: JsonValue, encoded: str | None) -> None:
        self._history += (object_id, kind, key, encoded, self._at_us, self._actor, self._rev)
        if not isinstance(value, Mapping | list | tuple):
            return
        # Two ways may lead to one path ({"a.b": 1, "a": {"b": 2}}): the first is known.
        found: dict[str, JsonValue] = {}
        for path, leaf in _leaves(key, value):
            if len(found) == MAX_LEAVES:
                break
            if len(path) <= MAX_PATH_CHARS:
                found.setdefault(path, leaf)
        for path, leaf in found.items():
            number, text = compared(leaf)
            self._leaves += (object_id, kind, key, path, encode(leaf), number, text)

    def write(self, conn: Connection) -> None:
        """Writes what was gathered."""
        _DROP_LEAVES.run_many(conn, self._stale)
        _DROP.run_many(conn, self._dropped)
        _SET.run_many(conn, self._set)
        _ADD.insert(conn, self._new)
        _ADD_LEAVES.insert(conn, self._leaves)
        _ADD_HISTORY.insert(conn, self._history)


def project(
    conn: Connection,
    object_id: int,
    kind: str,
    old: Mapping[str, JsonValue],
    new: Mapping[str, JsonValue],
    *,
    at_us: int,
    actor: str,
    rev: int,
) -> None:
    """Repeats in ``attributes`` that the values of one kind changed from ``old`` to ``new`` in the object's own row."""
    writes = AttributeWrites(at_us=at_us, actor=actor, rev=rev)
    for key, value in new.items():
        plain = to_json(value)
        if key not in old:
            writes.add(object_id, kind, key, plain)
        elif not same(to_json(old[key]), plain):
            writes.set(object_id, kind, key, plain)
    for key in old:
        if key not in new:
            writes.drop(object_id, kind, key)
    writes.write(conn)


def read_values(conn: Connection, object_id: int, kind: str) -> dict[str, JsonValue]:
    """All values of one kind of one object."""
    rows = conn.execute(_VALUES, {"the_object": object_id, "the_kind": kind})
    return {row.key: json.loads(row.value) for row in rows}


def read_attributes(
    conn: Connection, found: Sequence[ObjectRow], kinds: Sequence[AttributeKind]
) -> tuple[Attribute, ...]:
    """All values of these kinds (all, if none is named) of some objects, in the order of the objects."""
    if not found:
        return ()
    place = {row.uid: number for number, row in enumerate(found)}
    wanted = [kind.value for kind in kinds or tuple(AttributeKind)]
    rows = conn.execute(_READ, {"ids": [row.id for row in found], "kinds": wanted})
    values = [
        Attribute(
            object=row.uid,
            kind=AttributeKind(row.kind),
            key=row.key,
            value=json.loads(row.value),
            updated_at=from_us(row.updated_at_us),
            updated_by=row.updated_by,
        )
        for row in rows
    ]
    return tuple(sorted(values, key=lambda one: place[one.object]))


def list_history(
    conn: Connection, found: ObjectRow, kind: AttributeKind, key: str, limit: int, after: Key | None
) -> Listed[AttributeChange]:
    """Sets and removals, newest first; of all keys for an empty one. Key: (internal number,)."""
    query = (
        select(attribute_history)
        .where(attribute_history.c.object_id == found.id, attribute_history.c.kind == kind.value)
        .order_by(attribute_history.c.id.desc())
        .limit(limit + 1)
    )
    if key:
        query = query.where(attribute_history.c.key == key)
    if after is not None:
        query = query.where(attribute_history.c.id < after[0])
    rows = conn.execute(query).all()
    page = rows[:limit]
    return Listed(
        items=tuple(
            AttributeChange(
                object=found.uid,
                kind=kind,
                key=row.key,
                value=None if row.value is None else json.loads(row.value),
                deleted=row.value is None,
                at=from_us(row.at_us),
                by=row.actor,
                rev=row.rev,
            )
            for row in page
        ),
        next_key=(page[-1].id,) if len(rows) > limit else None,
    )
