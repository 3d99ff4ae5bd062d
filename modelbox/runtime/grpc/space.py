"""SpaceService over gRPC: decode, call the service, encode."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from modelbox._proto.modelbox import v1 as pb
from modelbox._wire import space as wire
from modelbox.runtime.caller import current_actor, current_scope
from modelbox.runtime.grpc.calls import Streaming
from modelbox.runtime.services.space import SpaceService

__all__ = ("SpaceAdapter",)


class SpaceAdapter(Streaming, pb.SpaceServiceBase):
    """See ``protos/modelbox/v1/space.proto``."""

    def __init__(self, space: SpaceService) -> None:
        self._space = space

    async def set_quota(self, message: pb.SetQuotaRequest) -> pb.Quota:
        """See the proto."""
        return wire.pack_quota(
            await self._space.set_quota(message.namespace, message.limit_bytes, actor=current_actor())
        )

    async def delete_quota(self, message: pb.DeleteQuotaRequest) -> pb.DeleteQuotaResponse:
        """See the proto."""
        await self._space.delete_quota(message.namespace)
        return pb.DeleteQuotaResponse()

    async def list_quotas(self, message: pb.ListQuotasRequest) -> pb.ListQuotasResponse:
        """See the proto."""
        return pb.ListQuotasResponse(
            quotas=[
                wire.pack_quota(one) for one in await self._space.list_quotas(message.namespace, scope=current_scope())
            ]
        )

    async def list_usage(self, message: pb.ListUsageRequest) -> pb.ListUsageResponse:
        """See the proto."""
        page = await self._space.list_usage(
            message.namespace, page_size=message.page_size, page_token=message.page_token, scope=current_scope()
        )
        return pb.ListUsageResponse(usage=[wire.pack_usage(one) for one in page.items], next_page_token=page.next_token)

    async def get_space_totals(self, message: pb.GetSpaceTotalsRequest) -> pb.SpaceTotals:
        """See the proto."""
        return wire.pack_totals(await self._space.totals())

    async def collect(self, message: pb.CollectRequest) -> AsyncGenerator[pb.Collected, None]:
        """See the proto."""
        async for said in self._space.collect(dry_run=message.dry_run):
            yield wire.pack_collected(said)

    async def check_space(self, message: pb.CheckSpaceRequest) -> AsyncGenerator[pb.SpaceCheck, None]:
        """See the proto."""
        async for said in self._space.check(checksums=message.checksums, repair=message.repair):
            yield wire.pack_check(said)
