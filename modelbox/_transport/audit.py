"""Remote calls about the audit log, with our objects in and out."""

from __future__ import annotations

from modelbox._proto.modelbox import v1 as pb
from modelbox._transport.grpc import Connection, page, rpc
from modelbox._wire import audit
from modelbox.audit import AuditEntry, AuditFilter
from modelbox.objects import Page

__all__ = ("AuditCalls",)

_LIST = rpc("AuditService", "ListAudit", pb.ListAuditRequest, pb.ListAuditResponse, idempotent=True)


class AuditCalls:
    """The server's calls about the audit log.

    Concurrency: any number of tasks of one event loop.
    Errors: as those of `Connection`.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def list(
        self, wanted: AuditFilter, *, oldest_first: bool = False, page_size: int = 0, page_token: str = ""
    ) -> Page[AuditEntry]:
        """One page of entries; it may be empty before the last."""
        return await self._connection.unary(
            _LIST,
            pb.ListAuditRequest(
                filter=audit.pack_audit_filter(wanted),
                oldest_first=oldest_first,
                page_size=page_size,
                page_token=page_token,
            ),
            lambda answer: page(answer.entries, audit.unpack_audit_entry, answer.next_page_token),
        )
