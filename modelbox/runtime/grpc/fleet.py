"""FleetService over gRPC: decode, call the service, encode."""

from __future__ import annotations

from modelbox import _wire as wire
from modelbox._proto.modelbox import v1 as pb
from modelbox.runtime.caller import current_scope
from modelbox.runtime.services.fleet import FleetService

__all__ = ("FleetAdapter",)


class FleetAdapter(pb.FleetServiceBase):
    """See ``protos/modelbox/v1/fleet.proto``."""

    def __init__(self, fleet: FleetService) -> None:
        self._fleet = fleet

    async def report(self, message: pb.ReportRequest) -> pb.ReportResponse:
        """See the proto."""
        heartbeat_s = await self._fleet.report([wire.unpack_report(report) for report in message.reports])
        return pb.ReportResponse(heartbeat_ms=round(heartbeat_s * 1000))

    async def list_instances(self, message: pb.ListInstancesRequest) -> pb.ListInstancesResponse:
        """See the proto."""
        page = await self._fleet.list_instances(
            path=message.path,
            include_lost=message.include_lost,
            page_size=message.page_size,
            page_token=message.page_token,
            scope=current_scope(),
        )
        return pb.ListInstancesResponse(
            instances=[wire.pack_instance(item) for item in page.items], next_page_token=page.next_token
        )
