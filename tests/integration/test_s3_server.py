"""A server with its files in an S3 store: uploads, downloads, other servers, and the direct way past the server."""

from __future__ import annotations

import hashlib
import io
import random
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import modelbox
from modelbox.errors import IntegrityError
from modelbox.refs import Digest
from tests.replicas import Replicas
from tests.server import ServerProcess
from tests.servers.s3 import S3Bucket
from tests.servers.s3_proxy import Fault, Request, S3Proxy

SMALL = b"a few bytes"
LARGE = random.Random(9).randbytes((20 << 20) + 12_345)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def store(s3_bucket: S3Bucket) -> Iterator[S3Proxy]:
    """What the servers take for the store."""
    with S3Proxy(s3_bucket.endpoint) as proxy:
        yield proxy


@pytest.fixture
def public(s3_bucket: S3Bucket) -> Iterator[S3Proxy]:
    """What the clients take for the store."""
    with S3Proxy(s3_bucket.endpoint) as proxy:
        yield proxy


class Servers:
    """Servers over one bucket."""

    def __init__(self, stack: ExitStack, bucket: S3Bucket, store: S3Proxy, public: S3Proxy, directory: Path) -> None:
        self._stack = stack
        self._bucket = bucket
        self._settings = {"blobs_url": f"{bucket.url}/mb", "s3_endpoint": store.endpoint, "s3_path_style": True}
        self._public = public
        self._directory = directory

    def start(self, *, presign: bool = False, name: str = "server", **settings: Any) -> ServerProcess:
        if presign:
            settings = {"s3_presign": True, "s3_public_endpoint": self._public.endpoint, **settings}
        server = ServerProcess(self._directory / name, env=self._bucket.env, **{**self._settings, **settings})
        return self._stack.enter_context(server)


@pytest.fixture
def servers(s3_bucket: S3Bucket, store: S3Proxy, public: S3Proxy, tmp_path: Path) -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(stack, s3_bucket, store, public, tmp_path)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    directory = tmp_path / "files"
    directory.mkdir()
    (directory / "weights.bin").write_bytes(LARGE)
    (directory / "notes.txt").write_bytes(SMALL)
    return directory


def client(server: ServerProcess, tmp_path: Path, **settings: Any) -> modelbox.Client:
    return modelbox.Client(server.url, cache_dir=str(tmp_path / "cache"), stall_timeout_s=60.0, **settings)


async def round_trip(server: ServerProcess, files: Path, tmp_path: Path) -> None:
    """Publishes, and reads back both ways there are."""
    async with client(server, tmp_path) as box:
        created = await box.publish("vision/cnn", files, framework="other")
        assert created.item.version == 1
        out = await box.download("vision/cnn@1", tmp_path / "out")
        assert (out / "weights.bin").read_bytes() == LARGE
        assert (out / "notes.txt").read_bytes() == SMALL


def keys(bucket: S3Bucket) -> list[str]:
    return [key.rpartition("/")[2] for key in bucket.list_keys()]


def digest_names() -> list[str]:
    return sorted(hashlib.sha256(data).hexdigest() for data in (SMALL, LARGE))


async def test_files_go_through_the_server(
    servers: Servers, s3_bucket: S3Bucket, public: S3Proxy, files: Path, tmp_path: Path
) -> None:
    await round_trip(servers.start(), files, tmp_path)
    assert public.requests == []
    assert sorted(keys(s3_bucket)) == digest_names()
    assert s3_bucket.multipart_uploads() == []


async def test_files_go_past_the_server(
    servers: Servers, s3_bucket: S3Bucket, public: S3Proxy, files: Path, tmp_path: Path
) -> None:
    server = servers.start(presign=True)
    await round_trip(server, files, tmp_path)
    assert public.body_bytes == 2 * len(LARGE), "up and down, and nothing else"
    assert sorted(keys(s3_bucket)) == digest_names()
    assert s3_bucket.multipart_uploads() == []
    assert "X-Amz" not in server.output


async def test_the_store_that_clients_cannot_reach(
    servers: Servers, s3_bucket: S3Bucket, files: Path, tmp_path: Path
) -> None:
    server = servers.start(presign=True, s3_public_endpoint="http://127.0.0.1:9")
    await round_trip(server, files, tmp_path)
    assert sorted(keys(s3_bucket)) == digest_names()


@pytest.mark.parametrize("fault", ["reset", "corrupt_body", "lose"])
async def test_a_direct_upload_that_fails_goes_on_through_the_server(
    servers: Servers, s3_bucket: S3Bucket, public: S3Proxy, files: Path, tmp_path: Path, fault: Fault
) -> None:
    public.fault = lambda request: fault if request.method == "PUT" and "partNumber=2" in request.query else None
    await round_trip(servers.start(presign=True), files, tmp_path)
    assert sorted(keys(s3_bucket)) == digest_names()


@pytest.mark.parametrize("fault", ["refuse", "cut", "corrupt_answer"])
async def test_a_direct_download_that_fails_goes_on_through_the_server(
    servers: Servers, public: S3Proxy, files: Path, tmp_path: Path, fault: Fault
) -> None:
    server = servers.start(presign=True)
    public.fault = lambda request: fault if request.method == "GET" else None
    async with client(server, tmp_path) as box:
        await box.publish("vision/cnn", files, framework="other")
        if fault == "corrupt_answer":
            # A plain download says so; the next attempt gets the bytes from the server.
            with pytest.raises(IntegrityError):
                await box.download("vision/cnn@1", tmp_path / "out")
        out = await box.download("vision/cnn@1", tmp_path / "out")
        assert (out / "weights.bin").read_bytes() == LARGE
    assert any(request.method == "GET" for request in public.requests)


async def test_a_direct_upload_of_other_bytes_is_never_a_blob(
    servers: Servers, s3_bucket: S3Bucket, tmp_path: Path
) -> None:
    """A peer that has addresses and sends what it likes."""
    server = servers.start(presign=True)
    digest = "sha256:" + hashlib.sha256(LARGE).hexdigest()
    async with aiohttp.ClientSession(server.url) as http:
        body = {"namespace": "vision", "digest": digest, "size_bytes": len(LARGE)}
        async with http.post("/api/v1/uploads", json=body) as answer:
            upload = (await answer.json())["upload_id"]
        async with http.post(f"/api/v1/uploads/{upload}/urls") as answer:
            assert answer.headers["Cache-Control"] == "no-store"
            parts = (await answer.json())["parts"]
        assert [part["offset"] for part in parts] == [0, 8 << 20, 16 << 20]
        for part in parts:
            assert re.search(r"X-Amz-Expires=300\b", part["url"])
            wrong = bytes(part["size_bytes"] - 1)
            async with http.put(part["url"], data=io.BytesIO(wrong)) as answer:
                assert answer.status == 403, "another length than was signed"
            async with http.put(part["url"], data=io.BytesIO(wrong + b"x")) as answer:
                assert answer.status == 200
        headers = {"Upload-Offset": str(len(LARGE))}
        async with http.patch(f"/api/v1/uploads/{upload}", headers=headers) as answer:
            assert answer.status == 422 or answer.status == 400
            assert (await answer.json())["code"] == "integrity"
        async with http.get(f"/api/v1/uploads/{upload}") as answer:
            assert answer.status == 404
    assert s3_bucket.list_keys() == s3_bucket.multipart_uploads() == []


async def test_knowing_a_digest_grants_nothing(servers: Servers, files: Path, tmp_path: Path) -> None:
    server = servers.start(presign=True)
    await round_trip(server, files, tmp_path)
    digest = "sha256:" + hashlib.sha256(LARGE).hexdigest()
    async with aiohttp.ClientSession(server.url) as http:
        body = {"namespace": "thieves", "digest": digest, "size_bytes": len(LARGE)}
        async with http.post("/api/v1/uploads", json=body) as answer:
            state = await answer.json()
        assert state["offset"] == 0
        assert not state["complete"]
        headers = {"Upload-Offset": str(len(LARGE))}
        async with http.patch(f"/api/v1/uploads/{state['upload_id']}", headers=headers) as answer:
            assert answer.status == 409


async def test_a_loader_reads_past_the_server_and_distrusts_what_it_reads(
    servers: Servers, public: S3Proxy, files: Path, tmp_path: Path
) -> None:
    from modelbox.loader.cache import Cache
    from modelbox.loader.download import Downloader

    server = servers.start(presign=True)
    async with client(server, tmp_path) as box:
        created = await box.publish("vision/cnn", files, framework="other")
        public.fault = lambda request: "corrupt_answer" if request.method == "GET" else None

        async def fetch() -> Path:
            cache = Cache(tmp_path / "own-cache")
            cache.open()
            async with Downloader(await box.source(), cache) as downloader:
                return await downloader.fetch(created.item)

        tree = await box.engine.call(fetch)
        assert (tree / "weights.bin").read_bytes() == LARGE
    assert [request.method for request in public.requests].count("GET") == 1


async def test_an_upload_that_broke_at_one_process_goes_on_at_the_next(
    servers: Servers, s3_bucket: S3Bucket, files: Path, tmp_path: Path
) -> None:
    """What the killed process had hashed is lost; what it had stored is not."""
    server = servers.start()
    digest = "sha256:" + hashlib.sha256(LARGE).hexdigest()
    async with aiohttp.ClientSession() as http:
        body = {"namespace": "vision", "digest": digest, "size_bytes": len(LARGE)}
        async with http.post(f"{server.url}/api/v1/uploads", json=body) as answer:
            upload = (await answer.json())["upload_id"]
        cut = (9 << 20) + 7
        headers = {"Upload-Offset": "0"}
        data = io.BytesIO(LARGE[:cut])
        async with http.patch(f"{server.url}/api/v1/uploads/{upload}", headers=headers, data=data) as answer:
            assert (await answer.json())["offset"] == cut
        server.kill()
        server.restart()
        async with http.get(f"{server.url}/api/v1/uploads/{upload}") as answer:
            assert (await answer.json())["offset"] == cut
        headers = {"Upload-Offset": str(cut)}
        data = io.BytesIO(LARGE[cut:])
        async with http.patch(f"{server.url}/api/v1/uploads/{upload}", headers=headers, data=data) as answer:
            assert (await answer.json())["complete"] is True
    assert keys(s3_bucket) == [hashlib.sha256(LARGE).hexdigest()]


async def test_a_store_that_checks_a_sha256_itself_is_believed(
    servers: Servers, s3_bucket: S3Bucket, store: S3Proxy, public: S3Proxy, files: Path, tmp_path: Path
) -> None:
    """Then the server need not read what went past it."""
    store.checks_sha256 = public.checks_sha256 = True
    public.checked = store.checked
    server = servers.start(presign=True)
    await round_trip(server, files, tmp_path)
    assert [request.method for request in public.requests] == ["PUT", "GET"]
    assert [r for r in store.requests if r.method == "GET" and "/data-" in r.path] == []
    assert sorted(keys(s3_bucket)) == digest_names()


async def test_replicas_share_a_store(
    postgres_migrated_url: str, s3_bucket: S3Bucket, files: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"blobs_url": s3_bucket.url, "s3_endpoint": s3_bucket.endpoint, "s3_path_style": True}
    with Replicas(postgres_migrated_url, tmp_path, advertised=False, env=s3_bucket.env, **settings) as replicas:
        first, second = replicas
        digest = "sha256:" + hashlib.sha256(LARGE).hexdigest()
        cut = (9 << 20) + 7
        async with aiohttp.ClientSession() as http:
            body = {"namespace": "vision", "digest": digest, "size_bytes": len(LARGE)}
            async with http.post(f"{first.url}/api/v1/uploads", json=body) as answer:
                upload = (await answer.json())["upload_id"]
            await _send(http, f"{first.url}/api/v1/uploads/{upload}", LARGE[:cut], 0)
            state = await _send(http, f"{second.url}/api/v1/uploads/{upload}", LARGE[cut:], cut)
            assert state["complete"] is True
            async with http.post(f"{first.url}/api/v1/uploads", json=body) as answer:
                assert (await answer.json())["complete"] is True
        async with client(first, tmp_path) as box:
            await box.publish("vision/cnn", files, framework="other")
        async with client(second, tmp_path) as box:
            out = await box.download("vision/cnn@1", tmp_path / "out")
            assert (out / "weights.bin").read_bytes() == LARGE
    assert sorted(keys(s3_bucket)) == digest_names()
    assert s3_bucket.multipart_uploads() == []


async def _send(http: aiohttp.ClientSession, url: str, data: bytes, offset: int) -> dict[str, Any]:
    async with http.patch(url, headers={"Upload-Offset": str(offset)}, data=io.BytesIO(data)) as answer:
        state: dict[str, Any] = await answer.json()
        return state


# -- a store with a bad day --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["slow_down", "corrupt_body"])
async def test_a_store_that_fails_now_and_then(
    servers: Servers, s3_bucket: S3Bucket, store: S3Proxy, files: Path, tmp_path: Path, fault: Fault
) -> None:
    server = servers.start()
    methods = ("PUT",) if fault == "corrupt_body" else ("PUT", "POST")
    seen: list[Request] = []

    def now_and_then(request: Request) -> Fault | None:
        if request.method not in methods or request in seen:
            # What comes again passes, in whatever order the requests come.
            return None
        seen.append(request)
        return fault if len(seen) % 2 else None

    store.fault = now_and_then
    await round_trip(server, files, tmp_path)
    assert len(seen) > 2
    assert sorted(name for name in keys(s3_bucket) if re.fullmatch("[0-9a-f]{64}", name)) == digest_names()


async def test_a_part_that_the_store_lost(
    servers: Servers, s3_bucket: S3Bucket, store: S3Proxy, files: Path, tmp_path: Path
) -> None:
    """It is told that all is well, and finds at the end that it is not."""
    server = servers.start()
    lost: list[Request] = []

    def once(request: Request) -> Fault | None:
        if request.method == "PUT" and "partNumber=2" in request.query and not lost:
            lost.append(request)
            return "lose"
        return None

    store.fault = once
    await round_trip(server, files, tmp_path)
    assert lost
    assert sorted(keys(s3_bucket)) == digest_names()


async def test_answers_that_break_off_are_read_on(
    servers: Servers, store: S3Proxy, files: Path, tmp_path: Path
) -> None:
    server = servers.start()
    turns = iter(range(1 << 30))
    store.fault = lambda request: "cut" if request.method == "GET" and next(turns) < 3 else None
    await round_trip(server, files, tmp_path)


async def test_a_store_that_is_away_is_busy_and_comes_back(
    servers: Servers, store: S3Proxy, files: Path, tmp_path: Path
) -> None:
    server = servers.start()
    store.fault = lambda request: "reset"
    digest = Digest("sha256:" + hashlib.sha256(SMALL).hexdigest())
    body = {"namespace": "vision", "digest": digest, "size_bytes": len(SMALL)}
    async with aiohttp.ClientSession(server.url) as http:
        async with http.post("/api/v1/uploads", json=body) as answer:
            assert answer.status == 503
            error = await answer.json()
            assert error["code"] == "busy"
            assert "does not answer" in error["message"]
            assert s3_secret_free(str(error))
        async with http.get("/readyz") as answer:
            assert answer.status == 200
    store.fault = lambda request: None
    await round_trip(server, files, tmp_path)


def s3_secret_free(text: str) -> bool:
    return "SKTEST" not in text and "X-Amz" not in text
