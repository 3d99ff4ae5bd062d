"""What threads, loops and cancelled calls leave open between an application and the sidecar: nothing."""

from __future__ import annotations

import asyncio
import gc
import threading
import urllib.request
from collections.abc import Callable, Iterator

import anyio
import anyio.lowlevel
import anyio.to_thread
import numpy as np
import pytest

import modelbox
from modelbox.errors import LeaseReleased
from tests.onnx_models import add_constant
from tests.server import ServerProcess
from tests.sidecar import SidecarProcess

ONE = {"x": np.ones((1, 4), np.float32)}
REF = "links/add@prod"


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SidecarProcess]:
    directory = tmp_path_factory.mktemp("links")

    async def publish(url: str) -> None:
        async with modelbox.Client(url, cache_dir=directory / "publishing") as client:
            for constant in (1.0, 2.0):
                (directory / "model.onnx").write_bytes(add_constant(constant))
                await client.publish("links/add", directory / "model.onnx", aliases=["prod"] if constant == 1 else [])

    with ServerProcess(directory / "server") as server:
        anyio.run(publish, server.url)
        with SidecarProcess(directory, server.url, REF, http="false", grpc="false") as process:
            yield process


def client_of(sidecar: SidecarProcess) -> modelbox.Client:
    return modelbox.Client("http://127.0.0.1:9", cache_dir=sidecar.directory / "unused", sidecar=sidecar.socket_url)


def connections(sidecar: SidecarProcess) -> int:
    with urllib.request.urlopen(sidecar.metrics_url, timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    (count,) = [line.split()[-1] for line in lines if line.startswith("modelbox_socket_connections ")]
    return int(float(count))


async def until_connections(sidecar: SidecarProcess, most: int) -> None:
    with anyio.fail_after(60):
        while await anyio.to_thread.run_sync(connections, sidecar) > most:
            gc.collect()
            await anyio.sleep(0.05)


def in_a_thread(fn: Callable[[], object]) -> None:
    """Runs ``fn`` in a thread that ends with it."""
    thread = threading.Thread(target=fn)
    thread.start()
    thread.join()


@pytest.mark.parametrize("way", ["without a loop", "with a loop", "with loops"])
async def test_threads_that_end_leave_no_connection(sidecar: SidecarProcess, way: str) -> None:
    async with client_of(sidecar) as client:
        model = await client.load(REF)
        answers: list[float] = []

        async def predict() -> None:
            answers.append(float((await model.predict(ONE))["y"][0, 0]))

        def call() -> None:
            if way == "without a loop":
                answers.append(float(model.predict_sync(ONE)["y"][0, 0]))
                return
            for _ in range(1 if way == "with a loop" else 3):
                asyncio.run(predict())

        for _ in range(8):
            await anyio.to_thread.run_sync(in_a_thread, call)
        assert set(answers) == {2.0}
        # The engine's own.
        await until_connections(sidecar, 1)
    await until_connections(sidecar, 0)


async def test_a_lease_that_was_cancelled_on_its_way_is_given_back(sidecar: SidecarProcess) -> None:
    async with client_of(sidecar) as client:
        model = await client.load(REF)
        await model.predict(ONE)
        lease = model.lease()
        async with anyio.create_task_group() as tasks:

            async def take() -> None:
                async with lease:
                    raise AssertionError("it was to be cancelled before")

            tasks.start_soon(take)
            # Asked for, and not answered yet.
            await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        # The answer of the lease comes before that of this call, which is on the same connection.
        await model.predict(ONE)
        with pytest.raises(LeaseReleased):
            _ = lease.version
