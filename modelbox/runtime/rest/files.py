"""Bytes over HTTP: uploads that resume, downloads with ranges.

Owns the HTTP side of transfers: conditional and range requests (RFC 9110), sendfile, and the end of transfers that
stand still. An entity tag is the content's digest, so a resumed download can say of which bytes it has the beginning.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from urllib.parse import quote

import anyio
import anyio.lowlevel
from aiohttp import web

from modelbox._wire import DIRECT_HEADER
from modelbox.errors import DeadlineExceeded, InvalidError
from modelbox.refs import ModelRef, shown
from modelbox.runtime.caller import current_actor, current_caller
from modelbox.runtime.metrics import Metrics
from modelbox.runtime.rest.bodies import body_of
from modelbox.runtime.rest.boundary import json_response
from modelbox.runtime.services.artifacts import ArtifactService, OpenFile, Upload

__all__ = ("FileRoutes", "parse_range", "ref_of")

_CHUNK = 1 << 20
_RANGE = re.compile(r"bytes=(?:(\d{1,19})-(\d{0,19})|-(\d{1,19}))")


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The range that a ``Range`` header asks for.

    Args:
        header: The header; several ranges and other units are ignored, as the RFC allows.
        size: Of the file, in bytes.

    Returns:
        First byte and length; a length of 0 means that nothing of it exists (416). None means the whole file.
    """
    match = _RANGE.fullmatch(header.strip().replace(" ", "")) if header else None
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        length = min(int(suffix), size)
        return size - length, length
    start = int(first)
    if last and int(last) < start:
        return None
    end = min(int(last), size - 1) if last else size - 1
    return start, max(0, end + 1 - start)


def ref_of(request: web.Request) -> ModelRef:
    """The reference that a path of ``/models/{ns}/{model}/versions/{selector}`` names."""
    info = request.match_info
    return ModelRef.parse(f"{info['ns']}/{info['model']}@{info['selector']}")


class FileRoutes:
    """Handlers of uploads and downloads.

    Args:
        artifacts: The service.
        metrics: Where bytes are counted.
        stall_timeout_s: How long a transfer may stand still.
    """

    def __init__(self, artifacts: ArtifactService, metrics: Metrics, *, stall_timeout_s: float) -> None:
        self._artifacts = artifacts
        self._metrics = metrics
        self._stall_timeout_s = stall_timeout_s

    # -- uploads ---------------------------------------------------------------------------------------------------

    async def begin_upload(self, request: web.Request) -> web.StreamResponse:
        """POST /api/v1/uploads with ``{"namespace", "digest", "size_bytes"}``."""
        # In UTF-8, whatever its header says: so the gate has read it, which must not have read another namespace.
        body = await body_of(request)
        namespace, digest, size_bytes = (body.get(name) for name in ("namespace", "digest", "size_bytes"))
        if not (isinstance(namespace, str) and isinstance(digest, str) and isinstance(size_bytes, int)):
            raise InvalidError('expected JSON: {"namespace": …, "digest": "sha256:…", "size_bytes": …}')
        upload = await self._artifacts.begin_upload(namespace, digest, size_bytes, caller=current_caller())
        return json_response(_upload_json(upload))

    async def get_upload(self, request: web.Request) -> web.StreamResponse:
        """GET /api/v1/uploads/{id}."""
        return json_response(_upload_json(await self._artifacts.upload_offset(request.match_info["id"])))

    async def sign_upload(self, request: web.Request) -> web.StreamResponse:
        """POST /api/v1/uploads/{id}/urls: where the next bytes may be sent to directly, if anywhere."""
        parts = await self._artifacts.sign_upload(request.match_info["id"])
        found = [
            {"offset": part.offset, "size_bytes": part.size_bytes, "url": part.url, "headers": dict(part.headers)}
            for part in parts
        ]
        response = json_response({"parts": found})
        response.headers["Cache-Control"] = "no-store"
        return response

    async def write_upload(self, request: web.Request) -> web.StreamResponse:
        """PATCH /api/v1/uploads/{id} with ``Upload-Offset``; the body is the bytes from there on."""
        header = request.headers.get("Upload-Offset", "")
        if not header.isdecimal() or len(header) > 19:
            raise InvalidError(f"the header Upload-Offset is {shown(header)}: expected the number of bytes sent before")
        upload = await self._artifacts.write_upload(request.match_info["id"], int(header), self._chunks(request))
        return json_response(_upload_json(upload))

    async def _chunks(self, request: web.Request) -> AsyncIterator[bytes]:
        while True:
            try:
                with anyio.fail_after(self._stall_timeout_s):
                    chunk = await request.content.read(_CHUNK)
            except TimeoutError as exc:
                raise DeadlineExceeded(
                    f"nothing came for {self._stall_timeout_s} s: ask for the offset and continue"
                ) from exc
            if not chunk:
                return
            self._metrics.count_bytes("http", "in", len(chunk))
            yield chunk

    # -- downloads -------------------------------------------------------------------------------------------------

    async def get_version_file(self, request: web.Request) -> web.StreamResponse:
        """GET and HEAD /api/v1/models/{ns}/{model}/versions/{selector}/files/{path}."""
        ref, actor = ref_of(request), current_actor()
        # Only a reader of the first bytes counts as a download.
        conditional = any(name in request.headers for name in ("If-None-Match", "If-Match"))
        begins = request.method == "GET" and _first_byte(request) == 0

        async def record() -> None:
            if conditional and begins and not download_id:
                await self._artifacts.begin_download(ref, actor=actor)

        download_id = request.query.get("download", "")
        file = await self._artifacts.open_version_file(
            ref,
            request.match_info["path"],
            download_id=download_id,
            actor=actor,
            offset=0 if begins and not conditional else 1,
        )
        return await self._send(request, file, record)

    async def get_artifact_file(self, request: web.Request) -> web.StreamResponse:
        """GET and HEAD /api/v1/artifacts/{id}/files/{path}."""

        async def record() -> None:
            return

        info = request.match_info
        return await self._send(request, await self._artifacts.open_artifact_file(info["id"], info["path"]), record)

    async def _send(
        self, request: web.Request, file: OpenFile, record: Callable[[], Awaitable[None]]
    ) -> web.StreamResponse:
        name = request.match_info["path"].rpartition("/")[2]
        etag = f'"{file.digest}"'
        response = web.StreamResponse(
            headers={
                "Accept-Ranges": "bytes",
                "Cache-Control": "no-cache",
                "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",
                "Content-Security-Policy": "sandbox; default-src 'none'",
                "Content-Type": file.media_type,
                "ETag": etag,
                "X-Content-Type-Options": "nosniff",
            }
        )
        if (wanted := request.headers.get("If-Match")) is not None and not _matches(wanted, etag, weak=False):
            response.set_status(412)
            return response
        if (held := request.headers.get("If-None-Match")) is not None and _matches(held, etag, weak=True):
            response.set_status(304)
            return response
        await record()
        if request.method == "GET" and DIRECT_HEADER in request.headers and (url := await file.sign()):
            # Bytes that bypass this server are its own answer only in what it allows.
            direct = json_response({"url": url, "size_bytes": file.size_bytes, "digest": file.digest})
            direct.headers.update({DIRECT_HEADER: "1", "Cache-Control": "no-store"})
            return direct
        start, length = 0, file.size_bytes
        if_range = request.headers.get("If-Range")
        if (if_range is None or if_range.strip() == etag) and (
            (part := parse_range(request.headers.get("Range"), file.size_bytes)) is not None
        ):
            start, length = part
            if length == 0:
                response.set_status(416)
                response.headers["Content-Range"] = f"bytes */{file.size_bytes}"
                response.content_length = 0
                return response
            response.set_status(206)
            response.headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{file.size_bytes}"
        response.content_length = length
        await response.prepare(request)
        if request.method != "HEAD" and length:
            await self._send_body(request, response, file, start, length)
        return response

    async def _send_body(
        self, request: web.Request, response: web.StreamResponse, file: OpenFile, start: int, length: int
    ) -> None:
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the peer is gone")
        try:
            socket = transport.get_extra_info("socket")
            if file.local_path is not None and socket is not None and not transport.get_extra_info("sslcontext"):
                while transport.get_write_buffer_size():
                    with anyio.fail_after(self._stall_timeout_s):
                        await anyio.sleep(0.0005)
                await self._sendfile(socket.fileno(), file.local_path, start, length)
            else:
                async for chunk in file.read(start, length):
                    with anyio.fail_after(self._stall_timeout_s):
                        await response.write(chunk)
                    self._metrics.count_bytes("http", "out", len(chunk))
        except TimeoutError as exc:
            self._metrics.count_slow_reader("http")
            transport.abort()
            raise ConnectionResetError("the peer does not read") from exc
        await response.write_eof()

    async def _sendfile(self, socket_fd: int, path: Path, start: int, length: int) -> None:
        """Has the kernel copy the file into the socket; works on every event loop, uvloop included, which has none."""
        # A loop does not let others wait for the descriptor of a transport.
        out = os.dup(socket_fd)
        try:
            source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                end = start + length
                while start < end:
                    try:
                        sent = os.sendfile(out, source, start, min(_CHUNK, end - start))
                    except BlockingIOError:
                        with anyio.fail_after(self._stall_timeout_s):
                            await anyio.wait_writable(out)
                        continue
                    if not sent:
                        raise ConnectionResetError(f"the file {path.name} ends early")
                    start += sent
                    self._metrics.count_bytes("http", "out", sent)
                    await anyio.lowlevel.checkpoint()
            finally:
                os.close(source)
        finally:
            os.close(out)


def _first_byte(request: web.Request) -> int:
    match = _RANGE.fullmatch(request.headers.get("Range", "").strip())
    if match is None:
        return 0
    return int(match[1]) if match[1] is not None else 1


def _matches(header: str, etag: str, *, weak: bool) -> bool:
    tags = [tag.strip() for tag in header.split(",")]
    if weak:
        tags = [tag.removeprefix("W/") for tag in tags]
    return "*" in tags or etag in tags


def _upload_json(upload: Upload) -> dict[str, object]:
    return {"upload_id": upload.id, "offset": upload.offset, "complete": upload.complete}
