"""A server with access control in this process, whose routes and methods can be listed, and callers of every role."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import anyio.from_thread
from grpclib.client import Channel
from grpclib.const import Handler
from grpclib.exceptions import GRPCError, StreamTerminatedError

from modelbox._proto.modelbox import v1 as pb
from modelbox._serving.process import single_error
from modelbox._wire import ERROR_KEY, REQUEST_KEY
from modelbox.runtime.app import _Server
from modelbox.runtime.config import ServerConfig, load_server_config
from modelbox.runtime.rest.app import routes_of
from tests.integration.server_core import digest_of, manifest
from tests.permissions.cases import Place

FILE = b"weights of a model"
_OWN = ("date", "x-request-id")
"""Headers of the call, whatever it is about."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a caller reads: everything but the time of day."""

    status: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def error(self) -> dict[str, Any]:
        """The error in it; empty if there is none."""
        if not self.body.startswith(b'{"code"'):
            return {}
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def code(self) -> str:
        """Of its error."""
        return str(self.error().get("code", ""))

    def about(self, names: Mapping[str, str]) -> Answer:
        """The same with names in the place of others, for comparisons."""
        parts = [self.status, repr(self.headers), self.body.decode("latin-1")]
        for name, other in names.items():
            assert len(name) == len(other)
            parts = [part.replace(name, other) for part in parts]
        return Answer(parts[0], ((parts[1], ""),), parts[2].encode("latin-1"))


class Live:
    """The server that runs, and how to call it."""

    def __init__(self, server: _Server, admin_token: str) -> None:
        self.grpc_address = server.addresses.grpc
        self.url = f"http://{server.addresses.http}"
        self.metrics_url = f"http://{server.addresses.metrics}"
        self.calls: Mapping[str, Handler] = dict(server._grpc._mapping)
        self.routes = routes_of(server._http.app)
        self.metric_routes = routes_of(server._scrapes.app)
        self.admin = admin_token

    @asynccontextmanager
    async def caller(self, token: str = "", **headers: str) -> AsyncIterator[Caller]:
        """Somebody with a token, or without."""
        host, _, port = self.grpc_address.rpartition(":")
        sent = {"authorization": f"Bearer {token}", **headers} if token else headers
        channel = Channel(host, int(port))
        async with aiohttp.ClientSession(self.url, headers=sent) as session:
            try:
                yield Caller(self, session, channel, sent)
            finally:
                channel.close()


class Caller:
    """Somebody who calls."""

    def __init__(
        self, live: Live, session: aiohttp.ClientSession, channel: Channel, headers: Mapping[str, str]
    ) -> None:
        self.live = live
        self._session = session
        self._channel = channel
        self._headers = dict(headers)

    async def call(self, name: str, fields: Mapping[str, Any], *, streams: bool = False) -> Answer:
        """A call over gRPC; of a stream, up to its first answer.

        Args:
            name: As in `tests.permissions.cases`.
            fields: Of the message.
            streams: Has the server handle a unary call as a stream, as it does with what clients seldom send.
        """
        path = f"/{name}" if name.startswith("grpc.") else f"/modelbox.v1.{name}"
        method = self.live.calls[path]
        metadata: list[tuple[str, Any]] = list(self._headers.items())
        if streams:
            metadata += [("x-twice", "1"), ("x-twice", "2")]
        stream = self._channel.request(
            path, method.cardinality, method.request_type, method.reply_type, metadata=metadata, timeout=60
        )
        answer: Any = None
        try:
            async with stream:
                await stream.send_message(method.request_type(**fields), end=True)
                answer = await stream.recv_message()
                if name.endswith("/Watch") and answer is not None:
                    await stream.cancel()
                else:
                    while method.cardinality.server_streaming and await stream.recv_message() is not None:
                        pass
                    await stream.recv_trailing_metadata()
        except GRPCError as exc:
            trailers: dict[str, Any] = dict(stream.trailing_metadata or stream.initial_metadata or {})
            error = bytes(trailers.pop(ERROR_KEY, b""))
            trailers.pop(REQUEST_KEY, None)
            return Answer(
                f"{exc.status.name} {exc.message}", tuple(sorted((k, str(v)) for k, v in trailers.items())), error
            )
        except StreamTerminatedError:
            if answer is None:
                raise
        return Answer("OK", (), bytes(answer) if hasattr(answer, "__bytes__") else answer.SerializeToString())

    async def request(self, route: str, fields: Mapping[str, Any]) -> Answer:
        """A request over HTTP.

        Args:
            route: As in `tests.permissions.cases`.
            fields: The parts of its path, and ``query``, ``body`` or ``headers``.
        """
        method, _, path = route.partition(" ")
        parts = {name: value for name, value in fields.items() if name not in ("query", "body", "headers")}
        options: dict[str, Any] = {"params": fields.get("query"), "headers": fields.get("headers")}
        if "body" in fields:
            options["json"] = fields["body"]
        async with self._session.request(method, path.format(**parts), allow_redirects=False, **options) as response:
            if response.content_type == "text/event-stream":
                body = await response.content.readline()
            else:
                body = await response.read()
            sent = response.headers.items()
            headers = tuple(sorted((name, value) for name, value in sent if name.lower() not in _OWN))
            return Answer(str(response.status), headers, body)

    async def get(self, path: str, **query: str) -> Any:
        """JSON of a GET that must succeed."""
        async with self._session.get(f"/api/v1/{path}", params=query) as response:
            assert response.ok, await response.text()
            return await response.json()

    async def post(self, path: str, body: Any) -> Any:
        """JSON of a POST that must succeed."""
        async with self._session.post(f"/api/v1/{path}", json=body) as response:
            assert response.ok, await response.text()
            return await response.json()

    async def patch(self, path: str, data: bytes, **headers: str) -> None:
        """A PATCH that must succeed."""
        async with self._session.patch(f"/api/v1/{path}", data=data, headers=headers) as response:
            assert response.ok, await response.text()

    async def do(self, name: str, /, **fields: Any) -> Answer:
        """A call over gRPC that must succeed."""
        answer = await self.call(name, fields)
        assert answer.status == "OK", answer
        return answer


def config_of(directory: Path, **settings: object) -> ServerConfig:
    """Settings for a server of a test, on free ports."""
    ports = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}
    return load_server_config(flags={"data_dir": str(directory), **ports, **settings}, env={})


@asynccontextmanager
async def _running(config: ServerConfig) -> AsyncIterator[Live]:
    try:
        async with AsyncExitStack() as stack:
            server = _Server(config, stack)
            await server.start()
            token = await anyio.Path(config.admin_token_path).read_text()
            try:
                yield Live(server, token.strip())
            finally:
                await server.stop()
    except BaseExceptionGroup as group:
        # As the program does.
        raise single_error(group) from None


@contextmanager
def live_server(directory: Path, **settings: object) -> Iterator[Live]:
    """Runs one in a thread of its own."""
    config = config_of(directory, access="on", **settings)
    with anyio.from_thread.start_blocking_portal("asyncio") as portal:
        running = portal.wrap_async_context_manager(_running(config))
        live = running.__enter__()
        try:
            yield live
        finally:
            # Whatever fails here is not the server's.
            running.__exit__(None, None, None)


async def make_place(admin: Caller, namespace: str) -> Place:
    """Makes one thing of each kind in a namespace."""
    digest = digest_of(FILE)
    upload = await admin.post("uploads", {"namespace": namespace, "digest": digest, "size_bytes": len(FILE)})
    await admin.patch(f"uploads/{upload['upload_id']}", FILE, **{"Upload-Offset": "0"})
    unfinished = await admin.post("uploads", {"namespace": namespace, "digest": digest_of(b"more"), "size_bytes": 4})
    await admin.do(
        "RegistryService/PublishVersion",
        namespace=namespace,
        model="shared",
        manifest_json=manifest(FILE).to_json(),
        aliases=["beta"],
    )
    await admin.do("RegistryService/CreateModel", namespace=namespace, name="secret")
    run = (await admin.post("runs", {"experiment": f"{namespace}/speech"}))["item"]
    victim = (await admin.post("runs", {"experiment": f"{namespace}/speech"}))["item"]
    checkpoint = (await admin.post("checkpoints", {"parent_id": run["id"], "epoch": 1}))["item"]
    dataset = (await admin.post("datasets", {"namespace": namespace, "name": "corpus"}))["item"]
    components = [{"type": "path", "location": "/data/corpus"}]
    version = await admin.post(
        "dataset-versions", {"namespace": namespace, "dataset": "corpus", "components": components}
    )
    event = await admin.post("events", {"object": run["id"], "name": "begun"})
    comment = await admin.post("comments", {"object": run["id"], "text": "first"})
    files = [pb.ArtifactFile(path="file0.bin", size_bytes=len(FILE), digest=digest)]
    made = await admin.do("ArtifactService/CreateArtifact", parent=run["id"], name="weights", files=files)
    return Place(
        ns=namespace,
        run=run["id"],
        victim=victim["id"],
        experiment=run["experiment_id"],
        checkpoint=checkpoint["id"],
        dataset=dataset["id"],
        dataset_version=version["item"]["id"],
        artifact=_artifact_of(made),
        event=event["item"]["id"],
        comment=comment["id"],
        upload=unfinished["upload_id"],
    )


def _artifact_of(answer: Answer) -> str:
    found = pb.CreateArtifactResponse.parse(answer.body).artifact
    assert found is not None
    return found.id


def absent_place(namespace: str) -> Place:
    """Names and ids of nothing."""
    prefixes: Sequence[tuple[str, str]] = (
        ("run", "run"),
        ("victim", "run"),
        ("experiment", "exp"),
        ("checkpoint", "ckp"),
        ("dataset", "dst"),
        ("dataset_version", "dsv"),
        ("artifact", "art"),
        ("event", "evt"),
        ("comment", "cmt"),
        ("upload", "upl"),
    )
    return Place(ns=namespace, **{name: f"{prefix}_{at:024x}" for at, (name, prefix) in enumerate(prefixes)})


def names_of(place: Place) -> list[str]:
    """All that tells a place from another one."""
    return [place.ns, *(getattr(place, name) for name in Place.__slots__ if name not in ("ns", "model"))]


async def make_token(admin: Caller, account: str, roles: Sequence[tuple[str, str, str]] = ()) -> str:
    """Makes an account with roles (role, namespace, model), and a token of it."""
    await admin.do("AccessService/CreateAccount", name=account)
    for role, namespace, model in roles:
        await admin.do("AccessService/GrantRole", account=account, role=role, namespace=namespace, model=model)
    answer = await admin.do("AccessService/CreateToken", account=account)
    return pb.CreateTokenResponse.parse(answer.body).token
