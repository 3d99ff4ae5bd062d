"""Where applications really run: forked workers, several event loops, threads without any, short scripts."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest

import modelbox
from tests.onnx_models import add_constant
from tests.server import ServerProcess

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


async def publish(url: str, path: str, directory: Path, constant: float, alias: str = "prod") -> None:
    (directory / "model.onnx").write_bytes(add_constant(constant))
    async with modelbox.Client(url) as client:
        await client.publish(path, str(directory / "model.onnx"), aliases=[alias])


def run_script(script: str, url: str, directory: Path) -> str:
    env = os.environ | {
        "MODELBOX_URL": url,
        "MODELBOX_CACHE_DIR": str(directory / "cache"),
        "PYTHONPATH": str(ROOT),
        "PYTHONDEVMODE": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=100,
        env=env,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


async def test_a_forked_worker_serves_and_follows(shared_server: ServerProcess, tmp_path: Path) -> None:
    await publish(shared_server.url, "fork/model", tmp_path, 1)
    await publish(shared_server.url, "fork/model", tmp_path, 2, alias="next")
    script = """
        import os, sys, time, numpy as np, modelbox
        from modelbox import sync
        x = {"x": np.zeros((1, 4), np.float32)}
        model = sync.load("fork/model@prod")
        assert model.predict(x)["y"][0, 0] == 1.0

        def say(*words):
            # In one piece: the children write to the same pipe.
            os.write(1, (" ".join(map(str, words)) + "\\n").encode())

        children = []
        served, serves = os.pipe()
        for n in range(3):
            pid = os.fork()
            if pid == 0:
                ok = model.predict(x)["y"][0, 0] == 1.0          # before anything is heard
                say(n, "serves", ok)
                os.write(serves, b".")
                deadline = time.monotonic() + 60
                while model.version != 2 and time.monotonic() < deadline:
                    time.sleep(0.01)
                say(n, "follows", model.predict(x)["y"][0, 0] == 2.0)
                model.close()
                sys.exit(0 if ok else 1)
            children.append(pid)
        for _ in children:
            os.read(served, 1)
        import anyio
        async def move():
            async with modelbox.Client() as client:
                await client.promote("fork/model@prod", 2)
        anyio.run(move)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        deadline = time.monotonic() + 60
        while model.version != 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        print("codes", codes, "parent", model.version)
    """
    output = await anyio.to_thread.run_sync(run_script, script, shared_server.url, tmp_path)
    for child in range(3):
        assert f"{child} serves True" in output
        assert f"{child} follows True" in output
    assert "codes [0, 0, 0] parent 2" in output


async def test_one_handle_on_several_loops_and_threads(shared_server: ServerProcess, tmp_path: Path) -> None:
    await publish(shared_server.url, "loops/model", tmp_path, 1)
    async with modelbox.Client(shared_server.url, cache_dir=str(tmp_path / "cache")) as client:
        model = await client.load("loops/model@prod")
        x = {"x": np.zeros((1, 4), np.float32)}
        wrong: list[str] = []

        async def use(name: str) -> None:
            async with anyio.create_task_group() as tg:
                for _ in range(4):
                    tg.start_soon(use_once, name)

        async def use_once(name: str) -> None:
            for _ in range(50):
                outputs = await model.predict(x)
                if outputs["y"][0, 0] != outputs.version.version:
                    wrong.append(name)
                await anyio.lowlevel.checkpoint()

        def without_loop() -> None:
            for _ in range(50):
                outputs = model.predict_sync(x)
                if outputs["y"][0, 0] != outputs.version.version:
                    wrong.append("sync")

        threads = [threading.Thread(target=without_loop)]

        def with_loop(backend: str, options: dict[str, Any]) -> None:
            anyio.run(use, backend, backend=backend, backend_options=options)

        for backend, options in (("asyncio", {}), ("asyncio", {"use_uvloop": True}), ("trio", {})):
            threads.append(threading.Thread(target=with_loop, args=(backend, options)))
        for thread in threads:
            thread.start()
        await publish(shared_server.url, "loops/model", tmp_path, 2)
        for thread in threads:
            await anyio.to_thread.run_sync(thread.join, 60)
        assert not any(thread.is_alive() for thread in threads)
        assert wrong == []


async def test_a_script_without_async_ends_by_itself(shared_server: ServerProcess, tmp_path: Path) -> None:
    await publish(shared_server.url, "script/model", tmp_path, 1)
    script = """
        import numpy as np
        from modelbox import sync
        model = sync.load("script/model@prod")          # never closed
        with model.lease() as lease:
            print(lease.version.version, lease.predict_sync({"x": np.ones((2, 4), np.float32)})["y"].sum())
        print(model.predict({"x": np.ones((2, 4), np.float32)})["y"].sum(), model)
    """
    output = await anyio.to_thread.run_sync(run_script, script, shared_server.url, tmp_path)
    assert output.splitlines()[0] == "1 16.0"


async def test_the_default_client_needs_no_set_up(
    shared_server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(shared_server.url, "default/model", tmp_path, 1)
    monkeypatch.setenv("MODELBOX_URL", shared_server.url)
    monkeypatch.setenv("MODELBOX_CACHE_DIR", str(tmp_path / "cache"))
    try:
        model = await modelbox.load("default/model@prod")
        assert (await model.predict({"x": [[1.0, 2.0, 3.0, 4.0]]}))["y"].tolist() == [[2.0, 3.0, 4.0, 5.0]]
    finally:
        await modelbox.aclose()
    await modelbox.aclose()


async def test_cancelled_and_forgotten_loads_leave_nothing_in_service(
    shared_server: ServerProcess, tmp_path: Path
) -> None:
    await publish(shared_server.url, "forgotten/model", tmp_path, 1)
    async with modelbox.Client(shared_server.url, cache_dir=str(tmp_path / "cache")) as client:
        keeper = await client.load("forgotten/model@prod")
        for attempt in range(60):
            with anyio.move_on_after(0.00005 * attempt):  # some end just when the engine has finished
                await client.load("forgotten/model@prod")
        await keeper.aclose()
        del keeper
        gc.collect()

        async def gone() -> bool:
            return [instance async for instance in client.iter_instances("forgotten/model")] == []

        with anyio.fail_after(60):
            while not await gone():
                await anyio.sleep(0.02)
