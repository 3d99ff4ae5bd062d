"""The audit log over HTTP: pages as JSON, and all of it as a stream of lines."""

from __future__ import annotations

import json
from contextlib import aclosing

import anyio
from aiohttp import web

from modelbox.audit import AuditEntry, AuditFilter
from modelbox.objects import to_json
from modelbox.runtime.caller import current_scope
from modelbox.runtime.metrics import Metrics
from modelbox.runtime.rest.bodies import flag_of, page_of, paging_of, text_of, texts_of, time_of
from modelbox.runtime.services.audit import AuditService

__all__ = ("AuditRoutes",)


class AuditRoutes:
    """Handlers: decode, call the service, encode.

    Args:
        audit: The service.
        metrics: Where cut off readers are counted.
        stall_timeout_s: How long a reader may leave unread what is sent.
    """

    def __init__(self, audit: AuditService, metrics: Metrics, *, stall_timeout_s: float) -> None:
        self._audit = audit
        self._metrics = metrics
        self._stall_timeout_s = stall_timeout_s

    def routes(self) -> list[web.RouteDef]:
        """Which path leads where."""
        return [web.get("/api/v1/audit", self.list_audit), web.get("/api/v1/audit/export", self.export)]

    async def list_audit(self, request: web.Request) -> web.StreamResponse:
        """GET ?actor=&namespace=&object=&kind=&action=&token_id=&address=&request_id=&since=&until=&oldest_first=."""
        size, token = paging_of(request)
        page = await self._audit.list(
            _filter_of(request),
            oldest_first=flag_of(request, "oldest_first"),
            page_size=size,
            page_token=token,
            scope=current_scope(),
        )
        return page_of(page)

    async def export(self, request: web.Request) -> web.StreamResponse:
        """GET, with the same filter: every entry that fits, the oldest first, one JSON object a line.

        The last line is empty: without it, the answer was cut off.
        """
        async with aclosing(self._audit.export(_filter_of(request), scope=current_scope())) as batches:
            # The first one before the headers, as what is wrong with the question shows there.
            first = await anext(batches, None) or ()
            response = web.StreamResponse(
                headers={
                    "Cache-Control": "no-store",
                    "Content-Type": "application/x-ndjson",
                    "Content-Disposition": 'attachment; filename="audit.jsonl"',
                    "X-Content-Type-Options": "nosniff",
                }
            )
            await response.prepare(request)
            await self._write(request, response, first)
            async for batch in batches:
                await self._write(request, response, batch)
        await response.write(b"\n")
        await response.write_eof()
        return response

    async def _write(self, request: web.Request, response: web.StreamResponse, entries: tuple[AuditEntry, ...]) -> None:
        lines = "".join(f"{json.dumps(to_json(one), ensure_ascii=False, separators=(',', ':'))}\n" for one in entries)
        try:
            with anyio.fail_after(self._stall_timeout_s):
                await response.write(lines.encode())
        except TimeoutError as exc:
            self._metrics.count_slow_reader("http")
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("the peer does not read") from exc


def _filter_of(request: web.Request) -> AuditFilter:
    return AuditFilter(
        actor=text_of(request, "actor"),
        namespace=text_of(request, "namespace"),
        object=text_of(request, "object"),
        kinds=tuple(texts_of(request, "kind")),
        actions=tuple(texts_of(request, "action")),
        token_id=text_of(request, "token_id"),
        address=text_of(request, "address"),
        request_id=text_of(request, "request_id"),
        since=time_of(request, "since"),
        until=time_of(request, "until"),
    )
