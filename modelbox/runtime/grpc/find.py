"""FindService over gRPC: decode, call the service, encode."""

from __future__ import annotations

from modelbox._proto.modelbox import v1 as pb
from modelbox._wire import find as wire
from modelbox.runtime.caller import current_scope
from modelbox.runtime.services.find import FindService

__all__ = ("FindAdapter",)


class FindAdapter(pb.FindServiceBase):
    """See ``protos/modelbox/v1/find.proto``."""

    def __init__(self, find: FindService) -> None:
        self._find = find

    async def find(self, message: pb.FindRequest) -> pb.FindResponse:
        """See the proto."""
        return wire.pack_found(
            await self._find.find(
                message.collection,
                where=message.where,
                order_by=message.order_by,
                within=message.within,
                columns=message.columns,
                include_deleted=message.include_deleted,
                page_size=message.page_size,
                page_token=message.page_token,
                scope=current_scope(),
            )
        )
