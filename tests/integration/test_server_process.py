"""Start, stop and health of the real server process."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import anyio.to_thread
import psutil
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpclib.client import Channel
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.health.v1.health_grpc import HealthStub
from grpclib.health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpclib.reflection.v1.reflection_grpc import ServerReflectionStub
from grpclib.reflection.v1.reflection_pb2 import ServerReflectionRequest

from modelbox import _wire as wire
from modelbox._proto.modelbox import v1 as pb
from tests.faults.registry import fault
from tests.server import ServerProcess
from tests.stubs import connect, digest_of, publish

SERVICES = {
    "modelbox.v1.ArtifactService",
    "modelbox.v1.FleetService",
    "modelbox.v1.RegistryService",
    "modelbox.v1.ServerService",
    "modelbox.v1.WatchService",
}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def _get(url: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.read().decode()


async def _running(server: ServerProcess, calls: int) -> None:
    """Waits until the server has begun with so many calls over gRPC."""
    wanted = f'modelbox_api_running{{protocol="grpc"}} {calls}.0'
    with anyio.fail_after(60):
        while wanted not in (await anyio.to_thread.run_sync(_get, server.metrics_url))[1].splitlines():
            await anyio.sleep(0.01)


def _channel(server: ServerProcess) -> Channel:
    host, _, port = server.grpc_address.rpartition(":")
    return Channel(host, int(port))


# --- health and reflection ---------------------------------------------------------------------------------------


async def test_health_is_told_over_http_and_grpc(shared_server: ServerProcess) -> None:
    assert _get(shared_server.url + "/healthz") == (200, "ok\n")
    assert _get(shared_server.url + "/readyz") == (200, "ok\n")
    async with _channel(shared_server) as channel:
        stub = HealthStub(channel)
        for service in ("", *SERVICES):
            answer = await stub.Check(HealthCheckRequest(service=service))
            assert answer.status == HealthCheckResponse.SERVING, service
        with pytest.raises(GRPCError) as caught:
            await stub.Check(HealthCheckRequest(service="nobody"))
        assert caught.value.status is Status.NOT_FOUND


async def test_reflection_describes_every_service(shared_server: ServerProcess) -> None:
    async with _channel(shared_server) as channel:
        stub = ServerReflectionStub(channel)
        [listed] = await stub.ServerReflectionInfo([ServerReflectionRequest(list_services="")])
        names = {service.name for service in listed.list_services_response.service}
        assert names >= SERVICES
        for name in SERVICES:
            [answer] = await stub.ServerReflectionInfo([ServerReflectionRequest(file_containing_symbol=name)])
            [raw] = answer.file_descriptor_response.file_descriptor_proto
            assert name.rpartition(".")[2] in {s.name for s in FileDescriptorProto.FromString(raw).service}


async def test_the_server_says_who_and_where_it_is_in_both_ways(shared_server: ServerProcess) -> None:
    async with connect(shared_server.grpc_address) as stubs:
        info = await stubs.server.get_server_info(pb.GetServerInfoRequest())
    assert info.grpc_address == shared_server.grpc_address
    assert info.http_address == shared_server.http_address
    assert info.server_id
    status, body = _get(shared_server.url + "/api/v1/server")
    assert status == 200
    assert json.loads(body) == {
        "server_id": info.server_id,
        "version": info.version,
        "grpc_address": info.grpc_address,
        "http_address": info.http_address,
    }


async def test_metrics_count_calls_of_both_protocols_and_the_database(shared_server: ServerProcess) -> None:
    async with connect(shared_server.grpc_address) as stubs:
        await stubs.registry.create_model(pb.CreateModelRequest(namespace="metrics", name="m"))
    _get(shared_server.url + "/api/v1/models/metrics/secret-name/versions/1")
    status, text = _get(shared_server.metrics_url)
    assert status == 200
    method = 'method="modelbox.v1.RegistryService/CreateModel",protocol="grpc",status="OK"'
    assert f"modelbox_api_duration_seconds_count{{{method}}} 1.0" in text
    assert 'method="GET /api/v1/models/{ns}/{model}/versions/{selector}",protocol="http",status="404"' in text
    assert re.search(r'modelbox_database_duration_seconds_count\{operation="commit",outcome="ok"\} [1-9]', text)
    assert "modelbox_grpc_connections " in text
    assert "process_resident_memory_bytes" in text
    assert "secret-name" not in text


@fault(69)
async def test_other_sites_pages_are_kept_out(shared_server: ServerProcess) -> None:
    url = shared_server.url + "/api/v1/server"
    assert _get(url, Host="rebound.example")[0] == 403
    assert _get(url, Host="localhost")[0] == 200
    assert _get(url, Origin="https://evil.example")[0] == 403
    assert _get(url, Origin=shared_server.url)[0] == 200


def test_what_is_not_there_is_an_error_in_json(shared_server: ServerProcess) -> None:
    status, body = _get(shared_server.url + "/api/v2/nothing")
    assert status == 404
    assert '"code":"not_found"' in body


# --- start -------------------------------------------------------------------------------------------------------


def test_it_is_ready_soon_and_small(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data") as server:
        # The first start makes the tables, and keeps the tools for that in memory: 12 MB.
        assert server.rss_bytes() < 130e6
        server.restart()
        assert server.rss_bytes() < 118e6
        # About 1.5 s where nothing else runs. What it worked says the same however busy the machine is.
        times = psutil.Process(server.pid).cpu_times()
        assert times.user + times.system < 6


def test_a_second_server_on_the_same_directory_is_refused(server: ServerProcess) -> None:
    second = ServerProcess(server.data_dir)
    second.spawn()
    assert second.wait() == 2
    assert str(server.data_dir) in second.output
    assert str(server.pid) in second.output
    assert "Traceback" not in second.output
    assert _get(server.url + "/readyz")[0] == 200


def test_a_port_that_is_taken_is_named(server: ServerProcess, tmp_path: Path) -> None:
    port = server.grpc_address.rpartition(":")[2]
    second = ServerProcess(tmp_path / "other", grpc_port=port)
    second.spawn()
    assert second.wait() == 2
    assert f"grpc_port = {port}" in second.output
    assert "in use" in second.output
    assert "Traceback" not in second.output


def test_all_mistakes_in_the_settings_are_told_at_once(tmp_path: Path) -> None:
    process = ServerProcess(tmp_path / "data", host="0.0.0.0", http_port="x", env={"MODELBOX_LOG_LEVEL": "loud"})
    process.spawn()
    assert process.wait() == 2
    for part in ("--http-port = 'x'", "MODELBOX_LOG_LEVEL = 'loud'", "access = on", "insecure_plaintext"):
        assert part in process.output
    assert not (tmp_path / "data").exists()


def test_a_data_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    process = ServerProcess(tmp_path / "file" / "data")
    process.spawn()
    assert process.wait() == 2
    assert str(tmp_path / "file" / "data") in process.output
    assert "Traceback" not in process.output


def test_what_it_keeps_is_for_its_user_alone(server: ServerProcess) -> None:
    for path in [server.data_dir, *server.data_dir.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0 or path.parent.parent.name == "sha256", path


def test_the_command_line_is_the_same_program(tmp_path: Path) -> None:
    modelbox = [sys.executable, "-c", "import sys; from modelbox.cli import main; sys.exit(main())"]
    wrote = subprocess.run(
        [*modelbox, "server", "init-config", str(tmp_path / "s.toml")], capture_output=True, text=True, timeout=60
    )
    assert wrote.returncode == 0, wrote.stderr
    again = subprocess.run(
        [*modelbox, "server", "init-config", str(tmp_path / "s.toml")], capture_output=True, text=True, timeout=60
    )
    assert again.returncode == 1
    assert "exists" in again.stderr
    helped = subprocess.run([*modelbox, "server", "start", "--help"], capture_output=True, text=True, timeout=60)
    assert "--bookmark-interval-s" in helped.stdout
    assert "modelbox server start" in helped.stdout
    args = ["--config-path", str(tmp_path / "s.toml"), "--data-dir", str(tmp_path / "d"), "--log-level", "loud"]
    wrong = subprocess.run([*modelbox, "server", "start", *args], capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 2
    assert "--log-level = 'loud'" in wrong.stderr


# --- stop --------------------------------------------------------------------------------------------------------


async def test_a_signal_lets_calls_finish_and_ends_watches_with_a_bookmark(server: ServerProcess) -> None:
    async with connect(server.grpc_address) as stubs, connect(server.grpc_address) as uploading:
        items: list[pb.WatchResponse] = []
        watching = anyio.Event()

        async def watch() -> None:
            async for item in stubs.watch.watch(pb.WatchRequest()):
                items.append(item)
                watching.set()

        data = os.urandom(300_000)
        begun = await uploading.artifacts.begin_upload(
            pb.BeginUploadRequest(
                namespace="drain",
                digest=digest_of(data),
                size_bytes=len(data),
            )
        )
        received = anyio.Event()

        async def parts() -> AsyncIterator[pb.UploadRequest]:
            yield pb.UploadRequest(upload_id=begun.upload_id, data=data[:100_000])
            received.set()
            await unready.wait()
            yield pb.UploadRequest(data=data[100_000:])

        unready = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            answers: list[pb.UploadResponse] = []

            async def upload() -> None:
                answers.append(await uploading.artifacts.upload(parts()))

            tasks.start_soon(upload)
            await watching.wait()
            await received.wait()
            await _running(server, 2)
            server.send_signal(signal.SIGTERM)
            await anyio.to_thread.run_sync(server.wait_for, "draining")
            unready.set()
        assert answers[0].size_bytes == len(data)
        last = wire.unpack_feed_item(items[-1])
        assert type(last).__name__ == "Bookmark"
        assert len(items) >= 2
    assert server.wait() == 0
    assert "Traceback" not in server.output


async def test_new_calls_are_refused_as_busy_while_it_drains(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", drain_timeout_s=30) as server:
        async with connect(server.grpc_address) as stubs:
            digest = "sha256:" + "0" * 64
            begun = await stubs.artifacts.begin_upload(
                pb.BeginUploadRequest(namespace="busy", digest=digest, size_bytes=10)
            )
            started, release = anyio.Event(), anyio.Event()

            async def parts() -> AsyncIterator[pb.UploadRequest]:
                yield pb.UploadRequest(upload_id=begun.upload_id, data=b"12345")
                started.set()
                await release.wait()

            async def upload() -> None:
                with pytest.raises(GRPCError):
                    await stubs.artifacts.upload(parts())

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(upload)
                await started.wait()
                await _running(server, 1)
                server.send_signal(signal.SIGTERM)
                await anyio.to_thread.run_sync(server.wait_for, "draining")
                with pytest.raises(GRPCError) as caught:
                    await stubs.registry.list_namespaces(pb.ListNamespacesRequest())
                assert caught.value.status is Status.UNAVAILABLE
                assert any(said in str(caught.value.message) for said in ("shutting down", "is stopping")), caught.value
                release.set()
        assert server.wait() == 0


async def test_a_second_signal_ends_it_at_once_and_loses_nothing(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", drain_timeout_s=60) as server:
        async with connect(server.grpc_address) as stubs:
            await publish(stubs, "twice", "m", {"a": b"a"}, aliases=("prod",))
            begun = await stubs.artifacts.begin_upload(
                pb.BeginUploadRequest(namespace="twice", digest="sha256:" + "0" * 64, size_bytes=10)
            )
            started = anyio.Event()

            async def parts() -> AsyncIterator[pb.UploadRequest]:
                yield pb.UploadRequest(upload_id=begun.upload_id, data=b"12345")
                started.set()
                await anyio.sleep_forever()

            async def upload() -> None:
                with pytest.raises((GRPCError, StreamTerminatedError)):
                    await stubs.artifacts.upload(parts())

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(upload)
                await started.wait()
                await _running(server, 1)
                server.send_signal(signal.SIGTERM)
                await anyio.to_thread.run_sync(server.wait_for, "draining")
                server.send_signal(signal.SIGTERM)
                assert await anyio.to_thread.run_sync(server.wait) == 128 + signal.SIGTERM
                tasks.cancel_scope.cancel()
        server.restart()
        async with connect(server.grpc_address) as stubs:
            resolved = await stubs.registry.resolve(pb.ResolveRequest(ref="twice/m@prod"))
            assert resolved.version is not None
            assert resolved.version.version == 1


async def test_calls_that_never_end_are_cut_off_after_the_time_to_drain(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", drain_timeout_s=0.3) as server:
        async with connect(server.grpc_address) as stubs:
            begun = await stubs.artifacts.begin_upload(
                pb.BeginUploadRequest(namespace="stuck", digest="sha256:" + "0" * 64, size_bytes=10)
            )
            async with stubs.channel.request(
                "/modelbox.v1.ArtifactService/Upload",
                Cardinality.STREAM_UNARY,
                pb.UploadRequest,
                pb.UploadResponse,
            ) as stream:
                await stream.send_message(pb.UploadRequest(upload_id=begun.upload_id, data=b"12345"))
                await _running(server, 1)
                server.send_signal(signal.SIGTERM)
                assert await anyio.to_thread.run_sync(server.wait) == 0
                with pytest.raises(StreamTerminatedError):
                    await stream.cancel()
        assert "cut off 1 gRPC calls" in server.output


def test_sockets_are_free_again_after_the_stop(server: ServerProcess) -> None:
    addresses = [server.grpc_address, server.http_address, server.metrics_address]
    assert server.terminate() == 0
    for address in addresses:
        host, _, port = address.rpartition(":")
        with pytest.raises(ConnectionRefusedError), socket.create_connection((host, int(port)), timeout=5):
            pass
    server.restart()
    assert [server.grpc_address, server.http_address, server.metrics_address] == addresses
