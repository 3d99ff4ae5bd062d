"""LineageService over gRPC: decode, call the service, encode."""

from __future__ import annotations

from modelbox._proto.modelbox import v1 as pb
from modelbox._wire import lineage as wire
from modelbox.runtime.caller import current_actor, current_scope
from modelbox.runtime.services.lineage import LineageService

__all__ = ("LineageAdapter",)


class LineageAdapter(pb.LineageServiceBase):
    """See ``protos/modelbox/v1/lineage.proto``."""

    def __init__(self, lineage: LineageService) -> None:
        self._lineage = lineage

    async def add_edges(self, message: pb.AddEdgesRequest) -> pb.AddEdgesResponse:
        """See the proto."""
        return pb.AddEdgesResponse(
            added=await self._lineage.add_edges(
                wire.unpack_new_edges(message), actor=current_actor(), scope=current_scope()
            )
        )

    async def remove_edges(self, message: pb.RemoveEdgesRequest) -> pb.RemoveEdgesResponse:
        """See the proto."""
        edges = wire.unpack_new_edges(message).edges
        return pb.RemoveEdgesResponse(removed=await self._lineage.remove_edges(edges, actor=current_actor()))

    async def get_lineage(self, message: pb.GetLineageRequest) -> pb.GetLineageResponse:
        """See the proto."""
        return wire.pack_lineage(
            await self._lineage.get_lineage(
                message.objects,
                direction=message.direction or "both",
                max_depth=message.max_depth,
                scope=current_scope(),
            )
        )
