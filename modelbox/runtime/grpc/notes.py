"""NoteService over gRPC: decode, call the service, encode."""

from __future__ import annotations

from typing import Any

from modelbox._proto.modelbox import v1 as pb
from modelbox._wire import notes as wire
from modelbox._wire.values import unpack_optional_time
from modelbox.runtime.caller import current_actor, current_scope
from modelbox.runtime.services.notes import NoteService

__all__ = ("NoteAdapter",)


class NoteAdapter(pb.NoteServiceBase):
    """See ``protos/modelbox/v1/notes.proto``.

    Args:
        notes: The service.
        messages: The classes that events are answered with; for `Boundary.direct_google` those of its codec.
    """

    def __init__(self, notes: NoteService, messages: Any = pb) -> None:
        self._notes = notes
        self._messages = messages

    async def log_event(self, message: pb.LogEventRequest) -> pb.Event:
        """See the proto."""
        created = await self._notes.log_event(wire.unpack_new_event(message), actor=current_actor())
        return wire.pack_event(created.item, self._messages.Event)

    async def list_events(self, message: pb.ListEventsRequest) -> pb.ListEventsResponse:
        """See the proto."""
        page = await self._notes.list_events(
            message.object,
            since=unpack_optional_time(message.since_us),
            until=unpack_optional_time(message.until_us),
            name=message.name,
            source=message.source,
            page_size=message.page_size,
            page_token=message.page_token,
            scope=current_scope(),
        )
        return pb.ListEventsResponse(
            events=[wire.pack_event(item) for item in page.items], next_page_token=page.next_token
        )

    async def add_comment(self, message: pb.AddCommentRequest) -> pb.Comment:
        """See the proto."""
        return wire.pack_comment(await self._notes.add_comment(wire.unpack_new_comment(message), actor=current_actor()))

    async def edit_comment(self, message: pb.EditCommentRequest) -> pb.Comment:
        """See the proto."""
        return wire.pack_comment(await self._notes.edit_comment(message.id, message.text, actor=current_actor()))

    async def list_comments(self, message: pb.ListCommentsRequest) -> pb.ListCommentsResponse:
        """See the proto."""
        page = await self._notes.list_comments(
            message.object,
            include_deleted=message.include_deleted,
            page_size=message.page_size,
            page_token=message.page_token,
            scope=current_scope(),
        )
        return pb.ListCommentsResponse(
            comments=[wire.pack_comment(item) for item in page.items], next_page_token=page.next_token
        )

    async def set_readme(self, message: pb.SetReadmeRequest) -> pb.Readme:
        """See the proto."""
        return wire.pack_readme(await self._notes.set_readme(wire.unpack_readme_edit(message), actor=current_actor()))

    async def get_readme(self, message: pb.GetReadmeRequest) -> pb.Readme:
        """See the proto."""
        return wire.pack_readme(await self._notes.get_readme(message.object))
