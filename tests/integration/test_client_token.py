"""Where a client's token goes: to the server with every call, and to nobody else, wherever it is sent to."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Server, Stream

from modelbox._proto.modelbox import v1 as pb
from modelbox._serving.codec import WireCodec
from modelbox._transport.source import RemoteSource
from modelbox._wire import DIRECT_HEADER
from modelbox.config import load_client_config
from modelbox.errors import ConfigError, ModelBoxError, NotAuthenticated
from modelbox.manifest import ManifestFile
from modelbox.refs import Digest, ModelRef
from tests.certificates import put

SECRET = "mbx_q7_AbCdEfGhIjKlMnOpQrStUvWxYz012345"
OTHER = "mbx_q8_ZyXwVuTsRqPoNmLkJiHgFeDcBa543210"
REF = ModelRef.parse("ns/model@1")
CONTENT = bytes(2 << 20)
FILE = ManifestFile(
    path="weights.bin",
    size_bytes=len(CONTENT),
    digest=Digest(f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"),
)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


class World:
    """A server that sends its clients elsewhere, and what both places are told."""

    def __init__(self) -> None:
        self.at_server: list[str | None] = []
        self.at_grpc: list[str | None] = []
        self.elsewhere: list[dict[str, str]] = []
        self.leads = ""
        self.accepted = SECRET
        self.grpc_address = ""
        self.url = ""
        self.other_url = ""

    async def start(self, stack: AsyncExitStack) -> None:
        self.url = await self._serve(stack, self._answer)
        self.other_url = await self._serve(stack, self._take)
        grpc = Server([self], codec=WireCodec())
        sock = socket.create_server(("127.0.0.1", 0))
        await grpc.start(sock=sock)

        async def stop() -> None:
            grpc.close()
            await grpc.wait_closed()

        stack.push_async_callback(stop)
        self.grpc_address = f"127.0.0.1:{sock.getsockname()[1]}"

    async def _serve(self, stack: AsyncExitStack, answer: Any) -> str:
        runner = web.ServerRunner(web.Server(answer))
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert runner.addresses
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.at_server.append(request.headers.get("authorization"))
        if request.path == "/api/v1/server":
            info = {"server_id": "s", "version": "1", "grpc_address": self.grpc_address, "http_address": self.url}
            return web.json_response(info)
        if self.leads == "redirect":
            return web.Response(status=307, headers={"Location": self.other_url + request.path})
        if self.leads == "signed" and DIRECT_HEADER in request.headers:
            signed = {"url": f"{self.other_url}/blob?X-Amz-Signature=0", "size_bytes": len(CONTENT)}
            return web.json_response(signed, headers={DIRECT_HEADER: "1"})
        return web.Response(body=CONTENT)

    async def _take(self, request: web.BaseRequest) -> web.StreamResponse:
        self.elsewhere.append({name.lower(): value for name, value in request.headers.items()})
        return web.Response(body=CONTENT)

    def __mapping__(self) -> dict[str, Handler]:
        path = "/modelbox.v1.RegistryService/ListNamespaces"
        message = (pb.ListNamespacesRequest, pb.ListNamespacesResponse)
        return {path: Handler(self._list, Cardinality.UNARY_UNARY, *message)}

    async def _list(self, stream: Stream[Any, Any]) -> None:
        assert stream.metadata is not None
        said = stream.metadata.get("authorization")
        self.at_grpc.append(said if isinstance(said, str) else None)
        await stream.recv_message()
        if said != f"Bearer {self.accepted}":
            raise GRPCError(Status.UNAUTHENTICATED, "the token is not valid any more")
        await stream.send_message(pb.ListNamespacesResponse())


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        world = World()
        await world.start(stack)
        yield world


async def download(source: RemoteSource) -> bytes:
    async with source.http.open_version_file(REF, FILE) as stream:
        return b"".join([chunk async for chunk in stream])


def source_of(world: World, tmp_path: Path, **settings: Any) -> RemoteSource:
    return RemoteSource(load_client_config(env={"HOME": str(tmp_path), "USER": "ada"}, url=world.url, **settings))


async def test_every_call_brings_it(world: World, tmp_path: Path) -> None:
    source = source_of(world, tmp_path, token=SECRET)
    try:
        await source.grpc.list_namespaces()
        assert await download(source) == CONTENT
    finally:
        await source.aclose()
    assert world.at_grpc == [f"Bearer {SECRET}"]
    assert len(world.at_server) >= 2
    assert set(world.at_server) == {f"Bearer {SECRET}"}


async def test_without_one_nothing_is_said(world: World, tmp_path: Path) -> None:
    source = source_of(world, tmp_path)
    try:
        with pytest.raises(ModelBoxError):
            await source.grpc.list_namespaces()
        await download(source)
    finally:
        await source.aclose()
    assert set(world.at_server) | set(world.at_grpc) == {None}


async def test_a_redirect_is_not_followed_with_it(world: World, tmp_path: Path) -> None:
    world.leads = "redirect"
    source = source_of(world, tmp_path, token=SECRET)
    try:
        with pytest.raises(ModelBoxError) as caught:
            await download(source)
    finally:
        await source.aclose()
    assert world.elsewhere == []
    assert SECRET not in str(caught.value)


async def test_a_signed_address_does_not_get_it(world: World, tmp_path: Path) -> None:
    world.leads = "signed"
    source = source_of(world, tmp_path, token=SECRET)
    try:
        assert await download(source) == CONTENT
    finally:
        await source.aclose()
    (headers,) = world.elsewhere
    assert "authorization" not in headers
    assert SECRET not in str(headers)


async def test_an_address_that_the_server_names_gets_it_only_where_nobody_reads_it(
    world: World, tmp_path: Path
) -> None:
    # A server on this machine that says that its gRPC is on another one, in plaintext. The name cannot exist.
    world.grpc_address = "models.invalid:8085"
    source = source_of(world, tmp_path, token=SECRET)
    try:
        with pytest.raises(ConfigError, match=r"not sent to models\.invalid without TLS"):
            await source.grpc.list_namespaces()
    finally:
        await source.aclose()


async def test_a_new_token_is_taken_up_after_a_refusal(world: World, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(SECRET)
    source = source_of(world, tmp_path, token_file=path)
    try:
        await source.grpc.list_namespaces()
        world.accepted = OTHER
        with pytest.raises(NotAuthenticated):
            await source.grpc.list_namespaces()
        put(path, OTHER.encode())
        await source.grpc.list_namespaces()
    finally:
        await source.aclose()
    assert world.at_grpc == [f"Bearer {SECRET}", f"Bearer {SECRET}", f"Bearer {OTHER}"]
