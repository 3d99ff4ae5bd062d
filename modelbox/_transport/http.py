"""Bytes to and from the central server, over HTTP.

Owns one aiohttp session for one server: where its gRPC listens, files of versions and artifacts from any offset, and
uploads from any offset. Chunks are read from disk in threads and never pile up. Refuses to repeat anything (see
`modelbox._transport.transfer`), to follow redirects and to use a proxy of the environment. Who the client is, every
request says for itself (`modelbox._transport.security`): the session would say it to anybody.

Belongs to the event loop that it is first used on, and must not be used in a forked child.
"""

from __future__ import annotations

import ipaddress
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp
import anyio
from yarl import URL

from modelbox._transport.direct import (
    CHUNK_BYTES,
    DirectFailed,
    DirectPart,
    DirectTransfers,
    FileBody,
    direct_parts,
)
from modelbox._transport.faults import map_errors
from modelbox._transport.security import Security
from modelbox._wire import ACTOR_KEY, DIRECT_HEADER, REQUEST_KEY
from modelbox.config import ClientConfig, is_loopback
from modelbox.errors import (
    AuthError,
    ConflictError,
    DeadlineExceeded,
    IntegrityError,
    InvalidError,
    LimitError,
    ModelBoxError,
    NotAuthenticated,
    NotFoundError,
    ProtocolError,
    ServerBusy,
    StorageError,
    Unavailable,
    error_from_dict,
)
from modelbox.manifest import ManifestFile
from modelbox.ports import ByteStream
from modelbox.refs import ModelRef, shown

__all__ = ("CHUNK_BYTES", "HttpFiles", "ServerInfo", "UploadState")

_MAX_JSON_BYTES = 1 << 20
_CHECKED_BYTES_PER_S = 20e6
_LOG = logging.getLogger(__name__)
_BY_STATUS: Mapping[int, type[ModelBoxError]] = {
    400: InvalidError,
    401: NotAuthenticated,
    403: AuthError,
    404: ProtocolError,  # our server's own 404 carries an error in JSON
    408: Unavailable,
    413: LimitError,
    429: Unavailable,
    500: StorageError,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
    507: LimitError,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """What a server says of itself.

    Attributes:
        server_id: Stays the same for the life of the installation.
        version: ModelBox's release.
        grpc_address: A port of the same host, or ``host:port``; with TLS where HTTP has it.
        http_address: As it was bound or advertised.
        bytes_address: Where files are, if not at the server itself.
    """

    server_id: str
    version: str
    grpc_address: str
    http_address: str
    bytes_address: str = ""

    def grpc_target(self, url: str) -> tuple[str, int]:
        """Host and port to connect to, given that ``url`` reached the server.

        A server that knows only where it is bound says "every address" or "loopback"; seen from elsewhere, that is the
        host of ``url``.

        Raises:
            ProtocolError: The address is none.
        """
        url_host = urlsplit(url).hostname or ""
        host, colon, port_text = self.grpc_address.rpartition(":")
        host = host.strip("[]")
        if not (port_text.isascii() and port_text.isdigit() and len(port_text) < 6 and 0 < int(port_text) < 65536):
            raise ProtocolError(f"the server at {url} gives {shown(self.grpc_address)} as its gRPC address")
        if not host or not colon or _unspecified(host) or (is_loopback(host) and not is_loopback(url_host)):
            host = url_host
        return host, int(port_text)


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadState:
    """How far an upload is: go on at ``offset``; with ``complete``, nothing is left to send."""

    upload_id: str
    offset: int
    complete: bool


class HttpFiles:
    """The server's HTTP side.

    Concurrency: any number of tasks of one event loop.
    Errors: what the server answers; `Unavailable`, `DeadlineExceeded` and `ProtocolError` of the transport;
        `ConfigError` for files of TLS and tokens that cannot be used.

    Attributes:
        security: TLS and the token, for calls over gRPC, too.
    """

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self._peer = f"the server at {config.url}"
        self.security = Security(config)
        self._http: aiohttp.ClientSession | None = None
        self._direct = DirectTransfers(config, self.security)
        self._closed = False
        self._bytes_address = ""
        self._bytes_lost = False

    async def aclose(self) -> None:
        """Closes all connections; transfers that are under way fail. Idempotent."""
        self._closed = True
        if self._http is not None:
            await self._http.close()
        await self._direct.aclose()

    def _session(self) -> aiohttp.ClientSession:
        if self._closed:
            raise Unavailable(f"the connection to {self._peer} is closed")
        if self._http is None:
            self._http = aiohttp.ClientSession(
                auto_decompress=False,
                connector=aiohttp.TCPConnector(limit=64, keepalive_timeout=20, ssl=self.security.http),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={ACTOR_KEY: self._config.actor, "Accept-Encoding": "identity"},
                read_bufsize=CHUNK_BYTES,
                timeout=aiohttp.ClientTimeout(
                    total=None,
                    sock_connect=self._config.connect_timeout_s,
                    sock_read=self._config.stall_timeout_s,
                ),
                trust_env=False,
            )
        return self._http

    @asynccontextmanager
    async def _request(
        self, method: str, url: URL, *, headers: Mapping[str, str] | None = None, **more: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A request to the server, or to another one that it named; no redirect is followed."""
        host = url.host or ""
        said = self.security.headers(host, tls=url.scheme == "https")
        async with self._session().request(
            method,
            url,
            allow_redirects=False,
            headers={**said, **(headers or {})},
            server_hostname=self.security.name_of(host),
            **more,
        ) as response:
            if response.status == 401:
                self.security.rejected()
            yield response

    def _url(self, *segments: str, **query: str) -> URL:
        path = "/".join(quote(segment, safe="") for segment in segments)
        text = "&".join(f"{key}={quote(value, safe='')}" for key, value in query.items() if value)
        return URL(f"{self._config.url}/api/v1/{path}{'?' if text else ''}{text}", encoded=True)

    # --- the server ----------------------------------------------------------------------------------------------

    async def server_info(self) -> ServerInfo:
        """What the server says of itself.

        Raises:
            ProtocolError: What answers at the address is no ModelBox server.
        """
        try:
            data = await self._json("GET", self._url("server"))
        except Unavailable as exc:
            if not isinstance(exc.__cause__, aiohttp.ServerDisconnectedError):
                raise
            # What the other side's TLS has to say does not always get here.
            hint = "Does it ask for a client certificate (tls_client_cert)?"
            if not self.security.tls:
                hint = "Is it TLS that it speaks there, with an https:// address?"
            raise Unavailable(f"{exc.message}. {hint}") from exc
        try:
            info = ServerInfo(
                server_id=str(data["server_id"]),
                version=str(data["version"]),
                grpc_address=str(data["grpc_address"]),
                http_address=str(data.get("http_address", "")),
                bytes_address=str(data.get("bytes_address", "")),
            )
        except KeyError as exc:
            raise ProtocolError(f"{self._peer} is no ModelBox server: its answer lacks {exc}") from exc
        self._bytes_address, self._bytes_lost = info.bytes_address, False
        return info

    @asynccontextmanager
    async def _for_bytes(self, url: URL) -> AsyncIterator[URL]:
        """``url`` at the server that has files, for as long as it is used; after a break another one may be named."""
        if self._bytes_lost:
            await self.server_info()
        if not self._bytes_address:
            yield url
            return
        try:
            yield URL(f"{url.scheme}://{self._bytes_address}{url.raw_path_qs}", encoded=True)
        except (Unavailable, ServerBusy, DeadlineExceeded):
            self._bytes_lost = True
            raise

    async def _json(self, method: str, url: URL) -> Mapping[str, Any]:
        with map_errors(self._peer):
            async with self._request(method, url) as response:
                if response.status != 200:
                    raise await self._refusal(response)
                return await self._object(response)

    async def _object(self, response: aiohttp.ClientResponse) -> Mapping[str, Any]:
        body = await _limited(response)
        try:
            data = json.loads(body)
        except (ValueError, RecursionError) as exc:
            raise ProtocolError(f"{self._peer} is no ModelBox server: {shown(body[:60])} is not JSON") from exc
        if not isinstance(data, dict):
            raise ProtocolError(f"{self._peer} is no ModelBox server: {shown(body[:60])} is not a JSON object")
        return data

    async def _refusal(self, response: aiohttp.ClientResponse) -> ModelBoxError:
        """The error in an answer that is none of the expected ones."""
        body = await _limited(response)
        try:
            data = json.loads(body)
        except (ValueError, RecursionError):
            data = None
        if isinstance(data, dict) and isinstance(data.get("code"), str):
            error = error_from_dict(data)
            error.request_id = response.headers.get(REQUEST_KEY, "")
            return error
        cls = _BY_STATUS.get(response.status, ProtocolError)
        hint = "; is it a ModelBox server?" if cls is ProtocolError else ""
        return cls(f"{self._peer} answered {response.url.path} with HTTP status {response.status}{hint}")

    # --- down ----------------------------------------------------------------------------------------------------

    def open_version_file(
        self, ref: ModelRef, file: ManifestFile, *, offset: int = 0, download_id: str = ""
    ) -> AbstractAsyncContextManager[ByteStream]:
        """The bytes of one file of a version from ``offset`` on.

        Raises:
            NotFoundError: Version or file do not exist.
        """
        path = ("models", ref.namespace, ref.model, "versions", ref.selector, "files", *file.path.split("/"))
        return self._open_where_it_is(self._url(*path, download=download_id), file, offset)

    def open_artifact_file(
        self, artifact_id: str, file: ManifestFile, *, offset: int = 0
    ) -> AbstractAsyncContextManager[ByteStream]:
        """The bytes of one file of an artifact from ``offset`` on."""
        return self._open_where_it_is(self._url("artifacts", artifact_id, "files", *file.path.split("/")), file, offset)

    @asynccontextmanager
    async def _open_where_it_is(self, url: URL, file: ManifestFile, offset: int) -> AsyncIterator[ByteStream]:
        async with self._for_bytes(url) as there, self._open(there, file, offset) as stream:
            yield stream

    @asynccontextmanager
    async def _open(self, url: URL, file: ManifestFile, offset: int) -> AsyncIterator[ByteStream]:
        if offset >= file.size_bytes:
            yield _empty()
            return
        if self._direct.may_read(file, offset) and (address := await self._direct_address(url)):
            try:
                async with self._direct.open(address, file, offset) as stream:
                    yield stream
                    return
            except DirectFailed as exc:
                _LOG.info("%s; going on through %s", exc, self._peer)
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        async with AsyncExitStack() as stack:
            with map_errors(self._peer):
                response = await stack.enter_async_context(self._request("GET", url, headers=headers))
                if response.status == 404:
                    error = await self._refusal(response)
                    raise error if isinstance(error, NotFoundError) else NotFoundError(error.message)
                if response.status != (206 if offset else 200):
                    raise await self._refusal(response)
                expected = f"bytes {offset}-"
                if offset and not response.headers.get("Content-Range", "").startswith(expected):
                    raise ProtocolError(f"{self._peer} did not begin {shown(file.path)} at byte {offset}")
            yield self._chunks(response)

    async def _direct_address(self, url: URL) -> str:
        """Where the server says that the file can be read without it; empty if it can not."""
        # A server that knows no such addresses sends what is asked for: one byte, and not the first, which would count
        # as a download.
        headers = {DIRECT_HEADER: "1", "Range": "bytes=1-1"}
        with map_errors(self._peer):
            async with self._request("GET", url, headers=headers) as response:
                if response.status == 200 and DIRECT_HEADER in response.headers:
                    return str((await self._object(response)).get("url", ""))
        self._direct.rest()
        return ""

    async def _chunks(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        chunks = response.content.iter_chunked(CHUNK_BYTES)
        while True:
            with map_errors(self._peer):
                try:
                    chunk = await anext(chunks)
                except StopAsyncIteration:
                    return
                except aiohttp.SocketTimeoutError as exc:
                    raise Unavailable(
                        f"{self._peer} sent nothing for {self._config.stall_timeout_s:g} s in a download"
                    ) from exc
            yield chunk

    # --- up ------------------------------------------------------------------------------------------------------

    async def send(
        self, upload_id: str, local: Path, *, offset: int, size_bytes: int, on_bytes: Callable[[int], None]
    ) -> UploadState:
        """Sends the bytes of ``local`` from ``offset`` to ``size_bytes``.

        Args:
            upload_id: Of the upload that the server has open.
            local: The file; opened anew.
            offset: Must be what the server holds.
            size_bytes: Where the file ends.
            on_bytes: Called with the offset of what was handed to the network.

        Raises:
            ConflictError: The server holds another offset (``fields["current"]``).
            IntegrityError: What arrived is not what the digest says; the upload is gone.
            InvalidError: The file is shorter than it was, or cannot be read.
            Unavailable: The connection broke or stood still; what arrived is kept.
        """
        direct = False
        if self._direct.may_send(size_bytes - offset):
            direct = await self._send_direct(upload_id, local, size_bytes=size_bytes, on_bytes=on_bytes)
            offset = size_bytes if direct else offset
        try:
            async with self._for_bytes(self._url("uploads", upload_id)) as url:
                return await self._send(url, local, offset=offset, size_bytes=size_bytes, on_bytes=on_bytes)
        except (ConflictError, IntegrityError) as exc:
            if direct:
                # What was accepted there did not arrive, or as something else.
                self._direct.rest()
            if direct and isinstance(exc, IntegrityError):
                raise Unavailable(f"what was sent directly arrived as something else: {exc.message}") from exc
            raise

    async def _send_direct(
        self, upload_id: str, local: Path, *, size_bytes: int, on_bytes: Callable[[int], None]
    ) -> bool:
        """Sends the rest of a file to where the server says; False if that is not possible, or did not work."""
        offset = -1
        while offset < size_bytes:
            try:
                parts = await self._signed_parts(upload_id)
                if not parts or parts[0].offset <= offset:
                    self._direct.rest()
                    return False
                await self._direct.send(parts, local, on_bytes)
            except DirectFailed as exc:
                # What came that far is in the upload, and the caller asks the server how far that is.
                raise Unavailable(f"{exc}; going on through {self._peer}") from exc
            offset = parts[-1].offset + parts[-1].size_bytes - 1
            if offset + 1 == size_bytes:
                return True
        return False

    async def _signed_parts(self, upload_id: str) -> list[DirectPart]:
        with map_errors(self._peer):
            url = self._url("uploads", upload_id, "urls")
            async with self._request("POST", url) as response:
                if response.status != 200:
                    await _limited(response)
                    return []
                return direct_parts(await self._object(response), self._peer)

    async def _send(
        self, url: URL, local: Path, *, offset: int, size_bytes: int, on_bytes: Callable[[int], None]
    ) -> UploadState:
        # After the last byte the server may have to read all of them, or to copy them.
        stall_s, check_s = self._config.stall_timeout_s, size_bytes / _CHECKED_BYTES_PER_S
        patience_s = stall_s + (check_s if offset == size_bytes else 0)
        with anyio.CancelScope(deadline=anyio.current_time() + patience_s) as scope:

            def alive(sent_to: int) -> None:
                scope.deadline = anyio.current_time() + stall_s + (check_s if sent_to == size_bytes else 0)
                on_bytes(sent_to)

            body = FileBody(local, offset, size_bytes, alive)
            try:
                with map_errors(self._peer):
                    async with self._request(
                        "PATCH",
                        url,
                        data=body,
                        headers={
                            "Content-Length": str(size_bytes - offset),
                            "Content-Type": "application/octet-stream",
                            "Upload-Offset": str(offset),
                        },
                        timeout=aiohttp.ClientTimeout(
                            total=None, sock_connect=self._config.connect_timeout_s, sock_read=None
                        ),
                    ) as response:
                        if response.status not in (200, 201):
                            raise await self._refusal(response)
                        return _upload_state(await self._object(response), self._peer)
            except ModelBoxError as exc:
                if body.error is not None:
                    raise body.error from exc
                raise
        raise Unavailable(f"{self._peer} took nothing for {stall_s:g} s in an upload")


def _upload_state(data: Mapping[str, Any], peer: str) -> UploadState:
    try:
        return UploadState(
            upload_id=str(data["upload_id"]), offset=int(data["offset"]), complete=data["complete"] is True
        )
    except (KeyError, TypeError, ValueError, OverflowError) as exc:
        raise ProtocolError(f"{peer} gave an answer to an upload that cannot be read") from exc


async def _empty() -> AsyncIterator[bytes]:
    nothing: tuple[bytes, ...] = ()
    for chunk in nothing:
        yield chunk


async def _limited(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_chunked(CHUNK_BYTES):
        body += chunk
        if len(body) > _MAX_JSON_BYTES:
            raise ProtocolError(f"the answer of {response.url.host} is longer than {_MAX_JSON_BYTES} bytes")
    return bytes(body)


def _unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return host == "*"
