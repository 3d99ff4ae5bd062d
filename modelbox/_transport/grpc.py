"""Every remote call, with our objects in and out.

Owns the gRPC channels to one server: one for calls and one for watches, so that a stream that nobody reads never holds
up a call. The address comes from ``GET {url}/api/v1/server`` and is asked for again after a failed connection, since a
restarted server may listen elsewhere. Refuses to know about files: bytes travel over HTTP.

Belongs to the event loop that it is first used on, and must not be used in a forked child.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any, Generic, TypeVar, cast
from weakref import WeakSet

import anyio
from grpclib.client import Channel, Handler, Stream
from grpclib.config import Configuration
from grpclib.const import Cardinality, Status
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.metadata import decode_metadata
from grpclib.protocol import EventsProcessor, H2Protocol
from grpclib.protocol import Stream as H2Stream
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated

from modelbox import _wire
from modelbox._proto.modelbox import v1 as pb
from modelbox._transport.faults import Call, ConnectFailed, Retries, map_errors, os_error_text, unpacked
from modelbox._transport.http import HttpFiles, UploadState
from modelbox._transport.security import Security
from modelbox.config import ClientConfig
from modelbox.errors import InvalidError, ModelBoxError, NotAuthenticated, ProtocolError, Unavailable
from modelbox.feed import FeedItem, Filter, Snapshot
from modelbox.objects import (
    Alias,
    AliasMove,
    Artifact,
    Created,
    Instance,
    InstanceReport,
    Member,
    Model,
    ModelPatch,
    ModelVersion,
    Namespace,
    NewArtifact,
    NewModel,
    NewVersion,
    Page,
    Resolved,
    VersionPatch,
)
from modelbox.refs import Digest, ModelRef

__all__ = ("WATCH_SILENCE_S", "Connection", "Method", "nothing", "page", "rpc")

Q = TypeVar("Q")
A = TypeVar("A")
T = TypeVar("T")

WATCH_SILENCE_S = 30.0
"""Three bookmarks: a watch that is silent for longer is broken."""

_GRACE_S = 0.5
_CLOSE_S = 1.0

_KEEPALIVE = Configuration(
    _keepalive_time=20.0,
    _keepalive_timeout=10.0,
    _keepalive_permit_without_calls=True,
    _http2_max_pings_without_data=0,
    _http2_min_sent_ping_interval_without_data=10.0,
    http2_connection_window_size=64 << 20,
    http2_stream_window_size=4 << 20,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method(Generic[Q, A]):
    """One rpc; ``idempotent`` calls may be repeated even if the first one arrived."""

    path: str
    request: type[Q]
    answer: type[A]
    idempotent: bool = False
    streaming: bool = False


def rpc(
    service: str, name: str, request: type[Q], answer: type[A], *, idempotent: bool = False, streaming: bool = False
) -> Method[Q, A]:
    """The method ``name`` of one of our services."""
    path = f"/modelbox.v1.{service}/{name}"
    return Method(path=path, request=request, answer=answer, idempotent=idempotent, streaming=streaming)


_R = "RegistryService"
# Creates and publishing are idempotent by contract. Moving an alias is not: the second attempt of a lost answer would
# find its own move and call it a conflict, or roll back twice.
_CREATE_MODEL = rpc(_R, "CreateModel", pb.CreateModelRequest, pb.CreateModelResponse, idempotent=True)
_GET_MODEL = rpc(_R, "GetModel", pb.GetModelRequest, pb.Model, idempotent=True)
_UPDATE_MODEL = rpc(_R, "UpdateModel", pb.UpdateModelRequest, pb.Model, idempotent=True)
_DELETE_MODEL = rpc(_R, "DeleteModel", pb.DeleteModelRequest, pb.DeleteModelResponse)
_LIST_MODELS = rpc(_R, "ListModels", pb.ListModelsRequest, pb.ListModelsResponse, idempotent=True)
_LIST_NAMESPACES = rpc(_R, "ListNamespaces", pb.ListNamespacesRequest, pb.ListNamespacesResponse, idempotent=True)
_PUBLISH = rpc(_R, "PublishVersion", pb.PublishVersionRequest, pb.PublishVersionResponse, idempotent=True)
_GET_VERSION = rpc(_R, "GetVersion", pb.GetVersionRequest, pb.ModelVersion, idempotent=True)
_UPDATE_VERSION = rpc(_R, "UpdateVersion", pb.UpdateVersionRequest, pb.ModelVersion, idempotent=True)
_DELETE_VERSION = rpc(_R, "DeleteVersion", pb.DeleteVersionRequest, pb.DeleteVersionResponse)
_LIST_VERSIONS = rpc(_R, "ListVersions", pb.ListVersionsRequest, pb.ListVersionsResponse, idempotent=True)
_RESOLVE = rpc(_R, "Resolve", pb.ResolveRequest, pb.ResolveResponse, idempotent=True)
_MOVE_ALIAS = rpc(_R, "MoveAlias", pb.MoveAliasRequest, pb.Alias)
_ROLLBACK_ALIAS = rpc(_R, "RollbackAlias", pb.RollbackAliasRequest, pb.Alias)
_DELETE_ALIAS = rpc(_R, "DeleteAlias", pb.DeleteAliasRequest, pb.DeleteAliasResponse)
_LIST_ALIASES = rpc(_R, "ListAliases", pb.ListAliasesRequest, pb.ListAliasesResponse, idempotent=True)
_LIST_ALIAS_MOVES = rpc(_R, "ListAliasMoves", pb.ListAliasMovesRequest, pb.ListAliasMovesResponse, idempotent=True)
_A = "ArtifactService"
_BEGIN_UPLOAD = rpc(_A, "BeginUpload", pb.BeginUploadRequest, pb.BeginUploadResponse, idempotent=True)
_BEGIN_DOWNLOAD = rpc(_A, "BeginDownload", pb.BeginDownloadRequest, pb.BeginDownloadResponse)
_CREATE_ARTIFACT = rpc(_A, "CreateArtifact", pb.CreateArtifactRequest, pb.CreateArtifactResponse, idempotent=True)
_GET_ARTIFACT = rpc(_A, "GetArtifact", pb.GetArtifactRequest, pb.Artifact, idempotent=True)
_LIST_ARTIFACTS = rpc(_A, "ListArtifacts", pb.ListArtifactsRequest, pb.ListArtifactsResponse, idempotent=True)
_DELETE_ARTIFACT = rpc(_A, "DeleteArtifact", pb.DeleteArtifactRequest, pb.DeleteArtifactResponse)
_REPORT = rpc("FleetService", "Report", pb.ReportRequest, pb.ReportResponse, idempotent=True)
_LIST_INSTANCES = rpc(
    "FleetService", "ListInstances", pb.ListInstancesRequest, pb.ListInstancesResponse, idempotent=True
)
_LIST_MEMBERS = rpc("ServerService", "ListMembers", pb.ListMembersRequest, pb.ListMembersResponse, idempotent=True)
_LIST = rpc("WatchService", "List", pb.ListRequest, pb.ListResponse, idempotent=True)
_WATCH = rpc("WatchService", "Watch", pb.WatchRequest, pb.WatchResponse, streaming=True)


class _Codec(CodecBase):
    """Messages as bytes, if they are none already; bytes that are no message are the peer's fault."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        return bytes(message)

    def decode(self, data: bytes, message_type: Any) -> Any:
        try:
            return _wire.decode_message(message_type, data)
        except InvalidError as exc:
            raise ProtocolError(f"the server sent an answer that cannot be read: {exc}") from exc


class _Protocol(H2Protocol):
    """A connection whose end can be waited for."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.transport: asyncio.Transport | None = None
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins to speak."""
        self.transport = cast(asyncio.Transport, transport)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Nothing is left of it."""
        super().connection_lost(exc)
        self.lost.set()


class _Channel(Channel):
    """A channel that gives up connecting after a while and says so."""

    def __init__(
        self, host: str, port: int, *, security: Security, connect_timeout_s: float, opened: WeakSet[_Protocol]
    ) -> None:
        config = replace(_KEEPALIVE, ssl_target_name_override=security.name_of(host))
        super().__init__(host, port, codec=_Codec(), config=config, ssl=security.grpc)
        self._said = partial(security.headers, host, tls=security.tls)
        self._connect_timeout_s = connect_timeout_s
        self._opened = opened

    def metadata(self, actor: Mapping[str, str]) -> dict[str, str]:
        """What a call brings beside its message: who the client says it is, and what shows it.

        Raises:
            ConfigError: See `Security.headers`.
        """
        return {**actor, **self._said()}

    def _protocol_factory(self) -> H2Protocol:
        protocol = _Protocol(Handler(), self._config, self._h2_config)
        self._opened.add(protocol)
        return protocol

    async def _create_connection(self) -> H2Protocol:
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                protocol = await super()._create_connection()
        except TimeoutError as exc:
            raise ConnectFailed(f"no connection to {self._authority} within {self._connect_timeout_s:g} s") from exc
        except OSError as exc:
            raise ConnectFailed(f"{self._authority}: {os_error_text(exc)}") from exc
        processors: dict[type, Callable[[Any], None]] = protocol.processor.processors  # type: ignore[assignment]
        processors[ConnectionTerminated] = partial(_parted, protocol.processor)
        return protocol


def _parted(processor: EventsProcessor, event: ConnectionTerminated) -> None:
    """The server says good-bye, and which calls it did not begin: those can be made elsewhere, whatever they are."""
    if event.error_code == ErrorCodes.NO_ERROR and event.last_stream_id is not None:
        for stream_id, stream in processor.streams.items():
            if stream_id > event.last_stream_id:
                _UNTOUCHED.add(stream)
    processor.process_connection_terminated(event)


_UNTOUCHED: WeakSet[H2Stream] = WeakSet()


class Connection:
    """The server's calls, one method each.

    Concurrency: any number of tasks of one event loop.
    Errors: what the server answers; `Unavailable`, `DeadlineExceeded` and `ProtocolError` of the transport. Lost calls
        are repeated where that is safe, within ``request_timeout_s``.
    """

    def __init__(self, config: ClientConfig, http: HttpFiles) -> None:
        self._config = config
        self._http = http
        self._peer = f"the server at {config.url}"
        self._retries = Retries()
        self._metadata = {_wire.ACTOR_KEY: config.actor}
        self._address: tuple[str, int] | None = None
        self._finding = asyncio.Lock()
        self._channels: dict[bool, _Channel] = {}
        self._opened: WeakSet[_Protocol] = WeakSet()
        self._closed = False

    def close(self) -> None:
        """Closes the channels; calls that are under way fail. Idempotent."""
        self._closed = True
        self._forget()

    async def aclose(self) -> None:
        """The same, and waits a moment for the connections to end.

        With TLS that takes its time, which a loop that is about to stop does not have.
        """
        self.close()
        if not self._http.security.tls:
            return
        with anyio.move_on_after(_CLOSE_S):
            for protocol in tuple(self._opened):
                if protocol.transport is not None and not protocol.lost.is_set():
                    protocol.transport.abort()
                    await protocol.lost.wait()

    # --- channels ------------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        channels, self._channels, self._address = self._channels, {}, None
        for channel in channels.values():
            channel.close()

    async def _channel(self, *, streaming: bool) -> _Channel:
        if self._closed:
            raise Unavailable(f"the connection to {self._peer} is closed")
        if (channel := self._channels.get(streaming)) is not None:
            return channel
        async with self._finding:
            if self._address is None:
                self._address = (await self._http.server_info()).grpc_target(self._config.url)
            host, port = self._address
            if streaming not in self._channels:
                self._channels[streaming] = _Channel(
                    host,
                    port,
                    security=self._http.security,
                    connect_timeout_s=self._config.connect_timeout_s,
                    opened=self._opened,
                )
            return self._channels[streaming]

    async def unary(self, method: Method[Q, A], request: Q, unpack: Callable[[A], T], timeout_s: float = 0) -> T:
        """Makes one call, and again where that is safe.

        Args:
            method: What to call.
            request: Its message.
            unpack: Reads the answer.
            timeout_s: For all attempts together; 0 for the setting ``request_timeout_s``.
        """

        async def attempt(call: Call) -> A:
            return await self._once(method, request, call)

        answer = await self._retries.run(
            attempt,
            timeout_s=timeout_s or self._config.request_timeout_s,
            idempotent=method.idempotent,
            what=self._peer,
        )
        return unpacked(unpack, answer, self._peer)

    async def _once(self, method: Method[Q, A], request: Q, call: Call) -> A:
        channel = await self._channel(streaming=False)
        stream = channel.request(
            method.path,
            Cardinality.UNARY_UNARY,
            method.request,
            method.answer,
            # Tells the server how long we wait. Our own clock (see Retries) ends the call first.
            timeout=max(0.0, call.remaining_s) + _GRACE_S,
            metadata=channel.metadata(self._metadata),
        )
        with map_errors(self._peer):
            try:
                async with stream:
                    with self._beginning(channel):
                        await stream.send_request()
                    call.sent = True
                    await stream.send_message(request, end=True)
                    answer = await stream.recv_message()
                    await stream.recv_trailing_metadata()
            except GRPCError as exc:
                raise self._answered(exc, stream) from exc
            except StreamTerminatedError:
                if (refusal := _refusal(stream)) is not None:
                    raise refusal from None
                if getattr(stream, "_stream", None) in _UNTOUCHED:
                    call.sent = False
                raise
            if answer is None:
                raise ProtocolError(f"{self._peer} answered {method.path} with nothing")
            return answer

    async def stream(self, method: Method[Q, A], request: Q, unpack: Callable[[A], T]) -> AsyncGenerator[T, None]:
        """Makes one call and reads its answers; nothing is repeated here. Close the iterator if you leave it early.

        Raises:
            Unavailable: Also when no answer came for ``request_timeout_s``.
        """
        channel = await self._channel(streaming=True)
        call = channel.request(
            method.path,
            Cardinality.UNARY_STREAM,
            method.request,
            method.answer,
            metadata=channel.metadata(self._metadata),
        )
        with suppress(_Left):
            async with call as stream:
                with map_errors(self._peer), self._beginning(channel):
                    with anyio.fail_after(self._config.request_timeout_s):
                        await stream.send_message(request, end=True)
                while (message := await self._next(stream, self._config.request_timeout_s)) is not None:
                    yield unpacked(unpack, message, self._peer)
                # See `watch`.
                raise _Left

    async def _next(self, stream: Stream[Any, A], timeout_s: float) -> A | None:
        with map_errors(self._peer):
            try:
                with anyio.fail_after(timeout_s):
                    message = await stream.recv_message()
                    if message is None:
                        await stream.recv_trailing_metadata()
            except GRPCError as exc:
                raise self._answered(exc, stream) from exc
            except TimeoutError as exc:
                raise Unavailable(f"{self._peer} was silent for {timeout_s:g} s in a stream") from exc
        return message

    def _answered(self, exc: GRPCError, stream: Stream[Any, Any]) -> ModelBoxError:
        """The error that the server sent in its trailers."""
        error = _wire.unpack_error(exc.status.value, exc.message or "", _error_trailer(stream))
        error.request_id = _request_id(stream)
        if isinstance(error, NotAuthenticated):
            self._http.security.rejected()
        return error

    @contextmanager
    def _beginning(self, channel: _Channel) -> Iterator[None]:
        """Around the beginning of a call: a channel that has no connection is not tried again as it is."""
        try:
            yield
        except ConnectFailed:
            self._forget_if(channel)
            raise
        except AttributeError as exc:
            # A connection that is lost right after it was made has no transport any more when grpclib begins the call.
            self._forget_if(channel)
            raise ConnectFailed("the connection broke before the call began") from exc

    def _forget_if(self, channel: _Channel) -> None:
        """Asks for the address anew, unless somebody else already did."""
        if channel in self._channels.values():
            self._forget()

    # --- the registry --------------------------------------------------------------------------------------------

    async def create_model(self, new: NewModel) -> Created[Model]:
        """Makes a model."""
        return await self.unary(_CREATE_MODEL, _wire.pack_new_model(new), _wire.unpack_created_model)

    async def get_model(self, namespace: str, name: str) -> Model:
        """One model."""
        return await self.unary(_GET_MODEL, pb.GetModelRequest(namespace=namespace, name=name), _wire.unpack_model)

    async def update_model(self, namespace: str, name: str, patch: ModelPatch) -> Model:
        """Edits a model."""
        return await self.unary(_UPDATE_MODEL, _wire.pack_model_patch(namespace, name, patch), _wire.unpack_model)

    async def delete_model(self, namespace: str, name: str) -> None:
        """Deletes a model."""
        await self.unary(_DELETE_MODEL, pb.DeleteModelRequest(namespace=namespace, name=name), nothing)

    async def list_models(self, namespace: str = "", *, page_size: int = 0, page_token: str = "") -> Page[Model]:
        """One page of models."""
        return await self.unary(
            _LIST_MODELS,
            pb.ListModelsRequest(namespace=namespace, page_size=page_size, page_token=page_token),
            lambda answer: page(answer.models, _wire.unpack_model, answer.next_page_token),
        )

    async def list_namespaces(self, *, page_size: int = 0, page_token: str = "") -> Page[Namespace]:
        """One page of namespaces."""
        return await self.unary(
            _LIST_NAMESPACES,
            pb.ListNamespacesRequest(page_size=page_size, page_token=page_token),
            lambda answer: page(answer.namespaces, _wire.unpack_namespace, answer.next_page_token),
        )

    async def publish_version(self, new: NewVersion) -> Created[ModelVersion]:
        """Makes the next version of files that were uploaded before."""
        return await self.unary(_PUBLISH, _wire.pack_new_version(new), _wire.unpack_created_version)

    async def get_version(self, ref: ModelRef) -> ModelVersion:
        """One version."""
        return await self.unary(_GET_VERSION, pb.GetVersionRequest(ref=str(ref)), _wire.unpack_version)

    async def update_version(self, namespace: str, model: str, version: int, patch: VersionPatch) -> ModelVersion:
        """Edits a version."""
        request = _wire.pack_version_patch(namespace, model, version, patch)
        return await self.unary(_UPDATE_VERSION, request, _wire.unpack_version)

    async def delete_version(self, namespace: str, model: str, version: int) -> None:
        """Deletes a version."""
        request = pb.DeleteVersionRequest(namespace=namespace, model=model, version=version)
        await self.unary(_DELETE_VERSION, request, nothing)

    async def list_versions(
        self, namespace: str, model: str, *, page_size: int = 0, page_token: str = ""
    ) -> Page[ModelVersion]:
        """One page of versions, newest first."""
        return await self.unary(
            _LIST_VERSIONS,
            pb.ListVersionsRequest(namespace=namespace, model=model, page_size=page_size, page_token=page_token),
            lambda answer: page(answer.versions, _wire.unpack_version, answer.next_page_token),
        )

    async def resolve(self, ref: ModelRef) -> Resolved:
        """What ``ref`` points to now."""
        return await self.unary(_RESOLVE, pb.ResolveRequest(ref=str(ref)), _wire.unpack_resolved)

    # --- aliases -------------------------------------------------------------------------------------------------

    async def move_alias(
        self,
        namespace: str,
        model: str,
        alias: str,
        version: int,
        *,
        expected_mod_rev: int | None = None,
        reason: str = "",
    ) -> Alias:
        """Moves or makes an alias."""
        request = pb.MoveAliasRequest(
            namespace=namespace,
            model=model,
            alias=alias,
            version=version,
            expected_mod_rev=expected_mod_rev,
            reason=reason,
        )
        return await self.unary(_MOVE_ALIAS, request, _wire.unpack_alias)

    async def rollback_alias(
        self, namespace: str, model: str, alias: str, *, expected_mod_rev: int | None = None, reason: str = ""
    ) -> Alias:
        """Moves an alias back to where it was."""
        request = pb.RollbackAliasRequest(
            namespace=namespace, model=model, alias=alias, expected_mod_rev=expected_mod_rev, reason=reason
        )
        return await self.unary(_ROLLBACK_ALIAS, request, _wire.unpack_alias)

    async def delete_alias(
        self, namespace: str, model: str, alias: str, *, expected_mod_rev: int | None = None, reason: str = ""
    ) -> None:
        """Deletes an alias."""
        request = pb.DeleteAliasRequest(
            namespace=namespace, model=model, alias=alias, expected_mod_rev=expected_mod_rev, reason=reason
        )
        await self.unary(_DELETE_ALIAS, request, nothing)

    async def list_aliases(self, namespace: str, model: str) -> tuple[Alias, ...]:
        """All aliases of a model."""
        return await self.unary(
            _LIST_ALIASES,
            pb.ListAliasesRequest(namespace=namespace, model=model),
            lambda answer: tuple(_wire.unpack_alias(alias) for alias in answer.aliases),
        )

    async def list_alias_moves(
        self,
        namespace: str,
        model: str,
        *,
        alias: str = "",
        at: datetime | None = None,
        page_size: int = 0,
        page_token: str = "",
    ) -> Page[AliasMove]:
        """One page of moves, newest first."""
        request = pb.ListAliasMovesRequest(
            namespace=namespace,
            model=model,
            alias=alias,
            at_us=0 if at is None else _wire.pack_time(_aware(at)),
            page_size=page_size,
            page_token=page_token,
        )
        return await self.unary(
            _LIST_ALIAS_MOVES,
            request,
            lambda answer: page(answer.moves, _wire.unpack_alias_move, answer.next_page_token),
        )

    # --- artifacts -----------------------------------------------------------------------------------------------

    async def begin_upload(self, namespace: str, digest: Digest, size_bytes: int) -> UploadState:
        """Begins or resumes the upload of one file's bytes."""
        return await self.unary(
            _BEGIN_UPLOAD,
            pb.BeginUploadRequest(namespace=namespace, digest=digest, size_bytes=size_bytes),
            lambda answer: UploadState(upload_id=answer.upload_id, offset=answer.offset, complete=answer.complete),
        )

    async def begin_download(self, ref: ModelRef) -> str:
        """Records a download in the change feed; returns its id."""
        return await self.unary(
            _BEGIN_DOWNLOAD, pb.BeginDownloadRequest(ref=str(ref)), lambda answer: answer.download_id
        )

    async def create_artifact(self, new: NewArtifact) -> Created[Artifact]:
        """Attaches uploaded or tracked files to an object."""
        return await self.unary(_CREATE_ARTIFACT, _wire.pack_new_artifact(new), _wire.unpack_created_artifact)

    async def get_artifact(self, artifact_id: str) -> Artifact:
        """One artifact."""
        return await self.unary(_GET_ARTIFACT, pb.GetArtifactRequest(artifact_id=artifact_id), _wire.unpack_artifact)

    async def list_artifacts(
        self, *, parent: str = "", namespace: str = "", page_size: int = 0, page_token: str = ""
    ) -> Page[Artifact]:
        """One page of artifacts."""
        return await self.unary(
            _LIST_ARTIFACTS,
            pb.ListArtifactsRequest(parent=parent, namespace=namespace, page_size=page_size, page_token=page_token),
            lambda answer: page(answer.artifacts, _wire.unpack_artifact, answer.next_page_token),
        )

    async def delete_artifact(self, artifact_id: str) -> None:
        """Deletes an artifact."""
        await self.unary(_DELETE_ARTIFACT, pb.DeleteArtifactRequest(artifact_id=artifact_id), nothing)

    # --- the fleet -----------------------------------------------------------------------------------------------

    async def report(self, reports: Sequence[InstanceReport]) -> float:
        """Tells what this instance serves; returns within how many seconds to report again."""
        request = pb.ReportRequest(reports=[_wire.pack_report(report) for report in reports])
        return await self.unary(_REPORT, request, lambda answer: answer.heartbeat_ms / 1000)

    async def list_instances(
        self, path: str = "", *, include_lost: bool = False, page_size: int = 0, page_token: str = ""
    ) -> Page[Instance]:
        """One page of the fleet."""
        return await self.unary(
            _LIST_INSTANCES,
            pb.ListInstancesRequest(path=path, include_lost=include_lost, page_size=page_size, page_token=page_token),
            lambda answer: page(answer.instances, _wire.unpack_instance, answer.next_page_token),
        )

    async def list_members(self) -> tuple[Member, ...]:
        """The servers that share a database."""
        return await self.unary(
            _LIST_MEMBERS,
            pb.ListMembersRequest(),
            lambda answer: tuple(_wire.unpack_member(member) for member in answer.members),
        )

    # --- the change feed -----------------------------------------------------------------------------------------

    async def list_state(self, wanted: Filter, *, page_size: int = 0, page_token: str = "") -> Snapshot:
        """One page of the current state of everything that ``wanted`` lets through."""
        return await self.unary(
            _LIST,
            pb.ListRequest(filter=_wire.pack_filter(wanted), page_size=page_size, page_token=page_token),
            _wire.unpack_snapshot,
        )

    @asynccontextmanager
    async def watch(self, wanted: Filter, token: str) -> AsyncIterator[AsyncIterator[FeedItem]]:
        """Follows the change feed from ``token`` on (empty: from now on), as one stream; nothing is repeated here.

        The iterator ends after a `Resync`; it raises `Unavailable` when the connection breaks, the server goes down,
        or nothing was heard for `WATCH_SILENCE_S`.
        """
        request = pb.WatchRequest(filter=_wire.pack_filter(wanted), token=token)
        channel = await self._channel(streaming=True)
        with suppress(_Left):
            async with channel.request(
                _WATCH.path,
                Cardinality.UNARY_STREAM,
                _WATCH.request,
                _WATCH.answer,
                metadata=channel.metadata(self._metadata),
            ) as stream:
                with map_errors(self._peer), self._beginning(channel):
                    with anyio.fail_after(self._config.request_timeout_s):
                        await stream.send_message(request, end=True)
                yield self._items(stream)
                # An exception makes grpclib reset the stream without waiting for an end that never comes.
                raise _Left

    async def _items(self, stream: Stream[Any, pb.WatchResponse]) -> AsyncIterator[FeedItem]:
        while (message := await self._next(stream, WATCH_SILENCE_S)) is not None:
            item = unpacked(_wire.unpack_feed_item, message, self._peer)
            if item is not None:
                yield item


class _Left(Exception):
    """The reader of a watch has left."""


def _refusal(stream: Stream[Any, Any]) -> ModelBoxError | None:
    """The error of a call that failed before the server said good-bye, and is told of both at once."""
    trailer = _error_trailer(stream)
    if trailer is None:
        return None
    error = _wire.unpack_error(Status.UNAVAILABLE.value, "", trailer)
    error.request_id = _request_id(stream)
    return error


def _error_trailer(stream: Stream[Any, Any]) -> bytes | None:
    value = _trailers(stream).get(_wire.ERROR_KEY)
    return value if isinstance(value, bytes) else None


def _request_id(stream: Stream[Any, Any]) -> str:
    return str(_trailers(stream).get(_wire.REQUEST_KEY, ""))


def _trailers(stream: Stream[Any, Any]) -> Mapping[str, str | bytes]:
    metadata = stream.trailing_metadata
    if metadata is None and getattr(stream, "_stream", None) is not None:
        # The stream was reset after its trailers had come; grpclib then leaves them undecoded.
        metadata = decode_metadata(stream._stream.trailers or stream._stream.headers or [])
    return {} if metadata is None else metadata


def nothing(_: object) -> None:
    """Reads an answer that says nothing."""
    return None


def page(items: Sequence[Q], unpack: Callable[[Q], T], next_token: str) -> Page[T]:
    """Reads one page of a list."""
    return Page(items=tuple(unpack(item) for item in items), next_token=next_token)


def _aware(at: datetime) -> datetime:
    return at if at.tzinfo is not None else at.astimezone()
