"""The application that Prometheus scrapes."""

from __future__ import annotations

from collections.abc import Callable

import anyio.to_thread
from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from modelbox._serving.hello import HelloWatch

__all__ = ("scrape_app",)


def scrape_app(render: Callable[[], bytes], hello: HelloWatch) -> web.Application:
    """GET /metrics.

    Args:
        render: Gives the metrics as Prometheus reads them; called in a thread.
        hello: Told of every request.
    """

    async def scrape(request: web.Request) -> web.Response:
        hello.greet(request)
        body = await anyio.to_thread.run_sync(render)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    app = web.Application()
    app.add_routes([web.get("/metrics", scrape)])
    return app
