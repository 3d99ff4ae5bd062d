"""Events, comments and readmes as messages and back."""

from __future__ import annotations

from modelbox._proto.modelbox import v1 as pb
from modelbox._wire.values import (
    pack_object,
    pack_optional_time,
    pack_time,
    unpack_object,
    unpack_optional_time,
    unpack_time,
    unpack_time_or_now,
)
from modelbox.tracking import Comment, Event, NewComment, NewEvent, ObjectKind, Readme, ReadmeEdit, new_id


def pack_event(value: Event, message: type[pb.Event] = pb.Event) -> pb.Event:
    """As a message, of another codec's class if need be."""
    return message(
        id=value.id,
        namespace=value.namespace,
        object=value.object,
        name=value.name,
        source=value.source,
        at_us=pack_time(value.at),
        received_at_us=pack_time(value.received_at),
        metadata_json=pack_object(value.metadata, "an event's metadata"),
        created_by=value.created_by,
        mod_rev=value.mod_rev,
    )


def unpack_event(message: pb.Event) -> Event:
    """From a message."""
    return Event(
        id=message.id,
        namespace=message.namespace,
        object=message.object,
        name=message.name,
        source=message.source,
        at=unpack_time(message.at_us),
        received_at=unpack_time(message.received_at_us),
        metadata=unpack_object(message.metadata_json, "an event's metadata"),
        created_by=message.created_by,
        mod_rev=message.mod_rev,
    )


def pack_new_event(value: NewEvent) -> pb.LogEventRequest:
    """As a request."""
    return pb.LogEventRequest(
        id=value.id,
        object=value.object,
        name=value.name,
        source=value.source,
        at_us=pack_time(value.at),
        metadata_json=pack_object(value.metadata, "an event's metadata"),
    )


def unpack_new_event(message: pb.LogEventRequest) -> NewEvent:
    """From a request; without an id or a time it is a new one that happens now."""
    return NewEvent(
        id=message.id or new_id(ObjectKind.EVENT),
        object=message.object,
        name=message.name,
        source=message.source,
        at=unpack_time_or_now(message.at_us),
        metadata=unpack_object(message.metadata_json, "an event's metadata"),
    )


def pack_comment(value: Comment) -> pb.Comment:
    """As a message."""
    return pb.Comment(
        id=value.id,
        namespace=value.namespace,
        object=value.object,
        text=value.text,
        created_at_us=pack_time(value.created_at),
        created_by=value.created_by,
        edited_at_us=pack_optional_time(value.edited_at),
        deleted_at_us=pack_optional_time(value.deleted_at),
        mod_rev=value.mod_rev,
    )


def unpack_comment(message: pb.Comment) -> Comment:
    """From a message."""
    return Comment(
        id=message.id,
        namespace=message.namespace,
        object=message.object,
        text=message.text,
        created_at=unpack_time(message.created_at_us),
        created_by=message.created_by,
        edited_at=unpack_optional_time(message.edited_at_us),
        deleted_at=unpack_optional_time(message.deleted_at_us),
        mod_rev=message.mod_rev,
    )


def pack_new_comment(value: NewComment) -> pb.AddCommentRequest:
    """As a request."""
    return pb.AddCommentRequest(id=value.id, object=value.object, text=value.text)


def unpack_new_comment(message: pb.AddCommentRequest) -> NewComment:
    """From a request; makes an id where it has none."""
    return NewComment(id=message.id or new_id(ObjectKind.COMMENT), object=message.object, text=message.text)


def pack_readme_edit(value: ReadmeEdit) -> pb.SetReadmeRequest:
    """As a request."""
    return pb.SetReadmeRequest(object=value.object, text=value.text)


def unpack_readme_edit(message: pb.SetReadmeRequest) -> ReadmeEdit:
    """From a request."""
    return ReadmeEdit(object=message.object, text=message.text)


def pack_readme(value: Readme) -> pb.Readme:
    """As a message."""
    return pb.Readme(
        object=value.object,
        text=value.text,
        updated_at_us=pack_time(value.updated_at),
        updated_by=value.updated_by,
        mod_rev=value.mod_rev,
    )


def unpack_readme(message: pb.Readme) -> Readme:
    """From a message."""
    return Readme(
        object=message.object,
        text=message.text,
        updated_at=unpack_time(message.updated_at_us),
        updated_by=message.updated_by,
        mod_rev=message.mod_rev,
    )
