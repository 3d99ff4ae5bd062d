"""AuditService over gRPC: decode, call the service, encode."""

from __future__ import annotations

from modelbox._proto.modelbox import v1 as pb
from modelbox._wire import audit as wire
from modelbox.runtime.caller import current_scope
from modelbox.runtime.services.audit import AuditService

__all__ = ("AuditAdapter",)


class AuditAdapter(pb.AuditServiceBase):
    """See ``protos/modelbox/v1/audit.proto``."""

    def __init__(self, audit: AuditService) -> None:
        self._audit = audit

    async def list_audit(self, message: pb.ListAuditRequest) -> pb.ListAuditResponse:
        """See the proto."""
        page = await self._audit.list(
            wire.unpack_audit_filter(message.filter),
            oldest_first=message.oldest_first,
            page_size=message.page_size,
            page_token=message.page_token,
            scope=current_scope(),
        )
        return pb.ListAuditResponse(
            entries=[wire.pack_audit_entry(one) for one in page.items], next_page_token=page.next_token
        )
