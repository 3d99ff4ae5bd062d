"""WatchService over gRPC: the change feed. A reader that does not read is cut off by the boundary."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from modelbox import _wire as wire
from modelbox._proto.modelbox import v1 as pb
from modelbox.runtime.caller import current_holder, current_renewal, current_scope
from modelbox.runtime.grpc.calls import Streaming
from modelbox.runtime.services.feed import FeedService

__all__ = ("WatchAdapter",)


class WatchAdapter(Streaming, pb.WatchServiceBase):
    """See ``protos/modelbox/v1/watch.proto``."""

    def __init__(self, feed: FeedService) -> None:
        self._feed = feed

    async def list(self, message: pb.ListRequest) -> pb.ListResponse:
        """See the proto."""
        return wire.pack_snapshot(
            await self._feed.list(
                wire.unpack_filter(message.filter),
                page_size=message.page_size,
                page_token=message.page_token,
                scope=current_scope(),
            )
        )

    async def watch(self, message: pb.WatchRequest) -> AsyncGenerator[pb.WatchResponse, None]:
        """See the proto."""
        watch = self._feed.watch(
            wire.unpack_filter(message.filter),
            message.token,
            scope=current_scope(),
            holder=current_holder(),
            renew=current_renewal(),
        )
        async with watch as items:
            async for item in items:
                yield wire.pack_feed_item(item)
