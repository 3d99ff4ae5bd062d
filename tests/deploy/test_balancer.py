"""The balancer's configuration, with the real program, in front of two real replicas that come and go."""

from __future__ import annotations

import itertools
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

import modelbox
from modelbox.feed import Change
from tests.certificates import Authority
from tests.onnx_models import add_constant
from tests.server import ServerProcess
from tests.servers.availability import unavailable
from tests.servers.debian import CannotHave, Packages, unpacked
from tests.servers.files import free_port

CONFIG = Path(__file__).parents[2] / "deploy" / "haproxy" / "haproxy.cfg"
TLS_CONFIG = CONFIG.with_name("tls.cfg")


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def haproxy() -> Packages:
    try:
        return unpacked("haproxy", ["haproxy", "liblua5.3-0", "libopentracing-c-wrapper0", "libopentracing1"])
    except CannotHave as exc:
        unavailable(str(exc))


@pytest.fixture
def replicas(tmp_path: Path, postgres_url: str) -> Iterator[tuple[ServerProcess, ServerProcess, int]]:
    """Two replicas that run, and the port of gRPC at the balancer that they tell their clients."""
    grpc_port = free_port()
    with ExitStack() as stack:
        one, two = (
            stack.enter_context(
                ServerProcess(
                    tmp_path / "data",
                    env={"MODELBOX_DATABASE_URL": postgres_url},
                    advertise_grpc=f"127.0.0.1:{grpc_port}",
                    replica_name=name,
                    drain_delay_s=2.5,
                )
            )
            for name in ("one", "two")
        )
        yield one, two, grpc_port


@pytest.fixture
def balancer(replicas: tuple[ServerProcess, ServerProcess, int], haproxy: Packages) -> Iterator[str]:
    one, two, grpc_port = replicas
    with balancing(haproxy, CONFIG, one, two, grpc_port=grpc_port) as http_port:
        yield f"http://127.0.0.1:{http_port}"


@contextmanager
def balancing(
    haproxy: Packages, config: Path, one: ServerProcess, two: ServerProcess, *, grpc_port: int, **more: str
) -> Iterator[int]:
    """The balancer before two servers; gives its port of HTTP."""
    http_port = free_port()
    env = {"LISTEN_HTTP": f"127.0.0.1:{http_port}", "LISTEN_GRPC": f"127.0.0.1:{grpc_port}", **more}
    for number, server in enumerate((one, two), 1):
        env |= {
            f"SERVER_{number}_HTTP": server.http_address,
            f"SERVER_{number}_GRPC": server.grpc_address,
            f"SERVER_{number}_CHECK": server.http_address.rpartition(":")[2],
        }
    command = [str(haproxy.root / "usr/sbin/haproxy"), "-f", str(config)]
    checked = subprocess.run([*command, "-c"], env=haproxy.env() | env, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "WARNING" not in checked.stdout + checked.stderr
    process = subprocess.Popen([*command, "-db"], env=haproxy.env() | env)
    try:
        wait_listening(http_port)
        yield http_port
    finally:
        process.kill()
        process.wait()


def wait_listening(port: int) -> None:
    end = time.monotonic() + 60
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < end, "the balancer does not listen"
        time.sleep(0.02)


async def test_a_rolling_restart_behind_the_balancer_loses_nothing(
    tmp_path: Path, replicas: tuple[ServerProcess, ServerProcess, int], balancer: str
) -> None:
    one, two, _ = replicas
    model = tmp_path / "model.onnx"
    moved: list[int] = []
    seen: list[int] = []
    listed, stop = anyio.Event(), anyio.Event()
    async with modelbox.Client(balancer) as box:
        for constant in (1.0, 2.0):
            model.write_bytes(add_constant(constant))
            await box.publish("acme/adder", model)

        async def watch() -> None:
            async with box.changes(objects=["acme/adder"], kinds=["alias"], list_first=True) as feed:
                async for change in feed:
                    assert isinstance(change, Change), change
                    listed.set()
                    if change.state["name"] == "prod":
                        seen.append(change.state["version"])

        async def promote() -> None:
            for number in itertools.cycle((1, 2)):
                await box.promote("acme/adder@prod", number)
                moved.append(number)
                with anyio.move_on_after(0.05):
                    await stop.wait()
                    return

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            await listed.wait()
            tasks.start_soon(promote)
            for server in (one, two):
                before = len(moved)
                assert await to_thread.run_sync(server.terminate) == 0
                await to_thread.run_sync(server.restart)
                assert len(moved) > before, "nothing was moved while one of two replicas was away"
            stop.set()
            with anyio.fail_after(60):
                while seen != moved:
                    await anyio.sleep(0.05)
            tasks.cancel_scope.cancel()


async def test_tls_passes_through_to_a_server_that_is_ready(tmp_path: Path, haproxy: Packages) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("balanced", "modelbox.example", "127.0.0.1")
    grpc_port = free_port()
    settings: dict[str, Any] = {
        "advertise_grpc": f"127.0.0.1:{grpc_port}",
        "tls_cert": pair.certificate,
        "tls_key": pair.key,
    }
    with ExitStack() as stack:
        # Not replicas: which of them answers does not matter here.
        one = stack.enter_context(ServerProcess(tmp_path / "one", **settings))
        two = stack.enter_context(ServerProcess(tmp_path / "two", **settings))
        checks = {"SERVERS_CA": str(authority.certificate), "SERVERS_NAME": "modelbox.example"}
        http_port = stack.enter_context(balancing(haproxy, TLS_CONFIG, one, two, grpc_port=grpc_port, **checks))

        async def ask() -> str:
            url = f"https://127.0.0.1:{http_port}"
            async with modelbox.Client(url, tls_ca=authority.certificate, cache_dir=tmp_path / "cache") as client:
                await client._call(lambda source: source.grpc.list_namespaces())
                info = await client._call(lambda source: source.http.server_info())
            return info.server_id

        assert await ask()
        await to_thread.run_sync(one.kill)
        # Nobody is left but the second, once the balancer has noticed.
        with anyio.fail_after(60):
            while True:
                try:
                    first, second = await ask(), await ask()
                except modelbox.ModelBoxError:
                    continue
                if first == second:
                    break
