"""The real server behind a hook that may alter each of its answers.

`LyingServer` stands before a server and passes on every call and every file; what it answers with is the server's own
answer, unless `answers`, `refusals` or `files` say otherwise. So a lie is always one change to something true, and
whoever is lied to cannot tell by anything else.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp import web
from grpclib.client import Channel
from grpclib.const import Cardinality, Handler, Status
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError
from grpclib.server import Server, Stream
from multidict import MultiDict

from modelbox._proto.modelbox import v1 as pb

__all__ = ("LyingServer",)

Answers = Iterable[Any]


class _Bytes(CodecBase):
    """Messages as they are on the wire."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        return bytes(message)

    def decode(self, data: bytes, message_type: Any) -> bytes:
        return data


class LyingServer:
    """Stands before a server; runs in a thread of its own. Use as a context manager.

    Attributes:
        answers: By the name of a method (``Resolve``): takes an answer, gives what is sent in its place, which may be
            several messages of a stream, or none.
        refusals: By the name of a method, or ``*``: the status that a call ends with before the server hears of it.
        files: Takes the path and the bytes of a file, gives those that are sent; bytes that it has not said are
            announced as well as those that it has.
        calls: Every call that came: when, on the clock of this process, and which method.
        reads: The path of every file that was asked for.
        port: Where it speaks HTTP.
        grpc_port: Where it speaks gRPC.
        advertised: What clients are told of the latter, if they are to come by another way.
    """

    def __init__(self, *, grpc: str, http: str) -> None:
        self._grpc = grpc
        self._http = http
        self.answers: dict[str, Callable[[Any], Answers]] = {}
        self.refusals: dict[str, Status] = {}
        self.files: Callable[[str, bytes], bytes] | None = None
        self.calls: list[tuple[float, str]] = []
        self.reads: list[str] = []
        self.port = 0
        self.grpc_port = 0
        self.advertised = ""
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lying server", daemon=True)

    @property
    def url(self) -> str:
        """Its base address, as a client takes it."""
        return f"http://127.0.0.1:{self.port}"

    def called(self, method: str) -> int:
        """How often a method was called."""
        return sum(name == method for _, name in self.calls)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(60)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        host, _, port = self._grpc.rpartition(":")
        self._channel = Channel(host, int(port), codec=_Bytes())
        grpc = Server([_Everything(self._handlers())], codec=_Bytes())
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.grpc_port = listener.getsockname()[1]
            await grpc.start(sock=listener.dup())
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self._http_call)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        async with aiohttp.ClientSession(auto_decompress=False) as self._session:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.port = runner.addresses[0][1]
            self._started.set()
            await self._stop.wait()
            grpc.close()
            await runner.cleanup()
            self._channel.close()
            left = asyncio.all_tasks() - {asyncio.current_task()}
            for task in left:
                task.cancel()
            if left:
                await asyncio.wait(left)

    # -- gRPC ------------------------------------------------------------------------------------------------------

    def _handlers(self) -> dict[str, Handler]:
        bases: list[Any] = [
            base for name, base in inspect.getmembers(pb, inspect.isclass) if name.endswith("ServiceBase")
        ]
        return {
            path: handler._replace(func=self._forward(path, handler))
            for base in bases
            for path, handler in base().__mapping__().items()
        }

    def _forward(self, path: str, handler: Handler) -> Callable[[Stream[Any, Any]], Awaitable[None]]:
        name = path.rpartition("/")[2]

        async def forward(stream: Stream[Any, Any]) -> None:
            self.calls.append((time.monotonic(), name))
            if (status := self.refusals.get(name, self.refusals.get("*"))) is not None:
                raise GRPCError(status, "the server has trouble")
            assert stream.metadata is not None
            metadata = MultiDict(
                (key, value) for key, value in stream.metadata.items() if not key.startswith(("te", "grpc-"))
            )
            onward = self._channel.request(path, handler.cardinality, bytes, bytes, metadata=metadata)
            try:
                async with onward:
                    if handler.cardinality in (Cardinality.UNARY_UNARY, Cardinality.UNARY_STREAM):
                        request = await stream.recv_message()
                        assert request is not None
                        await onward.send_message(request, end=True)
                    else:
                        async for request in stream:
                            await onward.send_message(request)
                        await onward.end()
                    async for answer in onward:
                        for told in self._told(name, handler.reply_type, answer):
                            await stream.send_message(told)
            except GRPCError as exc:
                await stream.send_trailing_metadata(
                    status=exc.status, status_message=exc.message, metadata=_error_details(onward)
                )

        return forward

    def _told(self, name: str, reply_type: Any, answer: Any) -> Answers:
        tamper = self.answers.get(name)
        return [answer] if tamper is None else [bytes(told) for told in tamper(reply_type.parse(answer))]

    # -- HTTP ------------------------------------------------------------------------------------------------------

    async def _http_call(self, request: web.Request) -> web.StreamResponse:
        headers = {key: value for key, value in request.headers.items() if key.lower() not in ("host", "connection")}
        url = f"http://{self._http}{request.raw_path}"
        body = await request.read()
        async with self._session.request(
            request.method, url, data=body or None, headers=headers, allow_redirects=False
        ) as answer:
            content = await answer.read()
            kept = {
                key: value
                for key, value in answer.headers.items()
                if key.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server")
            }
            if request.path == "/api/v1/server":
                said = json.loads(content)
                content = json.dumps(said | {"grpc_address": self.advertised or f"127.0.0.1:{self.grpc_port}"}).encode()
            elif "/files/" in request.path and request.method == "GET":
                self.reads.append(request.path)
                if self.files is not None and answer.status in (200, 206):
                    content = self.files(request.path, content)
            return web.Response(status=answer.status, body=content, headers=kept)


class _Everything:
    """What grpclib takes for a service."""

    def __init__(self, handlers: dict[str, Handler]) -> None:
        self._handlers = handlers

    def __mapping__(self) -> dict[str, Handler]:
        return self._handlers


def _error_details(onward: Any) -> dict[str, Any]:
    told = onward.trailing_metadata or {}
    return {key: value for key, value in told.items() if not key.startswith("grpc-")}
