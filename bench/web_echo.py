"""The least that a request costs in a server of aiohttp and of grpclib: both send back the body that they get.

``python -m bench.web_echo`` is the process: on uvloop, as the sidecar is. A third port answers whatever comes with one
constant, without a server at all: what is measured there is the load generator's own limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from aiohttp import web
from grpclib.const import Cardinality, Handler
from grpclib.encoding.base import CodecBase
from grpclib.server import Server, Stream

from bench.oip import METHOD

__all__ = ("WebEcho", "web_echo")

_CONSTANT = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


@dataclass(frozen=True, slots=True)
class WebEcho:
    """Addresses of the process, ``host:port``."""

    http: str
    grpc: str
    constant: str


@contextlib.contextmanager
def web_echo() -> Iterator[WebEcho]:
    """The process."""
    command = [sys.executable, "-m", "bench.web_echo"]
    with subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield WebEcho(*process.stdout.readline().split())
        finally:
            process.kill()


class _Raw(CodecBase):
    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        return cast(bytes, message)

    def decode(self, data: bytes, message_type: Any) -> bytes:
        return data


class _Service:
    async def _echo(self, stream: Stream[Any, Any]) -> None:
        await stream.send_message(await stream.recv_message())

    def __mapping__(self) -> dict[str, Handler]:
        return {METHOD: Handler(self._echo, Cardinality.UNARY_UNARY, bytes, bytes)}


class _Constant(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(_CONSTANT)


async def _answer(request: web.BaseRequest) -> web.Response:
    return web.Response(body=await request.content.read(), content_type="application/json")


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    grpc = Server([_Service()], codec=_Raw())
    await grpc.start("127.0.0.1", 0)
    assert grpc._server is not None
    servers = [
        await loop.create_server(web.Server(_answer, access_log=None), "127.0.0.1", 0),
        cast(asyncio.Server, grpc._server),
        await loop.create_server(_Constant, "127.0.0.1", 0),
    ]
    print(*(f"127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers), flush=True)
    await servers[0].serve_forever()


if __name__ == "__main__":
    import uvloop

    uvloop.run(_serve())
