"""The use cases of what people and outside systems say about objects: events, comments, readmes.

Owns the checks of what callers send. Every method may be called by many tasks at once. A cancelled change was either
not begun or is carried out unseen; repeated with the same id it is carried out once.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from modelbox.access import ALL, Scope
from modelbox.errors import InvalidError
from modelbox.objects import Created, Page
from modelbox.refs import shown
from modelbox.runtime.limits import check_metadata, check_text
from modelbox.runtime.record_ports import NoteStore
from modelbox.runtime.services.naming import check_actor, check_object, check_time
from modelbox.runtime.services.paging import decode_key, page_of, page_size_of
from modelbox.tracking import Comment, Event, NewComment, NewEvent, ObjectKind, Readme, ReadmeEdit, check_id

__all__ = ("MAX_COMMENT_CHARS", "MAX_README_CHARS", "NoteService", "check_comment", "check_event", "check_readme")

MAX_COMMENT_CHARS = 65_536
MAX_README_CHARS = 262_144


def _now() -> datetime:
    return datetime.now(UTC)


def check_event(new: NewEvent) -> NewEvent:
    """Returns ``new`` if it can be kept.

    Raises:
        InvalidError: The id, object, name, source, time or metadata is not valid.
        LimitError: Something is too large.
    """
    check_id(new.id, ObjectKind.EVENT)
    check_object(new.object)
    if not check_text(new.name, "name", max_chars=255) or not new.name.isprintable():
        raise InvalidError(f"{shown(new.name)} is not an event's name: expected printable text", what="name")
    check_text(new.source, "source", max_chars=255)
    check_time(new.at, "event's time")
    check_metadata(new.metadata)
    return new


def check_comment(new: NewComment) -> NewComment:
    """Returns ``new`` if it can be kept.

    Raises:
        InvalidError: The id, object or text is not valid.
        LimitError: The text is too long.
    """
    check_id(new.id, ObjectKind.COMMENT)
    check_object(new.object)
    _check_comment_text(new.text)
    return new


def check_readme(edit: ReadmeEdit) -> ReadmeEdit:
    """Returns ``edit`` if it can be kept.

    Raises:
        InvalidError: The object or text is not valid.
        LimitError: The text is too long.
    """
    check_object(edit.object)
    check_text(edit.text, "readme", max_chars=MAX_README_CHARS)
    return edit


def _check_comment_text(text: str) -> str:
    check_text(text, "comment", max_chars=MAX_COMMENT_CHARS)
    if not text.strip():
        raise InvalidError("a comment needs a text: delete it if it is to go", what="comment")
    return text


class NoteService:
    """Events, comments and readmes of any object.

    Args:
        store: Where they are kept.
        clock: Gives the time of a change, aware and in UTC.

    Every method that names an object raises `NotFoundError` where there is none; one in the bin will do.
    """

    def __init__(self, store: NoteStore, *, clock: Callable[[], datetime] = _now) -> None:
        self._store = store
        self._clock = clock

    async def log_event(self, new: NewEvent, *, actor: str) -> Created[Event]:
        """Keeps an event, once for each id.

        Raises:
            ConflictError: The id belongs to another event; ``current`` is that one.
        """
        return await self._store.log_event(check_event(new), actor=check_actor(actor), at=self._clock())

    async def list_events(
        self,
        object: str,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        name: str = "",
        source: str = "",
        page_size: int = 0,
        page_token: str = "",
        scope: Scope = ALL,
    ) -> Page[Event]:
        """Events, newest first by the reporter's clock; of a namespace, those of everything in it.

        Args:
            object: An object, or a namespace.
            since: Only events at or after this time.
            until: Only events before it.
            name: Only events with exactly this name.
            source: Only events of exactly this source.
            page_size: 1 to 1000, 0 for 100.
            page_token: Where the page before ended. An event that comes late is on its own place: pages that were
                read do not move.
            scope: What the caller may see.
        """
        check_object(object)
        for at, what in ((since, "since"), (until, "until")):
            if at is not None:
                check_time(at, what)
        check_text(name, "name", max_chars=255)
        check_text(source, "source", max_chars=255)
        listing = f"events:{[object, _text(since), _text(until), name, source]}"
        return page_of(
            listing,
            await self._store.list_events(
                object,
                since=since,
                until=until,
                name=name,
                source=source,
                limit=page_size_of(page_size),
                after=decode_key(listing, page_token, int, int),
                scope=scope,
            ),
        )

    async def add_comment(self, new: NewComment, *, actor: str) -> Comment:
        """Keeps a comment, once for each id.

        Raises:
            ConflictError: The id belongs to a comment on another object; ``current`` is that one.
        """
        created = await self._store.add_comment(check_comment(new), actor=check_actor(actor), at=self._clock())
        return created.item

    async def edit_comment(self, id: str, text: str, *, actor: str) -> Comment:
        """Gives a comment another text, which shows as ``edited_at``.

        Raises:
            NotFoundError: There is no such comment, or it is in the bin.
        """
        check_id(id, ObjectKind.COMMENT)
        text = _check_comment_text(text)
        return await self._store.edit_comment(id, text, actor=check_actor(actor), at=self._clock())

    async def delete_comment(self, id: str, *, actor: str) -> Comment:
        """Puts a comment into the bin.

        Raises:
            NotFoundError: There is no such comment.
        """
        return await self._store.delete_comment(
            check_id(id, ObjectKind.COMMENT), actor=check_actor(actor), at=self._clock()
        )

    async def restore_comment(self, id: str, *, actor: str) -> Comment:
        """Takes a comment out of the bin.

        Raises:
            NotFoundError: There is no such comment.
        """
        return await self._store.restore_comment(
            check_id(id, ObjectKind.COMMENT), actor=check_actor(actor), at=self._clock()
        )

    async def list_comments(
        self,
        object: str,
        *,
        include_deleted: bool = False,
        page_size: int = 0,
        page_token: str = "",
        scope: Scope = ALL,
    ) -> Page[Comment]:
        """Comments of an object, oldest first."""
        check_object(object)
        listing = f"comments:{object}:{include_deleted}"
        return page_of(
            listing,
            await self._store.list_comments(
                object,
                include_deleted=include_deleted,
                limit=page_size_of(page_size),
                after=decode_key(listing, page_token, int),
                scope=scope,
            ),
        )

    async def set_readme(self, edit: ReadmeEdit, *, actor: str) -> Readme:
        """Sets the page of an object; an empty text removes it."""
        return await self._store.set_readme(check_readme(edit), actor=check_actor(actor), at=self._clock())

    async def get_readme(self, object: str) -> Readme:
        """The page of an object.

        Raises:
            NotFoundError: It has none, or there is no such object.
        """
        return await self._store.get_readme(check_object(object))


def _text(at: datetime | None) -> str:
    return "" if at is None else at.astimezone(UTC).isoformat()
