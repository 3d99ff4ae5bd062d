"""SIGKILL under load over every protocol: of the sidecar, of applications, of the central server.

What the Unix socket alone does is proven by tests/integration/test_sidecar_faults.py.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.to_thread
import numpy as np
import pytest
import tritonclient.http as triton_http

import modelbox
from modelbox.events import SessionFreed
from tests.onnx_models import add_constant
from tests.server import ServerProcess
from tests.sidecar import SidecarProcess
from tests.sidecar_traffic import Traffic, added, client_of

ROOT = Path(__file__).parents[2]
CONSTANTS = {1: 10.0, 2: 20.0}
KILLS = 3

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


async def publish(client: modelbox.Client, directory: Path) -> None:
    for constant in CONSTANTS.values():
        (directory / "model.onnx").write_bytes(add_constant(constant))
        await client.publish("kill/model", directory / "model.onnx")
    await client.promote("kill/model@prod", 1)


async def until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(60):
        while not holds():
            await anyio.sleep(0.01)


@pytest.mark.slow
async def test_a_killed_sidecar_answers_again_over_every_protocol(server: ServerProcess, tmp_path: Path) -> None:
    """Calls through the handle wait; others fail while there is nobody, and at no other time."""
    rng = random.Random(20261121)
    async with modelbox.Client(server.url, cache_dir=tmp_path / "promoting") as client:
        await publish(client, tmp_path)
        with SidecarProcess(tmp_path, server.url, "kill/model@prod") as sidecar:
            with anyio.fail_after(300):
                async with Traffic(sidecar, "kill/model", "prod", added(CONSTANTS)) as traffic:
                    failing = {name for name in traffic.protocols if not name.startswith("socket")}
                    await traffic.answered(version=1)
                    for kill in range(KILLS):
                        await anyio.sleep(rng.uniform(0, 0.3))
                        with traffic.outage():
                            sidecar.kill()
                            # What it serves when it is back is what is right by then, not what it served last.
                            await client.promote("kill/model@prod", 2 - kill % 2)
                            await until(lambda: set(traffic.failed) >= failing)
                            await anyio.to_thread.run_sync(sidecar.restart)
                        await traffic.answered(version=2 - kill % 2)
            assert traffic.problems == []
            assert set(traffic.failed) == failing
            assert "Traceback" not in sidecar.output


_APPLICATION = """
    import sys, threading
    import anyio, numpy as np
    import tritonclient.grpc.aio as triton_grpc
    import tritonclient.http as triton_http
    import tritonclient.utils.shared_memory as shm
    import modelbox

    http, grpc, socket, directory, key = sys.argv[1:]

    def over_http():
        region = shm.create_shared_memory_region(key, "/" + key, 8 << 20)
        client = triton_http.InferenceServerClient(http)
        client.register_system_shared_memory(key, "/" + key, 8 << 20)
        x = np.ones((200_000, 4), np.float32)
        shm.set_shared_memory_region(region, [x])
        given = triton_http.InferInput("x", [200_000, 4], "FP32")
        given.set_shared_memory(key, x.nbytes)
        taken = triton_http.InferRequestedOutput("y")
        taken.set_shared_memory(key, x.nbytes, offset=4 << 20)
        while True:
            client.infer("kill/model", [given], outputs=[taken])
            working.add("http")

    async def over_grpc():
        async with triton_grpc.InferenceServerClient(grpc) as client:
            x = np.ones((200_000, 4), np.float32)
            given = triton_grpc.InferInput("x", [200_000, 4], "FP32").set_data_from_numpy(x)
            while True:
                await client.infer("kill/model", [given])
                working.add("grpc")

    async def over_the_socket():
        client = modelbox.Client("http://127.0.0.1:9", sidecar=socket, cache_dir=directory)
        model = await client.load("kill/model@prod")
        for _ in range(10):
            await model.lease().__aenter__()
        while True:
            await model.predict({"x": np.ones((200_000, 4), np.float32)})
            working.add("socket")

    async def main():
        threading.Thread(target=over_http, daemon=True).start()
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(over_grpc)
            tasks.start_soon(over_the_socket)
            while working != {"http", "grpc", "socket"}:
                await anyio.sleep(0.01)
            print("working", flush=True)

    working = set()
    anyio.run(main)
"""


@pytest.mark.slow
async def test_a_killed_application_gives_everything_back(server: ServerProcess, tmp_path: Path) -> None:
    """In the middle of calls over every protocol, with leases, segments and a region of system shared memory."""
    key = f"killed{os.getpid()}"
    async with modelbox.Client(server.url, cache_dir=tmp_path / "promoting") as promoting:
        await publish(promoting, tmp_path)
        with SidecarProcess(tmp_path, server.url, "kill/model@prod") as sidecar:

            def descriptors() -> int:
                return len(os.listdir(f"/proc/{sidecar.pid}/fd"))

            async def work_and_die(turn: int) -> None:
                arguments = (
                    sidecar.http_address,
                    sidecar.grpc_address,
                    sidecar.socket_url,
                    str(tmp_path / "c"),
                    f"{key}-{turn}",
                )
                process = await anyio.open_process(
                    [sys.executable, "-c", textwrap.dedent(_APPLICATION), *arguments], cwd=ROOT
                )
                try:
                    assert process.stdout is not None
                    with anyio.fail_after(100):
                        assert (await process.stdout.receive()).startswith(b"working")
                    assert descriptors() > before
                finally:
                    process.kill()
                    await process.aclose()

            async def swapped(version: int) -> int:
                """Memory after a swap, which gives back what was freed; no lease holds the old version."""
                with contextlib.closing(model.events()) as events:
                    await promoting.promote("kill/model@prod", version)
                    with anyio.fail_after(60):
                        async for event in events:
                            if isinstance(event, SessionFreed):
                                assert not event.forced
                                break
                return sidecar.rss_bytes()

            async with client_of(sidecar) as client:
                model = await client.load("kill/model@prod")
                x = {"x": np.ones((1, 4), np.float32)}
                await model.predict(x)
                before = descriptors()
                with triton_http.InferenceServerClient(sidecar.http_address) as http:
                    await work_and_die(0)
                    # The protocol ties no region to whoever registered it; one whose file is gone is swept up later.
                    assert [region["name"] for region in http.get_system_shared_memory_status()] == [f"{key}-0"]
                    Path(f"/dev/shm/{key}-0").unlink(missing_ok=True)
                    http.unregister_system_shared_memory(f"{key}-0")
                await until(lambda: descriptors() <= before)
                settled = await swapped(2)
                for turn in range(1, 7):
                    await work_and_die(turn)
                    Path(f"/dev/shm/{key}-{turn}").unlink(missing_ok=True)
                    with triton_http.InferenceServerClient(sidecar.http_address) as http:
                        http.unregister_system_shared_memory(f"{key}-{turn}")
                    await until(lambda: descriptors() <= before)
                assert "memfd:modelbox" not in Path(f"/proc/{sidecar.pid}/maps").read_text()
                # The least of three: a swap gives back what is free then, and answers may still be on their way.
                grown = min([await swapped(version) - settled for version in (1, 2, 1)])
                assert grown < 24 << 20, f"{grown / 2**20:.1f} MiB after six killed applications"
                assert (await model.predict(x))["y"][0, 0] == 11.0
                assert "Traceback" not in sidecar.output


@pytest.mark.slow
async def test_a_killed_server_fails_no_call(server: ServerProcess, tmp_path: Path) -> None:
    """Answers go on; a sidecar that is restarted meanwhile serves the last good version, and follows again later."""
    async with modelbox.Client(server.url, cache_dir=tmp_path / "promoting") as client:
        await publish(client, tmp_path)
        with SidecarProcess(tmp_path, server.url, "kill/model@prod") as sidecar:
            with anyio.fail_after(300):
                async with Traffic(sidecar, "kill/model", "prod", added(CONSTANTS)) as traffic:
                    await client.promote("kill/model@prod", 2)
                    await traffic.answered(version=2)
                    server.kill()
                    for _ in range(5):
                        await traffic.answered(version=2)
                        await anyio.sleep(0.2)
                    assert not traffic.failed
                    with traffic.outage():
                        sidecar.kill()
                        await anyio.to_thread.run_sync(sidecar.restart)
                    await traffic.answered(version=2)
                    ones = sum(seen[1] for seen in traffic.calls.values())
                    await anyio.to_thread.run_sync(server.restart)
                    await traffic.answered(version=2)
                    assert sum(seen[1] for seen in traffic.calls.values()) == ones
                    await client.promote("kill/model@prod", 1)
                    await traffic.answered(version=1)
            assert traffic.problems == []
            assert "Traceback" not in sidecar.output
