"""An older copy of everything is restored below clients that know what came after it, and they converge on it.

The restored history goes on past the revision where the clients stand before they see it again, so that by numbers
alone they would miss it; the chain tells them, or the epoch where the copy was imported.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import anyio
import numpy as np
import pytest

import modelbox
from modelbox.cli import main
from modelbox.feed import Change, Resync
from tests.faults.registry import fault
from tests.onnx_models import add_constant
from tests.server import ServerProcess

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def _copy_files(server: ServerProcess, copy: Path) -> None:
    server.terminate()
    shutil.copytree(server.data_dir, copy)
    server.restart()


def _files_back(copy: Path, data_dir: Path) -> None:
    shutil.copytree(copy, data_dir)


def _export(server: ServerProcess, copy: Path) -> None:
    assert main(["server", "export", "--data-dir", str(server.data_dir), str(copy)]) == 0


def _import(copy: Path, data_dir: Path) -> None:
    assert main(["server", "import", "--data-dir", str(data_dir), str(copy)]) == 0


class Watcher:
    """Knows by the feed alone where aliases and models are."""

    def __init__(self) -> None:
        self.known: dict[str, Change] = {}
        self.resyncs = 0

    async def follow(self, client: modelbox.Client) -> None:
        """Until it is cancelled."""
        async with client.changes(namespace="ns", list_first=True) as feed:
            async for item in feed:
                if isinstance(item, Resync):
                    self.resyncs += 1
                    self.known.clear()
                elif item.object not in self.known or item.mod_rev > self.known[item.object].mod_rev:
                    self.known[item.object] = item

    def sees(self, models: set[str], prod: int) -> bool:
        """Whether it knows these models, and where ``prod`` is."""
        found = {change.object for change in self.known.values() if change.kind == "model"}
        alias = self.known.get("ns/m@prod")
        return found == models and alias is not None and alias.state["version"] == prod


@fault(25)
@pytest.mark.parametrize(
    ("copy", "put_back"), [(_copy_files, _files_back), (_export, _import)], ids=["files", "export and import"]
)
async def test_a_loader_and_a_watcher_converge_on_an_older_copy(
    copy: Callable[[ServerProcess, Path], None],
    put_back: Callable[[Path, Path], None],
    server: ServerProcess,
    tmp_path: Path,
) -> None:
    cache = str(tmp_path / "cache")
    watcher = Watcher()
    problems: list[str] = []
    served: set[int] = set()
    async with modelbox.Client(server.url, cache_dir=cache) as client, anyio.create_task_group() as tasks:
        for constant in (10.0, 20.0):
            (tmp_path / "model.onnx").write_bytes(add_constant(constant))
            await client.publish("ns/m", str(tmp_path / "model.onnx"))
        await client.promote("ns/m@prod", 1)
        model = await client.load("ns/m@prod")
        x = np.ones((1, 4), np.float32)

        async def call() -> None:
            while True:
                try:
                    outputs = await model.predict({"x": x})
                except Exception as exc:
                    problems.append(repr(exc))
                    return
                version = outputs.version.version
                if not np.allclose(outputs["y"], x + version * 10):
                    problems.append(f"version {version} gave another one's answer")
                served.add(version)
                await anyio.sleep(0.002)

        async def wait(condition: Callable[[], bool]) -> None:
            with anyio.fail_after(100):
                while not condition():
                    assert problems == []
                    await anyio.sleep(0.01)

        tasks.start_soon(call)
        tasks.start_soon(watcher.follow, client)
        await wait(lambda: watcher.sees({"ns/m"}, prod=1))
        await anyio.to_thread.run_sync(copy, server, tmp_path / "copy")

        await client.promote("ns/m@prod", 2)
        await client.create_model("ns/lost")
        await wait(lambda: model.version == 2 and watcher.sees({"ns/m", "ns/lost"}, prod=2))
        before = watcher.resyncs
        server.kill()

        # What was restored lives on where the clients do not see it, far beyond the revision that they know.
        shutil.rmtree(server.data_dir)
        await anyio.to_thread.run_sync(put_back, tmp_path / "copy", server.data_dir)
        with ServerProcess(server.data_dir) as elsewhere:
            async with modelbox.Client(elsewhere.url, cache_dir=str(tmp_path / "other")) as other:
                await other.create_model("ns/new")
                for number in range(20):
                    await other.update_model("ns/new", owner=f"ann-{number}")
        server.restart()
        await wait(lambda: model.version == 1 and watcher.sees({"ns/m", "ns/new"}, prod=1))
        assert watcher.resyncs > before

        # And they follow what comes next.
        await client.promote("ns/m@prod", 2)
        await wait(lambda: model.version == 2 and watcher.sees({"ns/m", "ns/new"}, prod=2))
        tasks.cancel_scope.cancel()
    assert problems == []
    assert served == {1, 2}


@fault(25)
@pytest.mark.parametrize(
    ("copy", "put_back"), [(_copy_files, _files_back), (_export, _import)], ids=["files", "export and import"]
)
async def test_a_loader_that_was_away_meanwhile_takes_the_older_copy_too(
    copy: Callable[[ServerProcess, Path], None],
    put_back: Callable[[Path, Path], None],
    server: ServerProcess,
    tmp_path: Path,
) -> None:
    cache = str(tmp_path / "cache")
    async with modelbox.Client(server.url, cache_dir=cache) as client:
        for constant in (10.0, 20.0):
            (tmp_path / "model.onnx").write_bytes(add_constant(constant))
            await client.publish("ns/m", str(tmp_path / "model.onnx"))
        await client.promote("ns/m@prod", 1)
        await anyio.to_thread.run_sync(copy, server, tmp_path / "copy")
        await client.promote("ns/m@prod", 2)
        model = await client.load("ns/m@prod")
        assert model.version == 2
    server.kill()
    shutil.rmtree(server.data_dir)
    await anyio.to_thread.run_sync(put_back, tmp_path / "copy", server.data_dir)
    server.restart()
    async with modelbox.Client(server.url, cache_dir=cache) as client:
        model = await client.load("ns/m@prod")
        with anyio.fail_after(100):
            while model.version != 1:
                await anyio.sleep(0.01)
