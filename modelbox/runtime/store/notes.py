"""Events, comments and readmes in SQL.

The bin hides an object, it does not refuse: a program that still runs goes on telling about it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, bindparam, delete, insert, or_, select, update

from modelbox.access import ALL, Scope
from modelbox.errors import ConflictError, NotFoundError
from modelbox.feed import Action, Kind
from modelbox.objects import Created, to_json
from modelbox.refs import shown
from modelbox.runtime.ports import Key, Listed
from modelbox.runtime.store.database import Database
from modelbox.runtime.store.event_values import add_event_values
from modelbox.runtime.store.objects import find_object, object_row, seen_object
from modelbox.runtime.store.prepared import Prepared
from modelbox.runtime.store.rows import dump, from_us, to_us
from modelbox.runtime.store.schema import comments, events, namespaces, objects, readmes
from modelbox.runtime.store.visible import find_visible
from modelbox.runtime.store.writing import Writing
from modelbox.tracking import Comment, Event, NewComment, NewEvent, ObjectKind, Readme, ReadmeEdit

__all__ = (
    "COMMENTS",
    "EVENTS",
    "READMES",
    "SqlNoteStore",
    "add_comment",
    "comment_of",
    "delete_comments",
    "event_of",
    "log_event",
    "purge_comments",
    "readme_of",
    "restore_comments",
    "set_readme",
)

EVENTS = (
    select(events, objects.c.uid.label("object"), namespaces.c.name.label("namespace"))
    .join(objects, events.c.object_id == objects.c.id)
    .join(namespaces, events.c.namespace_id == namespaces.c.id)
)
COMMENTS = (
    select(comments, objects.c.uid.label("object"), namespaces.c.name.label("namespace"))
    .join(objects, comments.c.object_id == objects.c.id)
    .join(namespaces, objects.c.namespace_id == namespaces.c.id)
)
READMES = (
    select(readmes, objects.c.uid.label("object"), namespaces.c.name.label("namespace"))
    .join(objects, readmes.c.object_id == objects.c.id)
    .join(namespaces, objects.c.namespace_id == namespaces.c.id)
)

_EVENT = EVENTS.where(events.c.uid == bindparam("the_uid"))
_ADD_EVENT = Prepared(insert(events), [column.name for column in events.c if column.name != "id"])
_COMMENT = COMMENTS.where(comments.c.uid == bindparam("the_uid"))
_COMMENT_LOCKED = _COMMENT.with_for_update(of=comments)
_ADD_COMMENT = insert(comments)
_README = READMES.where(readmes.c.object_id == bindparam("the_object"))
_README_LOCKED = _README.with_for_update(of=readmes)


def event_of(row: Any) -> Event:
    """Of a row of `EVENTS`."""
    return Event(
        id=row.uid,
        namespace=row.namespace,
        object=row.object,
        name=row.name,
        source=row.source,
        at=from_us(row.at_us),
        received_at=from_us(row.received_at_us),
        metadata=json.loads(row.metadata),
        created_by=row.created_by,
        mod_rev=row.mod_rev,
    )


def comment_of(row: Any) -> Comment:
    """Of a row of `COMMENTS`."""
    return Comment(
        id=row.uid,
        namespace=row.namespace,
        object=row.object,
        text=row.text,
        created_at=from_us(row.created_at_us),
        created_by=row.created_by,
        edited_at=None if row.edited_at_us is None else from_us(row.edited_at_us),
        deleted_at=None if row.deleted_at_us is None else from_us(row.deleted_at_us),
        mod_rev=row.mod_rev,
    )


def readme_of(row: Any) -> Readme:
    """Of a row of `READMES`."""
    return Readme(
        object=row.object,
        text=row.text,
        updated_at=from_us(row.updated_at_us),
        updated_by=row.updated_by,
        mod_rev=row.mod_rev,
    )


# -- events ----------------------------------------------------------------------------------------------------------


def log_event(conn: Connection, new: NewEvent, *, actor: str, at: datetime) -> Created[Event]:
    """See `modelbox.runtime.record_ports.NoteStore.log_event`."""
    there = conn.execute(_EVENT, {"the_uid": new.id}).first()
    if there is not None:
        event = event_of(there)
        if event.name != new.name or event.at != new.at or not _names(conn, new.object, event.object):
            raise ConflictError(f"{new.id} is the id of another event: make a new one", current=to_json(event))
        return Created(item=event, existed=True)
    target = object_row(conn, new.object, deleted_ok=True)
    writing = Writing(conn, actor=actor, at=at)
    event = Event(
        id=new.id,
        namespace=target.namespace,
        object=target.uid,
        name=new.name,
        source=new.source,
        at=from_us(to_us(new.at)),
        received_at=from_us(writing.at_us),
        metadata=new.metadata,
        created_by=actor,
        mod_rev=writing.rev,
    )
    event_id = _ADD_EVENT.insert(
        conn,
        {
            "uid": new.id,
            "namespace_id": target.namespace_id,
            "object_id": target.id,
            "name": new.name,
            "source": new.source,
            "at_us": to_us(new.at),
            "received_at_us": writing.at_us,
            "metadata": dump(new.metadata),
            "created_by": actor,
            "mod_rev": writing.rev,
        },
    )
    add_event_values(conn, event_id, new.metadata)
    writing.note(target.namespace, new.id, Kind.EVENT, Action.CREATED, event)
    writing.finish()
    return Created(item=event, existed=False)


def _names(conn: Connection, text: str, uid: str) -> bool:
    found = find_object(conn, text)
    return found is not None and found.uid == uid


def _list_events(
    conn: Connection,
    object_text: str,
    since: datetime | None,
    until: datetime | None,
    name: str,
    source: str,
    limit: int,
    after: Key | None,
    scope: Scope,
) -> Listed[Event]:
    visible = find_visible(conn, scope)
    target = seen_object(conn, object_text, visible, deleted_ok=True)
    column = events.c.namespace_id if target.kind is ObjectKind.NAMESPACE else events.c.object_id
    query = EVENTS.where(column == (target.namespace_id if target.kind is ObjectKind.NAMESPACE else target.id))
    if visible is not None:
        query = query.where(visible.of_object(events.c.namespace_id, objects.c.uid))
    if since is not None:
        query = query.where(events.c.at_us >= to_us(since))
    if until is not None:
        query = query.where(events.c.at_us < to_us(until))
    if name:
        query = query.where(events.c.name == name)
    if source:
        query = query.where(events.c.source == source)
    if after is not None:
        at_us, row_id = after
        query = query.where(
            events.c.at_us <= at_us, or_(events.c.at_us < at_us, and_(events.c.at_us == at_us, events.c.id < row_id))
        )
    rows = conn.execute(query.order_by(events.c.at_us.desc(), events.c.id.desc()).limit(limit + 1)).all()
    page = rows[:limit]
    return Listed(
        items=tuple(event_of(row) for row in page),
        next_key=(page[-1].at_us, page[-1].id) if len(rows) > limit else None,
    )


# -- comments --------------------------------------------------------------------------------------------------------


def add_comment(conn: Connection, new: NewComment, *, actor: str, at: datetime) -> Created[Comment]:
    """See `modelbox.runtime.record_ports.NoteStore.add_comment`."""
    there = conn.execute(_COMMENT, {"the_uid": new.id}).first()
    if there is not None:
        comment = comment_of(there)
        if not _names(conn, new.object, comment.object):
            raise ConflictError(
                f"{new.id} is the id of a comment on another object: make a new one", current=to_json(comment)
            )
        return Created(item=comment, existed=True)
    target = object_row(conn, new.object, deleted_ok=True)
    writing = Writing(conn, actor=actor, at=at)
    conn.execute(
        _ADD_COMMENT,
        {
            "uid": new.id,
            "object_id": target.id,
            "text": new.text,
            "created_at_us": writing.at_us,
            "created_by": actor,
            "mod_rev": writing.rev,
        },
    )
    return Created(item=_noted(writing, new.id, Action.CREATED), existed=False)


def _edit_comment(conn: Connection, comment_id: str, text: str, actor: str, at: datetime) -> Comment:
    row = _comment_row(conn, comment_id)
    if row.deleted_at_us is not None:
        raise NotFoundError(f"{comment_id} is in the bin: restore it first", what="comment", deleted=True)
    if row.text == text:
        return comment_of(row)
    writing = Writing(conn, actor=actor, at=at)
    _change(writing, row.id, text=text, edited_at_us=writing.at_us)
    return _noted(writing, comment_id, Action.UPDATED)


def _delete_comment(conn: Connection, comment_id: str, *, actor: str, at: datetime) -> Comment:
    """See `modelbox.runtime.record_ports.NoteStore.delete_comment`."""
    row = _comment_row(conn, comment_id)
    if row.deleted_at_us is not None:
        return comment_of(row)
    writing = Writing(conn, actor=actor, at=at)
    _change(writing, row.id, deleted_at_us=writing.at_us)
    return _noted(writing, comment_id, Action.DELETED)


def _restore_comment(conn: Connection, comment_id: str, *, actor: str, at: datetime) -> Comment:
    """See `modelbox.runtime.record_ports.NoteStore.restore_comment`."""
    row = _comment_row(conn, comment_id)
    if row.deleted_at_us is None:
        return comment_of(row)
    writing = Writing(conn, actor=actor, at=at)
    _change(writing, row.id, deleted_at_us=None)
    return _noted(writing, comment_id, Action.RESTORED)


def delete_comments(conn: Connection, ids: Iterable[str], *, actor: str, at: datetime) -> int:
    """Puts comments into the bin, all or none; returns how many were not in it."""
    rows = [_comment_row(conn, comment_id) for comment_id in dict.fromkeys(ids)]
    used = [row.uid for row in rows if row.deleted_at_us is None]
    for comment_id in used:
        _delete_comment(conn, comment_id, actor=actor, at=at)
    return len(used)


def restore_comments(conn: Connection, ids: Iterable[str], *, actor: str, at: datetime) -> int:
    """Takes comments out of the bin, all or none; returns how many were in it."""
    rows = [_comment_row(conn, comment_id) for comment_id in dict.fromkeys(ids)]
    binned = [row.uid for row in rows if row.deleted_at_us is not None]
    for comment_id in binned:
        _restore_comment(conn, comment_id, actor=actor, at=at)
    return len(binned)


def purge_comments(conn: Connection, namespace: str, before: datetime) -> int:
    """Removes for good the comments that were put into the bin before a time; of all namespaces for an empty one."""
    query = delete(comments).where(comments.c.deleted_at_us < to_us(before))
    if namespace:
        inside = (
            select(objects.c.id)
            .join(namespaces, objects.c.namespace_id == namespaces.c.id)
            .where(namespaces.c.name == namespace)
        )
        query = query.where(comments.c.object_id.in_(inside))
    return conn.execute(query).rowcount


def _comment_row(conn: Connection, comment_id: str) -> Any:
    row = conn.execute(_COMMENT_LOCKED, {"the_uid": comment_id}).first()
    if row is None:
        raise NotFoundError(f"no comment {shown(comment_id)}", what="comment", name=comment_id)
    return row


def _change(writing: Writing, row_id: int, **values: Any) -> None:
    writing.conn.execute(update(comments).where(comments.c.id == row_id).values(mod_rev=writing.rev, **values))


def _noted(writing: Writing, comment_id: str, action: Action) -> Comment:
    """The comment as it is now, after its change was noted."""
    comment = comment_of(writing.conn.execute(_COMMENT, {"the_uid": comment_id}).one())
    writing.note(comment.namespace, comment.id, Kind.COMMENT, action, comment)
    writing.finish()
    return comment


def _list_comments(
    conn: Connection, object_text: str, include_deleted: bool, limit: int, after: Key | None, scope: Scope
) -> Listed[Comment]:
    visible = find_visible(conn, scope)
    target = seen_object(conn, object_text, visible, deleted_ok=True)
    query = COMMENTS.where(comments.c.object_id == target.id).order_by(comments.c.id).limit(limit + 1)
    if visible is not None:
        # A namespace may be named, and what is said about it still not be seen.
        query = query.where(visible.of_object(objects.c.namespace_id, objects.c.uid))
    if not include_deleted:
        query = query.where(comments.c.deleted_at_us.is_(None))
    if after is not None:
        query = query.where(comments.c.id > after[0])
    rows = conn.execute(query).all()
    page = rows[:limit]
    return Listed(items=tuple(comment_of(row) for row in page), next_key=(page[-1].id,) if len(rows) > limit else None)


# -- readmes ---------------------------------------------------------------------------------------------------------


def set_readme(conn: Connection, edit: ReadmeEdit, *, actor: str, at: datetime) -> Readme:
    """See `modelbox.runtime.record_ports.NoteStore.set_readme`."""
    target = object_row(conn, edit.object, lock=True, deleted_ok=True)
    row = conn.execute(_README_LOCKED, {"the_object": target.id}).first()
    if edit.text == ("" if row is None else row.text):
        if row is not None:
            return readme_of(row)
        return Readme(object=target.uid, text="", updated_at=at, updated_by=actor, mod_rev=0)
    writing = Writing(conn, actor=actor, at=at)
    readme = Readme(
        object=target.uid,
        text=edit.text,
        updated_at=from_us(writing.at_us),
        updated_by=actor,
        mod_rev=writing.rev,
    )
    values = {"text": edit.text, "updated_at_us": writing.at_us, "updated_by": actor, "mod_rev": writing.rev}
    path = f"{target.uid}/readme"
    if row is None:
        conn.execute(insert(readmes).values(object_id=target.id, **values))
        writing.note(target.namespace, path, Kind.README, Action.CREATED, readme)
    elif edit.text:
        conn.execute(update(readmes).where(readmes.c.object_id == target.id).values(**values))
        writing.note(target.namespace, path, Kind.README, Action.UPDATED, readme)
    else:
        conn.execute(delete(readmes).where(readmes.c.object_id == target.id))
        writing.note(target.namespace, path, Kind.README, Action.DELETED, readme_of(row))
    writing.finish()
    return readme


def _get_readme(conn: Connection, object_text: str) -> Readme:
    target = object_row(conn, object_text, deleted_ok=True)
    row = conn.execute(_README, {"the_object": target.id}).first()
    if row is None:
        raise NotFoundError(f"{shown(object_text)} has no readme", what="readme", name=object_text)
    return readme_of(row)


class SqlNoteStore:
    """`modelbox.runtime.record_ports.NoteStore` over a database; see there for each method."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def log_event(self, new: NewEvent, *, actor: str, at: datetime) -> Created[Event]:
        """See the port."""
        return await self._db.write(lambda conn: log_event(conn, new, actor=actor, at=at))

    async def list_events(
        self,
        object_text: str,
        *,
        since: datetime | None,
        until: datetime | None,
        name: str,
        source: str,
        limit: int,
        after: Key | None,
        scope: Scope = ALL,
    ) -> Listed[Event]:
        """See the port."""
        return await self._db.scan(
            lambda conn: _list_events(conn, object_text, since, until, name, source, limit, after, scope)
        )

    async def add_comment(self, new: NewComment, *, actor: str, at: datetime) -> Created[Comment]:
        """See the port."""
        return await self._db.write(lambda conn: add_comment(conn, new, actor=actor, at=at))

    async def edit_comment(self, comment_id: str, text: str, *, actor: str, at: datetime) -> Comment:
        """See the port."""
        return await self._db.write(lambda conn: _edit_comment(conn, comment_id, text, actor, at))

    async def delete_comment(self, comment_id: str, *, actor: str, at: datetime) -> Comment:
        """See the port."""
        return await self._db.write(lambda conn: _delete_comment(conn, comment_id, actor=actor, at=at))

    async def restore_comment(self, comment_id: str, *, actor: str, at: datetime) -> Comment:
        """See the port."""
        return await self._db.write(lambda conn: _restore_comment(conn, comment_id, actor=actor, at=at))

    async def list_comments(
        self, object_text: str, *, include_deleted: bool, limit: int, after: Key | None, scope: Scope = ALL
    ) -> Listed[Comment]:
        """See the port."""
        return await self._db.scan(lambda conn: _list_comments(conn, object_text, include_deleted, limit, after, scope))

    async def set_readme(self, edit: ReadmeEdit, *, actor: str, at: datetime) -> Readme:
        """See the port."""
        return await self._db.write(lambda conn: set_readme(conn, edit, actor=actor, at=at))

    async def get_readme(self, object_text: str) -> Readme:
        """See the port."""
        return await self._db.read(lambda conn: _get_readme(conn, object_text))
