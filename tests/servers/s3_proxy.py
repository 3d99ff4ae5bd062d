"""A proxy in front of an S3 server that does what a bad day does.

It passes requests on as they are, with their ``Host`` header, so signatures hold. `S3Proxy.fault` decides for each
request what happens to it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

import aiohttp
from aiohttp import web

__all__ = ("Fault", "Request", "S3Proxy")

_CHECKSUM = "x-amz-checksum-sha256"

Fault = Literal["refuse", "slow_down", "reset", "cut", "corrupt_answer", "corrupt_body", "lose", "hang"]
"""What happens to a request:

``refuse`` 403, ``slow_down`` 503 as stores send it when they are overloaded, ``reset`` the connection ends without an
answer, ``cut`` it ends in the middle of the answer, ``corrupt_answer`` and ``corrupt_body`` one bit changes, ``lose``
the store never sees it and success is answered, ``hang`` no answer for as long as the peer waits.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What `S3Proxy.fault` decides by."""

    method: str
    path: str
    query: str


class S3Proxy:
    """Runs in a thread of its own; an ordinary context manager.

    Attributes:
        checks_sha256: Whether a sha256 that comes with a body is checked, remembered and told, as newer stores do.
        fault: Called for each request, in that thread.
        checked: Those that were, by path; several proxies may share it.
        requests: Those that came.
        body_bytes: How much of bodies and answers passed.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self.fault: Callable[[Request], Fault | None] = lambda request: None
        self.checks_sha256 = False
        self.checked: dict[str, str] = {}
        self.requests: list[Request] = []
        self.body_bytes = 0
        self.port = 0
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def endpoint(self) -> str:
        """Its address, for clients."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        app = web.Application(client_max_size=1 << 40)
        app.router.add_route("*", "/{tail:.*}", self._pass)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        async with aiohttp.ClientSession(
            auto_decompress=False, timeout=aiohttp.ClientTimeout(total=None)
        ) as self._session:
            await site.start()
            self.port = runner.addresses[0][1]
            self._ready.set()
            await self._stop.wait()
            await runner.cleanup()

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        seen = Request(method=request.method, path=request.path, query=request.query_string)
        self.requests.append(seen)
        fault = self.fault(seen)
        match fault:
            case "refuse":
                return web.Response(status=403, text="<Error><Code>AccessDenied</Code></Error>")
            case "slow_down":
                return web.Response(status=503, text="<Error><Code>SlowDown</Code></Error>")
            case "hang":
                await asyncio.sleep(3600)
            case "reset":
                assert request.transport is not None
                request.transport.abort()
                raise ConnectionResetError
        body = bytearray(await request.read())
        self.body_bytes += len(body)
        checksum = request.headers.get(_CHECKSUM, "") if self.checks_sha256 and request.method == "PUT" else ""
        if checksum:
            if checksum != base64.b64encode(hashlib.sha256(body).digest()).decode():
                return web.Response(status=400, text="<Error><Code>BadDigest</Code></Error>")
            self.checked[request.path] = checksum
        if fault == "lose":
            return web.Response(status=200, headers={"ETag": '"d41d8cd98f00b204e9800998ecf8427e"'})
        if fault == "corrupt_body" and body:
            body[len(body) // 2] ^= 1
        headers = {key: value for key, value in request.headers.items() if key.lower() not in ("expect", "connection")}
        async with self._session.request(
            request.method,
            f"{self._target}{request.raw_path}",
            data=io.BytesIO(body) if body else None,
            headers=headers,
            allow_redirects=False,
            skip_auto_headers=["Content-Type", "Accept", "User-Agent"],
        ) as answer:
            return await self._answer(request, answer, fault)

    async def _answer(
        self, request: web.Request, answer: aiohttp.ClientResponse, fault: Fault | None
    ) -> web.StreamResponse:
        skipped = ("transfer-encoding", "connection", "date")
        headers = {key: value for key, value in answer.headers.items() if key.lower() not in skipped}
        if request.method == "HEAD" and answer.status == 200 and request.path in self.checked:
            headers |= {_CHECKSUM: self.checked[request.path], "x-amz-checksum-type": "FULL_OBJECT"}
        response = web.StreamResponse(status=answer.status, headers=headers)
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        sent = 0
        async for chunk in answer.content.iter_chunked(1 << 16):
            if fault == "corrupt_answer":
                chunk, fault = bytes([chunk[0] ^ 1]) + chunk[1:], None
            await response.write(chunk)
            sent += len(chunk)
            self.body_bytes += len(chunk)
            if fault == "cut":
                assert request.transport is not None
                request.transport.abort()
                raise ConnectionResetError
        await response.write_eof()
        return response
