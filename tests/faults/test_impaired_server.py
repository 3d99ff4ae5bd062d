"""A client and its models while the server is away, silent, slow, refusing, flapping, or another one than before."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import anyio
import numpy as np
import pytest
from grpclib.const import Status

import modelbox
from modelbox._transport import grpc
from modelbox._transport.source import RemoteSource
from modelbox.config import load_client_config
from modelbox.errors import DeadlineExceeded, ModelBoxError, TransportError, Unavailable
from modelbox.loader.watch import Informer, InformerSettings
from modelbox.objects import Resolved
from modelbox.refs import ModelRef
from tests.faults.lying import LyingServer
from tests.faults.network import network
from tests.faults.proxy import Bandwidth, FaultProxy, LimitData, Refuse, ResetPeer, Slicer
from tests.faults.registry import fault, record_figure
from tests.onnx_models import add_constant, perceptron
from tests.server import ServerProcess

X = {"x": np.zeros((1, 4), np.float32)}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def soon_silent(monkeypatch: pytest.MonkeyPatch) -> float:
    """Silence of a watch is noticed after seconds, not half a minute."""
    monkeypatch.setattr(grpc, "WATCH_SILENCE_S", 1.0)
    return 1.0


class Proxied:
    """A server that is reached through a proxy for each of its ports."""

    def __init__(self, server: ServerProcess, http: FaultProxy, grpc: FaultProxy) -> None:
        self.server = server
        self.http = http
        self.grpc = grpc
        self.url = http.url

    def add(self, *toxics: object) -> None:
        for proxy in (self.http, self.grpc):
            for direction in ("down", "up"):
                proxy.add(*toxics, direction=direction)  # type: ignore[arg-type]

    def clear(self) -> None:
        for proxy in (self.http, self.grpc):
            proxy.clear()


@contextmanager
def proxied(data_dir: Path) -> Iterator[Proxied]:
    with FaultProxy() as http, FaultProxy() as behind:
        with ServerProcess(data_dir, advertise_grpc=behind.address, bookmark_interval_s=0.2) as server:
            http.target, behind.target = server.http_address, server.grpc_address
            yield Proxied(server, http, behind)


@asynccontextmanager
async def asked_all_the_time(model: modelbox.LiveModel) -> AsyncIterator[list[str]]:
    """Calls the model again and again; the list holds what went wrong, and is empty in the end."""
    wrong: list[str] = []
    asked = 0

    async def ask() -> None:
        nonlocal asked
        while True:
            try:
                outputs = await model.predict(X)
                if outputs["y"][0, 0] != outputs.version.version:
                    wrong.append(f"version {outputs.version.version} answered {outputs['y'][0, 0]}")
            except ModelBoxError as exc:
                wrong.append(repr(exc))
            asked += 1
            await anyio.sleep(0.01)

    async with anyio.create_task_group() as tg:
        tg.start_soon(ask)
        yield wrong
        tg.cancel_scope.cancel()
    assert wrong == []
    assert asked > 5


async def publish(client: modelbox.Client, path: str, tmp_path: Path, *numbers: int) -> None:
    for number in numbers:
        (tmp_path / "model.onnx").write_bytes(add_constant(number))
        await client.publish(path, str(tmp_path / "model.onnx"))


@asynccontextmanager
async def hasty(url: str, path: str) -> AsyncIterator[modelbox.Client]:
    """A client that has asked for a model, and waits for two seconds at most; on a slow machine it asked again."""
    async with modelbox.Client(url, request_timeout_s=2, connect_timeout_s=1) as client:
        with anyio.fail_after(60):
            while True:
                with suppress(TransportError):
                    await client.get_model(path)
                    break
        yield client


async def until(true: Callable[[], bool], *, within_s: float = 90) -> None:
    with anyio.fail_after(within_s):
        while not true():
            await anyio.sleep(0.02)


@fault(3)
@pytest.mark.parametrize("how", ["nobody", "silent"])
async def test_a_cold_start_without_a_server_ends_in_time_and_leaves_nothing(tmp_path: Path, how: str) -> None:
    # Connections to the silent one are made, as far as a client can see, and never answered.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1] if how == 'silent' else 1}"
        began = time.monotonic()
        async with modelbox.Client(url, cache_dir=str(tmp_path / "cache")) as client:
            with anyio.fail_after(30), pytest.raises((Unavailable, DeadlineExceeded)):
                await client.load("a/b@prod", timeout=1)
            record_figure(3, f"{how}: raised after {time.monotonic() - began:.2f} s of 1 s")
    left = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and "lock" not in str(path)]
    assert [path.name for path in left if path.name != "CACHEDIR.TAG"] == []


@fault(4)
async def test_a_server_that_stands_still_holds_up_nobody(
    server: ServerProcess, tmp_path: Path, soon_silent: float
) -> None:
    async with modelbox.Client(server.url, cache_dir=str(tmp_path / "cache")) as client:
        await publish(client, "still/model", tmp_path, 1, 2)
        await client.promote("still/model@prod", 1)
        model = await client.load("still/model@prod")
        async with asked_all_the_time(model), hasty(server.url, "still/model") as other:
            server.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            try:
                with anyio.fail_after(30), pytest.raises(TransportError):
                    await other.promote("still/model@prod", 2)
                await until(lambda: model.stale)
                record_figure(4, f"noticed after {time.monotonic() - began:.1f} s, with {soon_silent:g} s of silence")
            finally:
                server.send_signal(signal.SIGCONT)
            await until(lambda: not model.stale)
            await client.promote("still/model@prod", 2)
            await until(lambda: model.version == 2)


@fault(5)
async def test_a_network_that_swallows_everything(tmp_path: Path, soon_silent: float) -> None:
    with network() as net:
        server = ServerProcess(tmp_path / "server", host=net.address, insecure_plaintext=True, insecure_open=True)
        server.prefix = net.prefix
        with server:
            cache_dir = str(tmp_path / "cache")
            async with modelbox.Client(server.url, cache_dir=cache_dir, connect_timeout_s=5) as client:
                await publish(client, "swallowed/model", tmp_path, 1, 2)
                await client.promote("swallowed/model@prod", 1)
                model = await client.load("swallowed/model@prod")
                async with asked_all_the_time(model), hasty(server.url, "swallowed/model") as other:
                    net.part()
                    began = time.monotonic()
                    with anyio.fail_after(30), pytest.raises(TransportError):
                        await other.get_model("swallowed/model")
                    await until(lambda: model.stale)
                    record_figure(
                        5, f"noticed after {time.monotonic() - began:.1f} s, with {soon_silent:g} s of silence"
                    )
                    net.join()
                    await until(lambda: not model.stale)
                    await client.promote("swallowed/model@prod", 2)
                    await until(lambda: model.version == 2)


@fault(6, 7)
async def test_downloads_and_streams_over_a_bad_network(tmp_path: Path) -> None:
    with proxied(tmp_path / "server") as net:
        async with modelbox.Client(net.url, cache_dir=str(tmp_path / "cache")) as client:
            await publish(client, "bad/model", tmp_path, 1)
            larges = [perceptron(512, 6, seed=seed) for seed in (1, 2)]
            for large in larges:
                (tmp_path / "model.onnx").write_bytes(large)
                await client.publish("bad/large", str(tmp_path / "model.onnx"))
            await client.promote("bad/model@prod", 1)
            model = await client.load("bad/model@prod")
            async with asked_all_the_time(model):
                # Each connection brings a piece, and ends.
                net.http.cut()
                net.http.add(LimitData(bytes=500_000))
                moved = net.http.passed_bytes["down"]
                await client.load("bad/large@1")
                moved = net.http.passed_bytes["down"] - moved
                assert moved < len(larges[0]) * 1.05, "what had come was not sent again"
                net.clear()
                # The same by resets, which take along what was not read yet.
                net.http.cut()
                net.http.add(ResetPeer(after_bytes=2_000_000))
                await client.load("bad/large@2")
                assert net.http.resets >= 3
                record_figure(6, f"{moved / len(larges[0]):.3f} times the bytes of a file that came in 13 pieces")
                net.clear()
                # Byte by byte, both ways, on every connection.
                net.add(Slicer(size_bytes=1))
                net.http.cut()
                await publish(client, "bad/model", tmp_path, 2)
                await client.promote("bad/model@prod", 2)
                await until(lambda: model.version == 2)
                net.clear()
                # A kilobyte a second.
                net.http.add(Bandwidth(bytes_per_s=1024))
                await publish(client, "bad/model", tmp_path, 3)
                await client.promote("bad/model@prod", 3)
                await until(lambda: model.version == 3)


@fault(8)
async def test_a_storm_of_refusals_is_not_multiplied(server: ServerProcess, tmp_path: Path) -> None:
    calls = 300
    with LyingServer(grpc=server.grpc_address, http=server.http_address) as lying:
        async with modelbox.Client(lying.url) as client:
            await client.create_model("storm/model")
            lying.refusals["*"] = Status.UNAVAILABLE
            lying.calls.clear()
            for _ in range(calls):
                with pytest.raises(Unavailable):
                    await client.get_model("storm/model")
            assert len(lying.calls) <= 1.1 * calls + 10
            record_figure(8, f"{len(lying.calls)} requests for {calls} calls")
            lying.refusals.clear()
            await client.get_model("storm/model")


class _Planning(Informer):
    """Notes when it meant to try again, by the loop's clock; a busy machine may have it wait for longer."""

    due = 0.0

    def _backed_off(self, failures: int, began: float) -> tuple[int, float]:
        failures, pause_s = super()._backed_off(failures, began)
        self.due = anyio.current_time() + pause_s
        return failures, pause_s


class _Told:
    """Follows one reference, and counts what it is told."""

    def __init__(self, ref: ModelRef) -> None:
        self.ref = ref
        self.version = 0

    def offer(self, resolved: Resolved, *, reset: bool = False) -> None:
        self.version = resolved.version.version

    def missing(self, error: ModelBoxError) -> None:
        raise AssertionError(error)

    def refused(self, error: ModelBoxError) -> None:
        raise AssertionError(error)


@fault(9)
async def test_a_hundred_clients_come_back_one_by_one(server: ServerProcess, tmp_path: Path) -> None:
    async with modelbox.Client(server.url) as client:
        await publish(client, "herd/model", tmp_path, 1, 2)
        await client.promote("herd/model@prod", 1)
        token = (await client.resolve("herd/model@prod")).token
        ref = ModelRef.parse("herd/model@prod")
        # The server is behind a gate that shuts for all of them at once.
        with (
            LyingServer(grpc=server.grpc_address, http=server.http_address) as counting,
            FaultProxy() as gate,
            FaultProxy(f"127.0.0.1:{counting.port}") as http,
        ):
            gate.target = f"127.0.0.1:{counting.grpc_port}"
            counting.advertised = gate.address
            async with AsyncExitStack() as stack, anyio.create_task_group() as tg:
                holders = [_Told(ref) for _ in range(100)]
                informers: list[_Planning] = []
                for holder in holders:
                    source = RemoteSource(load_client_config(url=http.url))
                    stack.push_async_callback(source.aclose)
                    informers.append(informer := _Planning(source, settings=InformerSettings(backoff_max_s=8)))
                    informer.add(holder, token)
                    tg.start_soon(informer.run)
                await until(lambda: counting.called("Watch") >= 100)
                counting.calls.clear()
                for proxy in (gate, http):
                    proxy.add(Refuse())
                gate.cut()
                await anyio.sleep(3)
                opened = time.monotonic()
                for proxy in (gate, http):
                    proxy.clear()
                await until(lambda: counting.called("Watch") >= 100)
                arrivals = sorted(at - opened for at, name in counting.calls if name == "Watch")
                assert counting.called("Resolve") == counting.called("List") == 0, "nobody had lost anything"
                assert len(arrivals) == 100
                # Without jitter they would mean to come together; and none came before it meant to.
                planned = sorted(informer.due - opened for informer in informers)
                busiest = max(sum(at <= other < at + 0.1 for other in planned) for at in planned)
                assert busiest <= 50
                assert all(due <= came + 0.01 for due, came in zip(planned, arrivals, strict=True))
                await client.promote("herd/model@prod", 2)
                await until(lambda: all(holder.version == 2 for holder in holders))
                record_figure(9, f"100 back within {max(arrivals):.1f} s, at most {busiest} in 0.1 s, 0 lists")
                tg.cancel_scope.cancel()


@fault(11)
async def test_another_modelbox_at_the_same_address(
    server: ServerProcess, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with modelbox.Client(server.url, cache_dir=str(tmp_path / "cache")) as client:
        await publish(client, "moved/model", tmp_path, 1, 2)
        await client.promote("moved/model@prod", 2)
        await client.promote("moved/model@prod", 1)
        model = await client.load("moved/model@prod")
        async with asked_all_the_time(model):
            server.terminate()
            grpc_port, http_port = (at.rpartition(":")[2] for at in (server.grpc_address, server.http_address))
            with ServerProcess(tmp_path / "another", grpc_port=grpc_port, http_port=http_port):
                # It knows nothing of the model: what serves goes on.
                await until(lambda: "is gone from the server" in caplog.text)
                assert model.version == 1
                # Then it does, with fewer revisions than the first one had.
                async with modelbox.Client(server.url) as other:
                    await publish(other, "moved/model", tmp_path, 1, 2, 3)
                    await other.promote("moved/model@prod", 3)
                await until(lambda: model.version == 3)
        assert "history is another one" in caplog.text
