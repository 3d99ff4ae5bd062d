"""Bytes to and from where the server keeps them, without the server in between.

A server with its files in an S3-compatible store may hand out addresses at which one file can be read, or one part of
an upload be sent, for a few minutes. Owns the requests to such addresses and the memory of whether they work from here.
Invariants:

* Nothing of ours is sent along: no name, no credentials, no cookie. No redirect is followed.
* An address is a secret: it is in no error and no log line.
* Nothing depends on it. What fails here is done through the server, and then the direct way rests for a while.
* Nobody believes what comes: a download is verified like any other, and an upload by the server. Who asks for the same
  bytes again, as they were not right, gets them from the server.
"""

from __future__ import annotations

import base64
import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import anyio.to_thread
from yarl import URL

from modelbox._transport.faults import map_errors
from modelbox._transport.security import Security
from modelbox.config import ClientConfig
from modelbox.errors import InvalidError, ModelBoxError, ProtocolError, Unavailable
from modelbox.manifest import ManifestFile
from modelbox.ports import ByteStream
from modelbox.refs import Digest

__all__ = ("CHUNK_BYTES", "DirectFailed", "DirectPart", "DirectTransfers", "FileBody", "direct_parts")

CHUNK_BYTES = 1 << 20
"""How much is read or written at once."""

_MIN_READ_BYTES = 1 << 20
_MIN_SEND_BYTES = 8 << 20
_PARTS_AT_A_TIME = 3
_CHECKSUMMED_BYTES = 16 << 20
_REST_S = 300.0
_REMEMBERED = 256


class DirectFailed(Exception):
    """It did not work; the text says with whom and why, and holds no address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectPart:
    """Bytes of a file and where they go: one PUT with these headers."""

    offset: int
    size_bytes: int
    url: URL = field(repr=False)
    headers: Mapping[str, str]


def direct_parts(data: Mapping[str, Any], peer: str) -> list[DirectPart]:
    """Reads the server's answer.

    Raises:
        ProtocolError: It is none.
    """
    try:
        parts = [
            DirectPart(
                offset=int(part["offset"]),
                size_bytes=int(part["size_bytes"]),
                url=_address(part["url"]),
                headers={str(key): str(value) for key, value in part["headers"].items()},
            )
            for part in data["parts"]
        ]
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, DirectFailed):
        raise ProtocolError(f"{peer} gave addresses for an upload that cannot be read") from None
    if any(after.offset != before.offset + before.size_bytes for before, after in pairwise(parts)):
        raise ProtocolError(f"{peer} gave addresses for an upload that leave a gap")
    return parts


class DirectTransfers:
    """Requests to such addresses. Belongs to one event loop; see the module."""

    def __init__(self, config: ClientConfig, security: Security) -> None:
        self._config = config
        self._security = security
        self._http: aiohttp.ClientSession | None = None
        self._rests_until = 0.0
        self._delivered: OrderedDict[Digest, float] = OrderedDict()

    async def aclose(self) -> None:
        """Closes all connections. Idempotent."""
        if self._http is not None:
            await self._http.close()

    def rest(self) -> None:
        """Goes through the server for the next minutes."""
        self._rests_until = time.monotonic() + _REST_S

    def may_send(self, size_bytes: int) -> bool:
        """Whether it is worth asking the server for addresses for that many bytes."""
        return size_bytes >= _MIN_SEND_BYTES and time.monotonic() >= self._rests_until

    def may_read(self, file: ManifestFile, offset: int) -> bool:
        """Whether it is worth asking the server for the address of a file."""
        now = time.monotonic()
        if file.size_bytes - offset < _MIN_READ_BYTES or now < self._rests_until:
            return False
        return offset > 0 or now >= self._delivered.get(file.digest, 0.0) + _REST_S

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            self._http = aiohttp.ClientSession(
                auto_decompress=False,
                connector=aiohttp.TCPConnector(limit=64, keepalive_timeout=20, ssl=self._security.elsewhere),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Accept-Encoding": "identity"},
                read_bufsize=CHUNK_BYTES,
                timeout=aiohttp.ClientTimeout(
                    total=None,
                    sock_connect=self._config.connect_timeout_s,
                    sock_read=self._config.stall_timeout_s,
                ),
                trust_env=False,
            )
        return self._http

    # --- down ----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def open(self, address: str, file: ManifestFile, offset: int) -> AsyncIterator[ByteStream]:
        """The bytes of a file from ``offset`` on.

        Raises:
            DirectFailed: It cannot be read there; raised by entering only.
            Unavailable: The stream broke.
        """
        url = _address(address)
        what = f"the blob store at {url.host}"
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        request = self._session().get(url, headers=headers, allow_redirects=False)
        try:
            with map_errors(what):
                response = await request.__aenter__()
        except ModelBoxError as exc:
            self.rest()
            raise DirectFailed(exc.message) from exc
        try:
            if not _is_wanted(response, file, offset):
                self.rest()
                raise DirectFailed(f"{what} answered with HTTP status {response.status} and not with the file")
            yield self._chunks(response, what, file, offset)
        finally:
            # The rest of what nobody reads any more is cut off, not drained.
            response.close()

    async def _chunks(
        self, response: aiohttp.ClientResponse, what: str, file: ManifestFile, offset: int
    ) -> AsyncIterator[bytes]:
        chunks = response.content.iter_chunked(CHUNK_BYTES)
        while True:
            try:
                with map_errors(what):
                    try:
                        chunk = await anext(chunks)
                    except StopAsyncIteration:
                        return
                    except aiohttp.SocketTimeoutError as exc:
                        raise Unavailable(f"{what} sent nothing for {self._config.stall_timeout_s:g} s") from exc
            except ModelBoxError:
                self.rest()
                raise
            offset += len(chunk)
            if offset >= file.size_bytes:
                self._delivered[file.digest] = time.monotonic()
                while len(self._delivered) > _REMEMBERED:
                    self._delivered.popitem(last=False)
            yield chunk

    # --- up ------------------------------------------------------------------------------------------------------

    async def send(self, parts: Sequence[DirectPart], local: Path, on_bytes: Callable[[int], None]) -> None:
        """Sends parts of a file, three at a time.

        Args:
            parts: In order, without gaps.
            local: The file.
            on_bytes: Called with the offset up to which it would be sent if the parts went one after the other.

        Raises:
            DirectFailed: One could not be sent; others may have been.
            InvalidError: The file cannot be read, or is shorter than it was.
        """
        waiting = iter(parts)
        done = parts[0].offset

        def advance(count: int) -> None:
            nonlocal done
            done += count
            on_bytes(done)

        async def worker() -> None:
            for part in waiting:
                await self._put(part, local, advance)

        try:
            async with anyio.create_task_group() as tasks:
                for number in range(min(_PARTS_AT_A_TIME, len(parts))):
                    tasks.start_soon(worker, name=f"send parts {number + 1}")
        except BaseExceptionGroup as group:
            error = _first(group)
            if isinstance(error, ModelBoxError) and not isinstance(error, InvalidError):
                self.rest()
                raise DirectFailed(error.message) from error
            raise error from group

    async def _put(self, part: DirectPart, local: Path, advance: Callable[[int], None]) -> None:
        what, stall_s = f"the blob store at {part.url.host}", self._config.stall_timeout_s
        headers = {"Content-Type": "application/octet-stream", **part.headers, "Content-Length": str(part.size_bytes)}
        if part.size_bytes <= _CHECKSUMMED_BYTES and not part.headers:
            # The store refuses bytes that changed on the way.
            headers["Content-MD5"] = await anyio.to_thread.run_sync(_md5, local, part)
        with anyio.CancelScope(deadline=anyio.current_time() + stall_s) as scope:
            sent = part.offset

            def alive(offset: int) -> None:
                nonlocal sent
                scope.deadline = anyio.current_time() + stall_s
                advance(offset - sent)
                sent = offset

            body = FileBody(local, part.offset, part.offset + part.size_bytes, alive)
            try:
                with map_errors(what):
                    async with self._session().put(
                        part.url,
                        allow_redirects=False,
                        data=body,
                        headers=headers,
                        timeout=aiohttp.ClientTimeout(
                            total=None, sock_connect=self._config.connect_timeout_s, sock_read=None
                        ),
                    ) as response:
                        if response.status not in (200, 201, 204):
                            raise Unavailable(f"{what} answered an upload with HTTP status {response.status}")
                        return
            except ModelBoxError as exc:
                if body.error is not None:
                    raise body.error from exc
                raise
        raise Unavailable(f"{what} took nothing for {stall_s:g} s in an upload")


def _is_wanted(response: aiohttp.ClientResponse, file: ManifestFile, offset: int) -> bool:
    if response.status != (206 if offset else 200):
        return False
    if response.content_length not in (None, file.size_bytes - offset):
        return False
    return (
        not offset or response.headers.get("Content-Range") == f"bytes {offset}-{file.size_bytes - 1}/{file.size_bytes}"
    )


def _address(text: object) -> URL:
    try:
        # Encoded: what is signed must not be quoted anew.
        url = URL(str(text), encoded=True)
        if url.scheme in ("http", "https") and url.host and url.user is None:
            return url
    except ValueError:
        pass
    raise DirectFailed("the server gave an address that is none") from None


def _md5(local: Path, part: DirectPart) -> str:
    found = hashlib.md5(usedforsecurity=False)
    try:
        with local.open("rb") as file:
            file.seek(part.offset)
            left = part.size_bytes
            while left and (block := file.read(min(CHUNK_BYTES, left))):
                found.update(block)
                left -= len(block)
    except OSError as exc:
        raise InvalidError(f"{local} cannot be read: {exc.strerror}", path=str(local)) from exc
    return base64.b64encode(found.digest()).decode()


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class FileBody:
    """The rest of a file as the body of a request; keeps its own error, which aiohttp would hide in one of its own."""

    def __init__(self, local: Path, offset: int, size_bytes: int, alive: Callable[[int], None]) -> None:
        self._local = local
        self._offset = offset
        self._size_bytes = size_bytes
        self._alive = alive
        self.error: InvalidError | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            fd = await anyio.to_thread.run_sync(os.open, self._local, os.O_RDONLY)
            try:
                while self._offset < self._size_bytes:
                    count = min(CHUNK_BYTES, self._size_bytes - self._offset)
                    chunk = await anyio.to_thread.run_sync(os.pread, fd, count, self._offset)
                    if not chunk:
                        raise OSError(0, "it became shorter while it was uploaded")
                    yield chunk
                    self._offset += len(chunk)
                    self._alive(self._offset)
            finally:
                os.close(fd)
        except OSError as exc:
            self.error = InvalidError(f"{self._local} cannot be read: {exc.strerror}", path=str(self._local))
            raise self.error from exc
