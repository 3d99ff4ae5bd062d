"""The change feed as server-sent events: GET /api/v1/changes."""

from __future__ import annotations

import json
from collections.abc import Iterator

import anyio
from aiohttp import web

from modelbox.feed import Bookmark, FeedItem, Filter, Resync, Revision
from modelbox.objects import to_json
from modelbox.runtime.caller import current_holder, current_renewal, current_scope
from modelbox.runtime.metrics import Metrics
from modelbox.runtime.services.feed import FeedService

__all__ = ("ChangeRoutes",)


class ChangeRoutes:
    """The handler.

    Args:
        feed: The service.
        metrics: Where cut off readers are counted.
        send_timeout_s: How long a reader may leave unread what is sent.
    """

    def __init__(self, feed: FeedService, metrics: Metrics, *, send_timeout_s: float) -> None:
        self._feed = feed
        self._metrics = metrics
        self._send_timeout_s = send_timeout_s

    async def follow(self, request: web.Request) -> web.StreamResponse:
        """Events ``revision``, ``bookmark`` and ``resync``; their ids are resume tokens.

        The token is ``Last-Event-ID`` (browsers send it when they reconnect) or ``?token=``; ``?namespace=``,
        ``?object=`` and ``?kind=`` filter, the last two may be repeated.
        """
        query = request.query
        wanted = Filter(
            namespace=query.get("namespace", ""),
            objects=tuple(query.getall("object", ())),
            kinds=tuple(query.getall("kind", ())),
        )
        token = request.headers.get("Last-Event-ID") or query.get("token", "")
        watch = self._feed.watch(wanted, token, scope=current_scope(), holder=current_holder(), renew=current_renewal())
        async with watch as items:
            response = web.StreamResponse(
                headers={
                    "Cache-Control": "no-store",
                    "Content-Type": "text/event-stream; charset=utf-8",
                    "X-Accel-Buffering": "no",
                    "X-Content-Type-Options": "nosniff",
                }
            )
            await response.prepare(request)
            async for item in items:
                await self._write(request, response, "".join(_event(item)).encode())
            await response.write_eof()
        return response

    async def _write(self, request: web.Request, response: web.StreamResponse, data: bytes) -> None:
        try:
            with anyio.fail_after(self._send_timeout_s):
                await response.write(data)
        except TimeoutError as exc:
            self._metrics.count_slow_reader("http")
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("the peer does not read") from exc


def _event(item: FeedItem) -> Iterator[str]:
    match item:
        case Revision(token=token):
            yield f"event: revision\nid: {token}\n"
        case Bookmark(token=token):
            yield f"event: bookmark\nid: {token}\n"
        case Resync():
            # An empty id makes a browser forget the token that is of no use any more.
            yield "event: resync\nid\n"
    yield f"data: {json.dumps(to_json(item), ensure_ascii=False, separators=(',', ':'))}\n\n"
