"""The change feed as messages and back."""

from __future__ import annotations

import json

from modelbox._proto.modelbox import v1 as pb
from modelbox._wire.values import dumps, pack_time, unpack_time
from modelbox.errors import (
    InvalidError,
)
from modelbox.feed import Bookmark, Change, FeedItem, Filter, Resync, ResyncReason, Revision, Snapshot
from modelbox.refs import shown


def pack_filter(value: Filter) -> pb.Filter:
    """As a message."""
    return pb.Filter(namespace=value.namespace, objects=list(value.objects), kinds=list(value.kinds))


def unpack_filter(message: pb.Filter | None) -> Filter:
    """From a message; an absent one lets everything through."""
    if message is None:
        return Filter()
    return Filter(namespace=message.namespace, objects=tuple(message.objects), kinds=tuple(message.kinds))


def pack_change(value: Change) -> pb.Change:
    """As a message."""
    return pb.Change(
        rev=value.rev,
        idx=value.idx,
        namespace=value.namespace,
        object=value.object,
        kind=value.kind,
        action=value.action,
        actor=value.actor,
        at_us=pack_time(value.at),
        state_json=dumps(value.state).encode(),
    )


def unpack_change(message: pb.Change) -> Change:
    """From a message."""
    try:
        state = json.loads(message.state_json)
    except (ValueError, RecursionError) as exc:
        raise InvalidError(f"the state of {shown(message.object)} in change {message.rev} is not JSON") from exc
    return Change(
        rev=message.rev,
        idx=message.idx,
        namespace=message.namespace,
        object=message.object,
        kind=message.kind,
        action=message.action,
        actor=message.actor,
        at=unpack_time(message.at_us),
        state=state,
    )


def pack_feed_item(item: FeedItem) -> pb.WatchResponse:
    """As one message of a watch."""
    match item:
        case Revision():
            changes = [pack_change(change) for change in item.changes]
            return pb.WatchResponse(
                revision=pb.Revision(rev=item.rev, prev_rev=item.prev_rev, changes=changes, token=item.token)
            )
        case Bookmark():
            return pb.WatchResponse(
                bookmark=pb.Bookmark(rev=item.rev, head_rev=item.head_rev, token=item.token),
            )
        case Resync():
            return pb.WatchResponse(resync=pb.Resync(reason=item.reason, message=item.message))


def unpack_feed_item(message: pb.WatchResponse) -> FeedItem | None:
    """From one message of a watch; None for an item that this program does not know yet."""
    if (revision := message.revision) is not None:
        return Revision(
            rev=revision.rev,
            prev_rev=revision.prev_rev,
            changes=tuple(unpack_change(change) for change in revision.changes),
            token=revision.token,
        )
    if (bookmark := message.bookmark) is not None:
        return Bookmark(rev=bookmark.rev, head_rev=bookmark.head_rev, token=bookmark.token)
    if (resync := message.resync) is not None:
        return Resync(reason=_reason(resync.reason), message=resync.message)
    return None


def _reason(text: str) -> ResyncReason:
    # Whatever a newer server's reason is, listing again is the answer to it.
    return ResyncReason(text) if text in ResyncReason.__members__.values() else ResyncReason.DIVERGED


def pack_snapshot(value: Snapshot) -> pb.ListResponse:
    """As a message."""
    return pb.ListResponse(
        items=[pack_change(item) for item in value.items],
        next_page_token=value.next_token,
        token=value.token,
        rev=value.rev,
    )


def unpack_snapshot(message: pb.ListResponse) -> Snapshot:
    """From a message."""
    return Snapshot(
        items=tuple(unpack_change(item) for item in message.items),
        next_token=message.next_page_token,
        token=message.token,
        rev=message.rev,
    )
