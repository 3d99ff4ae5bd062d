"""Uploads and downloads over gRPC and HTTP, on a real server process."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import anyio
import pytest
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError
from yarl import URL

from modelbox import errors
from modelbox._proto.modelbox import v1 as pb
from modelbox.feed import ResumeToken
from tests.faults.registry import fault
from tests.server import ServerProcess
from tests.stubs import connect, digest_of, publish, upload

DATA = random.Random(7).randbytes(3_000_001)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@contextlib.asynccontextmanager
async def _http(server: ServerProcess) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(server.url, auto_decompress=False) as session:
        yield session


async def _begin(http: aiohttp.ClientSession, namespace: str, data: bytes) -> dict[str, object]:
    body = {"namespace": namespace, "digest": digest_of(data), "size_bytes": len(data)}
    async with http.post("/api/v1/uploads", json=body) as response:
        assert response.status == 200, await response.text()
        begun = await response.json()
    assert isinstance(begun, dict)
    return begun


async def _patch(http: aiohttp.ClientSession, upload_id: object, offset: int, data: object) -> tuple[int, object]:
    if isinstance(data, bytes):
        data = io.BytesIO(data)
    async with http.patch(
        f"/api/v1/uploads/{upload_id}", data=data, headers={"Upload-Offset": str(offset)}
    ) as response:
        return response.status, json.loads(await response.text())


async def _scraped(server: ServerProcess, text: str) -> None:
    """Waits until the metrics hold ``text``."""
    async with aiohttp.ClientSession() as http:
        with anyio.fail_after(60):
            while True:
                async with http.get(server.metrics_url) as response:
                    if text in await response.text():
                        return
                await anyio.sleep(0.05)


# --- uploads -----------------------------------------------------------------------------------------------------


async def test_an_upload_over_http_is_there_for_this_namespace_only(shared_server: ServerProcess) -> None:
    data = DATA[:2_000_000]
    async with _http(shared_server) as http:
        begun = await _begin(http, "up-http", data)
        assert (begun["offset"], begun["complete"]) == (0, False)
        status, done = await _patch(http, begun["upload_id"], 0, data)
        assert status == 200
        assert done == {"upload_id": begun["upload_id"], "offset": len(data), "complete": True}
        assert (await _begin(http, "up-http", data))["complete"] is True
        # To know a digest is not to have the bytes.
        assert (await _begin(http, "up-elsewhere", data))["complete"] is False


async def test_an_upload_goes_on_where_it_broke_off(shared_server: ServerProcess) -> None:
    async with _http(shared_server) as http:
        begun = await _begin(http, "up-resume", DATA)
        assert await _patch(http, begun["upload_id"], 0, DATA[:1_000_000]) == (
            200,
            {"upload_id": begun["upload_id"], "offset": 1_000_000, "complete": False},
        )
        status, wrong = await _patch(http, begun["upload_id"], 5, DATA[5:])
        assert status == 409
        assert isinstance(wrong, dict)
        assert wrong["fields"]["current"] == 1_000_000
        async with http.get(f"/api/v1/uploads/{begun['upload_id']}") as response:
            assert (await response.json())["offset"] == 1_000_000
        status, done = await _patch(http, begun["upload_id"], 1_000_000, DATA[1_000_000:])
        assert (status, isinstance(done, dict) and done["complete"]) == (200, True)


async def test_bytes_that_arrived_before_a_connection_broke_are_kept(shared_server: ServerProcess) -> None:
    async with _http(shared_server) as http:
        begun = await _begin(http, "up-break", DATA)
        host, _, port = shared_server.http_address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"PATCH /api/v1/uploads/{begun['upload_id']} HTTP/1.1\r\nHost: {shared_server.http_address}\r\n"
            f"Upload-Offset: 0\r\nContent-Length: {len(DATA)}\r\n\r\n".encode()
            + DATA[:1_500_000]
        )
        await writer.drain()
        offset = 0
        with anyio.fail_after(60):
            while offset < 1_000_000:
                async with http.get(f"/api/v1/uploads/{begun['upload_id']}") as response:
                    offset = (await response.json())["offset"]
        writer.transport.abort()
        del reader
        with anyio.fail_after(60):
            while True:
                offset = int(str((await _begin(http, "up-break", DATA))["offset"]))
                status, done = await _patch(http, begun["upload_id"], offset, DATA[offset:])
                if status != 409:
                    break
        assert (status, isinstance(done, dict) and done["complete"]) == (200, True)
        assert offset >= 1_000_000


@fault(34)
async def test_an_upload_goes_on_after_the_server_was_killed(server: ServerProcess) -> None:
    async with _http(server) as http:
        begun = await _begin(http, "up-kill", DATA)
        await _patch(http, begun["upload_id"], 0, DATA[:2_000_000])
    server.kill()
    server.restart()
    async with _http(server) as http:
        again = await _begin(http, "up-kill", DATA)
        offset = int(str(again["offset"]))
        assert 0 <= offset <= 2_000_000
        status, done = await _patch(http, again["upload_id"], offset, DATA[offset:])
        assert (status, isinstance(done, dict) and done["complete"]) == (200, True)


@pytest.mark.parametrize("wrong", ["content", "too long"])
async def test_wrong_bytes_are_refused_and_forgotten(shared_server: ServerProcess, wrong: str) -> None:
    data = DATA[:100_000]
    sent = b"x" + data[1:] if wrong == "content" else data + b"x"
    async with _http(shared_server) as http:
        begun = await _begin(http, f"up-wrong-{wrong[:3]}", data)
        status, body = await _patch(http, begun["upload_id"], 0, sent)
        assert status == 422
        assert isinstance(body, dict)
        assert body["code"] == "integrity"
        assert (await _begin(http, f"up-wrong-{wrong[:3]}", data))["offset"] == 0


@pytest.mark.parametrize("offset", ["", "-1", "x", "1" * 20, "0x1"])
async def test_a_bad_offset_header_is_invalid(shared_server: ServerProcess, offset: str) -> None:
    async with (
        _http(shared_server) as http,
        http.patch("/api/v1/uploads/abc", data=b"", headers={"Upload-Offset": offset}) as response,
    ):
        assert response.status == 400
        assert "Upload-Offset" in (await response.json())["message"]


@pytest.mark.parametrize("body", [b"{", b"[]", b"{}", b'{"namespace":"a","digest":"x","size_bytes":1}', b"[" * 90_000])
async def test_a_bad_body_is_invalid(shared_server: ServerProcess, body: bytes) -> None:
    async with _http(shared_server) as http, http.post("/api/v1/uploads", data=body) as response:
        assert response.status == 400
        assert (await response.json())["code"] == "invalid"
    assert "Traceback" not in shared_server.output


async def test_a_body_that_is_no_file_is_limited(shared_server: ServerProcess) -> None:
    async with (
        _http(shared_server) as http,
        http.post("/api/v1/uploads", data=io.BytesIO(b" " * (2 << 20))) as response,
    ):
        assert response.status == 413
        assert (await response.json())["code"] == "limit"


async def test_a_grpc_upload_that_breaks_off_goes_on(shared_server: ServerProcess) -> None:
    async with connect(shared_server.grpc_address) as stubs:
        request = pb.BeginUploadRequest(namespace="up-grpc", digest=digest_of(DATA), size_bytes=len(DATA))
        begun = await stubs.artifacts.begin_upload(request)

        async def part() -> AsyncIterator[pb.UploadRequest]:
            yield pb.UploadRequest(upload_id=begun.upload_id, offset=0, data=DATA[:1_000_000])

        with pytest.raises(GRPCError, match="ended after 1000000 of 3000001 bytes"):
            await stubs.artifacts.upload(part())
        assert (await stubs.artifacts.begin_upload(request)).offset == 1_000_000
        assert await upload(stubs, "up-grpc", DATA) == digest_of(DATA)
        assert (await stubs.artifacts.begin_upload(request)).complete


# --- downloads ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def published(shared_server: ServerProcess) -> str:
    async with connect(shared_server.grpc_address) as stubs:
        await publish(stubs, "down", "m", {"dir/model.onnx": DATA, "empty.txt": b""}, aliases=("prod",))
    return "/api/v1/models/down/m/versions/prod/files/dir/model.onnx"


async def test_a_file_comes_back_over_grpc_from_any_offset(shared_server: ServerProcess, published: str) -> None:
    async with connect(shared_server.grpc_address) as stubs:
        for offset in (0, 1, 1 << 20, len(DATA) - 1, len(DATA)):
            request = pb.DownloadRequest(ref="down/m@prod", path="dir/model.onnx", offset=offset)
            chunks = [message.data async for message in stubs.artifacts.download(request)]
            assert all(len(chunk) <= 1 << 20 for chunk in chunks)
            assert b"".join(chunks) == DATA[offset:]
        with pytest.raises(GRPCError, match="outside of a file"):
            async for _ in stubs.artifacts.download(
                pb.DownloadRequest(ref="down/m@prod", path="dir/model.onnx", offset=len(DATA) + 1)
            ):
                raise AssertionError("bytes behind the end")


@fault(69)
async def test_a_file_comes_back_over_http_as_an_attachment(shared_server: ServerProcess, published: str) -> None:
    async with _http(shared_server) as http, http.get(published) as response:
        assert response.status == 200
        assert await response.read() == DATA
        assert response.headers["ETag"] == f'"{digest_of(DATA)}"'
        assert response.headers["Accept-Ranges"] == "bytes"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Content-Disposition"].startswith("attachment;")


@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=1000000-", 1_000_000, len(DATA)),
        ("bytes=-5", len(DATA) - 5, len(DATA)),
        ("bytes=10-99999999999", 10, len(DATA)),
        ("bytes=-99999999", 0, len(DATA)),
        (f"bytes={len(DATA) - 1}-{len(DATA) - 1}", len(DATA) - 1, len(DATA)),
    ],
)
async def test_a_range_is_answered_with_that_part(
    shared_server: ServerProcess, published: str, header: str, start: int, stop: int
) -> None:
    async with _http(shared_server) as http, http.get(published, headers={"Range": header}) as response:
        assert response.status == 206
        assert response.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(DATA)}"
        assert await response.read() == DATA[start:stop]


@pytest.mark.parametrize("header", [f"bytes={len(DATA)}-", "bytes=-0"])
async def test_a_range_behind_the_end_cannot_be_satisfied(
    shared_server: ServerProcess, published: str, header: str
) -> None:
    async with _http(shared_server) as http, http.get(published, headers={"Range": header}) as response:
        assert response.status == 416
        assert response.headers["Content-Range"] == f"bytes */{len(DATA)}"


@pytest.mark.parametrize("header", ["bytes=5-1", "bytes=0-1,4-5", "lines=1-2", "bytes=a-b", "bytes=" + "9" * 30 + "-"])
async def test_a_range_that_makes_no_sense_is_the_whole_file(
    shared_server: ServerProcess, published: str, header: str
) -> None:
    async with _http(shared_server) as http, http.get(published, headers={"Range": header}) as response:
        assert response.status == 200
        assert len(await response.read()) == len(DATA)


async def test_a_resumed_download_gets_the_rest_only_of_the_same_bytes(
    shared_server: ServerProcess, published: str
) -> None:
    async with _http(shared_server) as http:
        ranged = {"Range": "bytes=1000-"}
        async with http.get(published, headers=ranged | {"If-Range": f'"{digest_of(DATA)}"'}) as response:
            assert (response.status, await response.read()) == (206, DATA[1000:])
        async with http.get(published, headers=ranged | {"If-Range": f'"{digest_of(b"old")}"'}) as response:
            assert (response.status, await response.read()) == (200, DATA)
        async with http.get(published, headers={"If-None-Match": f'"{digest_of(DATA)}"'}) as response:
            assert (response.status, await response.read()) == (304, b"")
        async with http.get(published, headers={"If-Match": '"other"'}) as response:
            assert response.status == 412
        async with http.head(published) as response:
            assert (response.status, response.headers["Content-Length"]) == (200, str(len(DATA)))


async def test_a_file_without_bytes_comes_back_too(shared_server: ServerProcess, published: str) -> None:
    url = published.replace("dir/model.onnx", "empty.txt")
    async with _http(shared_server) as http, http.get(url) as response:
        assert (response.status, await response.read()) == (200, b"")
        async with http.get(published) as again:  # the connection is still in order
            assert await again.read() == DATA


async def test_a_path_that_is_not_in_the_version_is_not_found(shared_server: ServerProcess, published: str) -> None:
    base = published.removesuffix("dir/model.onnx")
    async with _http(shared_server) as http:
        async with http.get(base + "other.onnx") as response:
            assert response.status == 404
            assert "dir/model.onnx" in str((await response.json())["fields"]["exists"])
        for path in ("..%2f..%2fmodelbox.db", "%2e%2e/x", "a%00b", "dir%5cmodel.onnx", "%2fetc%2fpasswd"):
            async with http.get(URL(shared_server.url + base + path, encoded=True)) as response:
                assert response.status == 400, path
                assert (await response.json())["code"].startswith("invalid")


async def _downloads(http: aiohttp.ClientSession, token: str, rev: int) -> int:
    """Downloads recorded after a token, as the feed tells until a bookmark says that it got to ``rev``."""
    count = 0
    async with http.get("/api/v1/changes", params={"kind": "download", "token": token}) as response:
        async for line in response.content:
            if line.startswith(b"data:"):
                data = json.loads(line[5:])
                if "changes" in data:
                    count += len(data["changes"])
                elif data["rev"] >= rev:
                    return count
    raise AssertionError("the feed ended")


async def test_a_download_is_one_change_however_it_is_made(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", bookmark_interval_s=0.3) as server:
        async with connect(server.grpc_address) as stubs, _http(server) as http:
            published = await publish(stubs, "count", "m", {"a": b"aa", "b": b"bb"})
            assert published.version is not None
            base = "/api/v1/models/count/m/versions/1/files/"

            async def told(*calls: tuple[str, str, dict[str, str]]) -> int:
                token = (await stubs.watch.list(pb.ListRequest())).token
                for method, path, headers in calls:
                    async with http.request(method, base + path, headers=headers) as response:
                        await response.read()
                head = ResumeToken.parse((await stubs.watch.list(pb.ListRequest())).token)
                return await _downloads(http, token, head.rev)

            assert await told(("GET", "a", {})) == 1
            assert await told(("HEAD", "a", {})) == 0
            assert await told(("GET", "a", {"Range": "bytes=1-"})) == 0
            assert await told(("GET", "a", {"If-None-Match": f'"{digest_of(b"aa")}"'})) == 0
            assert await told(("GET", "a", {"If-None-Match": '"else"'})) == 1
            begun = await stubs.artifacts.begin_download(pb.BeginDownloadRequest(ref="count/m@1"))
            known = f"?download={begun.download_id}"
            assert await told(("GET", "a" + known, {}), ("GET", "b" + known, {})) == 0


async def test_a_reader_that_stands_still_is_cut_off_and_the_file_stays(tmp_path: Path) -> None:
    data = os.urandom(1 << 20) * 40
    # Whoever writes and reads all of it may stand still for as long as the machine likes.
    with ServerProcess(tmp_path / "data") as patient:
        async with connect(patient.grpc_address) as stubs:
            await publish(stubs, "slow", "m", {"big": data})
    with ServerProcess(tmp_path / "data", stall_timeout_s=0.5) as server:
        host, _, port = server.http_address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port), limit=1)
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # it has been connected to read, too
        writer.write(
            b"GET /api/v1/models/slow/m/versions/1/files/big HTTP/1.1\r\n"
            + f"Host: {server.http_address}\r\n\r\n".encode()
        )
        await _scraped(server, 'modelbox_slow_readers_total{protocol="http"} 1.0')
        writer.transport.abort()
    with ServerProcess(tmp_path / "data") as patient:
        async with connect(patient.grpc_address) as stubs:
            chunks = [
                message.data
                async for message in stubs.artifacts.download(pb.DownloadRequest(ref="slow/m@1", path="big"))
            ]
            assert b"".join(chunks) == data


@fault(66)
async def test_an_upload_that_stands_still_is_ended_and_kept(tmp_path: Path) -> None:
    # Little enough to be under way as a whole, whatever else the machine does between its parts.
    first, second = DATA[:50_000], DATA[50_000:60_000]
    with ServerProcess(tmp_path / "data", stall_timeout_s=1) as server:
        async with connect(server.grpc_address) as stubs, _http(server) as http:
            begun = await stubs.artifacts.begin_upload(
                pb.BeginUploadRequest(namespace="still", digest=digest_of(DATA), size_bytes=len(DATA))
            )

            path = "/modelbox.v1.ArtifactService/Upload"
            with pytest.raises(GRPCError) as caught:
                async with stubs.channel.request(
                    path, Cardinality.STREAM_UNARY, pb.UploadRequest, pb.UploadResponse, timeout=100
                ) as stream:
                    await stream.send_message(pb.UploadRequest(upload_id=begun.upload_id, data=first))
                    await _scraped(server, 'Upload",protocol="grpc",status="DEADLINE_EXCEEDED"')
            assert caught.value.status is Status.DEADLINE_EXCEEDED
            async with http.get(f"/api/v1/uploads/{begun.upload_id}") as response:
                assert (await response.json())["offset"] == len(first)

            async def stuck_body() -> AsyncIterator[bytes]:
                yield second
                await anyio.sleep_forever()

            with anyio.fail_after(60):
                status, body = await _patch(http, begun.upload_id, len(first), stuck_body())
            assert status == 408
            assert isinstance(body, dict)
            assert type(errors.error_from_dict(body)) is errors.DeadlineExceeded
