"""Where objects are, by their ids, in SQL: of which namespace, and of which model of it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import BindParameter, Connection, Select, bindparam, func, select

from modelbox.runtime.permissions.targets import Place
from modelbox.runtime.store.database import Database
from modelbox.runtime.store.schema import artifacts, comments, events, models, namespaces, objects, uploads, versions

__all__ = ("SqlPlaceStore",)

_ID = re.compile(r"[a-z]{3}_[0-9a-f]{24}")
_IN_CHUNK = 500

_own_model = models.alias("own_model")
_version_model = models.alias("version_model")
_artifact_model = models.alias("artifact_model")


def _of_objects(uid: Any) -> Select[Any]:
    """Objects, joined with the model that they are, or belong to."""
    return (
        select(
            uid.label("asked"),
            namespaces.c.name.label("namespace"),
            func.coalesce(_own_model.c.name, _version_model.c.name, _artifact_model.c.name, "").label("model"),
        )
        .select_from(objects)
        .join(namespaces, objects.c.namespace_id == namespaces.c.id)
        .outerjoin(_own_model, _own_model.c.uid == objects.c.uid)
        .outerjoin(versions, versions.c.uid == objects.c.uid)
        .outerjoin(_version_model, _version_model.c.id == versions.c.model_id)
        .outerjoin(artifacts, artifacts.c.uid == objects.c.uid)
        .outerjoin(_artifact_model, _artifact_model.c.id == artifacts.c.model_id)
    )


_UIDS: BindParameter[Any] = bindparam("uids", expanding=True)
_OBJECTS = _of_objects(objects.c.uid).where(objects.c.uid.in_(_UIDS))
_EVENTS = _of_objects(events.c.uid).join(events, events.c.object_id == objects.c.id).where(events.c.uid.in_(_UIDS))
_COMMENTS = (
    _of_objects(comments.c.uid).join(comments, comments.c.object_id == objects.c.id).where(comments.c.uid.in_(_UIDS))
)
_UPLOADS = select(
    uploads.c.uid.label("asked"), uploads.c.namespace, bindparam("no_model", "", literal_execute=True).label("model")
).where(uploads.c.uid.in_(_UIDS))
_BY_PREFIX = {"evt": _EVENTS, "cmt": _COMMENTS, "upl": _UPLOADS}


def _find_places(conn: Connection, ids: Sequence[str]) -> dict[str, Place]:
    found: dict[str, Place] = {}
    groups: dict[str, list[str]] = {}
    for uid in ids:
        # Whatever else is no id, and no database has to be asked.
        if _ID.fullmatch(uid):
            prefix = uid[:3]
            groups.setdefault(prefix if prefix in _BY_PREFIX else "", []).append(uid)
    for prefix, uids in groups.items():
        query = _BY_PREFIX.get(prefix, _OBJECTS)
        for start in range(0, len(uids), _IN_CHUNK):
            for row in conn.execute(query, {"uids": uids[start : start + _IN_CHUNK]}):
                found[row.asked] = Place(row.namespace, row.model)
    return found


class SqlPlaceStore:
    """`modelbox.runtime.permissions.places.PlaceStore` over a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find_places(self, ids: Collection[str]) -> dict[str, Place]:
        """See the port."""
        wanted = tuple(ids)
        return await self._database.read(lambda conn: _find_places(conn, wanted))
