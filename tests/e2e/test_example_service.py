"""The example service as its README starts it: under uvicorn, with a model from a real server."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import wave
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import numpy as np
import pytest
from aiohttp import web
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from yarl import URL

import modelbox
from examples.demo.actors import EXAMPLE, SpeechService, start_service
from examples.demo.metrics import read_page
from examples.demo.models import silero_vad, write_optimised
from examples.demo.processes import DemoError, Processes
from modelbox.objects import ModelVersion
from tests.server import ServerProcess

WAV = (EXAMPLE / "audio" / "speech.wav").read_bytes()
SPOKEN = [(0.600, 2.007), (2.807, 4.306)]
WINDOWS = 154
PROD = "langtech/silero-vad@prod"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """The service and the HTTP client of these tests run on asyncio."""
    return "asyncio"


@asynccontextmanager
async def service_on(
    server: ServerProcess, directory: Path, *, name: str = "service", **environment: str
) -> AsyncIterator[SpeechService]:
    """The service, with a cache in ``directory``."""
    settings = {"MODELBOX_URL": server.url, "MODELBOX_CACHE_DIR": str(directory / "cache"), **environment}
    base = {"PATH": "/usr/bin:/bin", "HOME": str(directory), "ORT_DISABLE_TELEMETRY": "1"}
    async with Processes(directory, base) as processes, _session() as http:
        yield await start_service(processes, http, name=name, environment=settings)


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=True), timeout=aiohttp.ClientTimeout(total=100)
    )


async def publish(server: ServerProcess, path: Path) -> ModelVersion:
    async with modelbox.Client(server.url) as box:
        created = await box.publish("langtech/silero-vad", path, aliases=["prod"])
    return created.item


@pytest.fixture(scope="module")
async def published(shared_server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    return await publish(shared_server, silero_vad(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
async def service(
    shared_server: ServerProcess, published: ModelVersion, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[SpeechService]:
    async with service_on(shared_server, tmp_path_factory.mktemp("service")) as running:
        yield running


def segments(answer: dict[str, Any]) -> list[tuple[float, float]]:
    return [(segment["start_s"], segment["end_s"]) for segment in answer["segments"]]


def test_builds_as_a_project_of_its_own(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=EXAMPLE, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    modules = {path.name for path in (EXAMPLE / "speech_service").glob("*.py")}
    with zipfile.ZipFile(wheel) as archive:
        packed = {Path(name).name for name in archive.namelist() if name.startswith("speech_service/")}
        assert packed == modules
        (metadata,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA"))
    assert "Requires-Dist: modelbox[onnx,otel]" in metadata


async def test_finds_the_speech_and_says_which_version_did(service: SpeechService, published: ModelVersion) -> None:
    answer = await service.find_speech(WAV)
    assert segments(answer) == [pytest.approx(times, abs=0.1) for times in SPOKEN]
    assert answer["speech_s"] == pytest.approx(sum(end - start for start, end in segments(answer)), abs=0.002)
    assert answer["duration_s"] == pytest.approx(4.906, abs=0.001)
    assert (answer["model_version"], answer["model_digest"]) == (1, published.digest)


async def test_takes_a_form_as_a_web_page_sends_it(service: SpeechService) -> None:
    async with _session() as http:
        form = aiohttp.FormData()
        form.add_field("file", WAV, filename="speech.wav", content_type="audio/wav")
        # A form of aiohttp has no length unless it is rendered first.
        payload = form()
        async with http.post(service.speech_url, data=payload) as response:
            assert response.status == 200, await response.text()
            assert len(segments(await response.json())) == 2


def _wav(seconds: float, *, rate_hz: int = 16_000) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate_hz)
        writer.writeframes(np.zeros(int(seconds * rate_hz), dtype="<i2").tobytes())
    return out.getvalue()


@pytest.mark.parametrize(
    ("body", "content_type", "status", "says"),
    [
        pytest.param(b"", "audio/wav", 400, "no body", id="nothing"),
        pytest.param(b"hello", "audio/wav", 400, "Not a PCM WAV file", id="text"),
        pytest.param(_wav(0.1, rate_hz=8000), "audio/wav", 400, "Expected 16000 Hz, got 8000 Hz", id="rate"),
        pytest.param(_wav(0.1)[:-10], "audio/wav", 400, "Cut short", id="cut-short"),
        pytest.param(b"x", "multipart/form-data", 400, "boundary", id="form-without-boundary"),
        pytest.param(
            b'--b\r\nContent-Disposition: form-data; name="audio"\r\n\r\nx\r\n--b--\r\n',
            "multipart/form-data; boundary=b",
            400,
            "form field 'file', got audio",
            id="form-without-file",
        ),
    ],
)
async def test_what_is_no_audio_is_refused_and_told_why(
    service: SpeechService, body: bytes, content_type: str, status: int, says: str
) -> None:
    async with _session() as http:
        async with http.post(service.speech_url, data=body, headers={"Content-Type": content_type}) as response:
            assert response.status == status
            assert says in (await response.json())["detail"]
    assert len((await service.find_speech(WAV))["segments"]) == 2, "the service goes on"


async def test_a_body_that_is_too_long_is_refused_before_it_is_sent(service: SpeechService) -> None:
    address = URL(service.url)
    assert address.host is not None
    assert address.port is not None
    async with await anyio.connect_tcp(address.host, address.port) as connection:
        await connection.send(b"POST /v1/speech HTTP/1.1\r\nHost: localhost\r\nContent-Length: 16777217\r\n\r\n")
        with anyio.fail_after(60):
            answer = await connection.receive()
            while b"got 16777217" not in answer:
                answer += await connection.receive()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"Expected at most 16777216 bytes, got 16777217." in answer


async def test_a_body_of_unknown_length_is_refused(service: SpeechService) -> None:
    # Spoken by hand: a client that still sends when the refusal comes may see its connection reset first.
    host, _, port = service.url.removeprefix("http://").partition(":")
    async with await anyio.connect_tcp(host, int(port)) as stream:
        head = f"POST /v1/speech HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n"
        await stream.send(head.encode())
        with anyio.fail_after(60):
            assert (await stream.receive()).startswith(b"HTTP/1.1 411 ")


async def test_says_that_it_is_healthy_and_what_it_serves(service: SpeechService, published: ModelVersion) -> None:
    async with _session() as http, http.get(f"{service.url}/healthz") as response:
        assert (response.status, await response.json()) == (200, {"status": "ok"})
    assert await service.ready() == {"ref": PROD, "version": 1, "digest": published.digest, "stale": False}


async def test_a_long_file_does_not_hold_up_the_others(service: SpeechService) -> None:
    finished: list[str] = []

    async def send_long_file() -> None:
        # Nearly as long as it may be, so that it is still at work when the others are answered, on any machine.
        assert (await service.find_speech(_wav(500)))["segments"] == []
        finished.append("long file")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send_long_file)
        for _ in range(20):
            await service.ready()
        finished.append("20 short requests")
    assert finished == ["20 short requests", "long file"]


async def test_counts_calls_by_version_and_the_seconds_of_speech(service: SpeechService) -> None:
    before = read_page(await service.metrics())
    answer = await service.find_speech(WAV)
    after = read_page(await service.metrics())

    def grown(name: str, **labels: str) -> float:
        return after.by_version(name, **labels)[1] - before.by_version(name, **labels)[1]

    labels = {"model": "langtech/silero-vad", "alias": "prod"}
    assert grown("modelbox_calls_total", outcome="ok", **labels) == WINDOWS
    assert grown("speech_seconds_total", **labels) == pytest.approx(answer["speech_s"], abs=0.002)
    histogram = after.histograms_by_version("modelbox_call_duration_seconds", **labels)[1]
    assert histogram.count == sum(after.by_version("modelbox_calls_total", **labels).values())


async def test_follows_the_alias(server: ServerProcess, tmp_path: Path) -> None:
    first_path = silero_vad(tmp_path)
    await publish(server, first_path)
    async with service_on(server, tmp_path) as service:
        assert (await service.find_speech(WAV))["model_version"] == 1
        second_path = tmp_path / "second.onnx"
        write_optimised(first_path, second_path)
        second = await publish(server, second_path)
        await service.wait_for({"version": 2, "digest": second.digest, "stale": False}, within_s=60)
        answer = await service.find_speech(WAV)
        assert (answer["model_version"], answer["model_digest"]) == (2, second.digest)
        assert segments(answer) == [pytest.approx(times, abs=0.1) for times in SPOKEN]


@asynccontextmanager
async def collector() -> AsyncIterator[tuple[str, list[ExportMetricsServiceRequest]]]:
    """An OpenTelemetry collector: OTLP over HTTP, and what it received."""
    received: list[ExportMetricsServiceRequest] = []

    async def take(request: web.Request) -> web.Response:
        received.append(ExportMetricsServiceRequest.FromString(await request.read()))
        return web.Response(content_type="application/x-protobuf")

    app = web.Application()
    app.router.add_post("/v1/metrics", take)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}", received
    finally:
        await runner.cleanup()


async def test_sends_the_same_metrics_to_a_collector(
    shared_server: ServerProcess, published: ModelVersion, tmp_path: Path
) -> None:
    async with collector() as (endpoint, received):
        settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_COMPRESSION": "none"}
        async with service_on(shared_server, tmp_path, **settings) as service:
            answer = await service.find_speech(WAV)
            await service.program.stop()
    sums = {
        metric.name: sum(point.as_double or point.as_int for point in metric.sum.data_points)
        for request in received
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    assert sums["modelbox.calls"] == WINDOWS
    assert sums["speech.seconds"] == pytest.approx(answer["speech_s"], abs=0.002)


async def test_ends_in_order_when_asked_to(
    shared_server: ServerProcess, published: ModelVersion, tmp_path: Path
) -> None:
    async with service_on(shared_server, tmp_path) as service:
        assert await service.program.stop() in (0, -signal.SIGTERM), "stop() sends SIGKILL after a while"
        assert "Application shutdown complete" in service.program.tail()
        assert "Traceback" not in service.program.tail()


async def test_a_model_that_does_not_exist_ends_the_start_and_says_what_does(
    shared_server: ServerProcess, published: ModelVersion, tmp_path: Path
) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with service_on(shared_server, tmp_path, SPEECH_MODEL="langtech/silero-vad@staging"):
            raise AssertionError("it started")
    assert caught.group_contains(DemoError, match=r"(?s)ended with code 3 .*NotFoundError.*staging.*prod")


async def test_no_server_and_an_empty_cache_ends_the_start_and_names_the_address(tmp_path: Path) -> None:
    nobody = ServerProcess(tmp_path / "never-started")
    nobody.http_address = "127.0.0.1:9"
    with pytest.raises(ExceptionGroup) as caught:
        async with service_on(nobody, tmp_path):
            raise AssertionError("it started")
    assert caught.group_contains(DemoError, match=r"(?s)ended with code 3 .*127\.0\.0\.1:9")
