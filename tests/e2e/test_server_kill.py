"""The server is killed at random moments: what it acknowledged is there, nobody sees anything else, answers go on."""

from __future__ import annotations

import random
from pathlib import Path

import anyio
import numpy as np
import pytest

import modelbox
from modelbox.errors import ConflictError, ServerBusy, TransportError
from modelbox.feed import Change
from modelbox.loader.reload import Reloader
from tests.faults.registry import fault
from tests.loading import recorded
from tests.onnx_models import add_constant
from tests.server import ServerProcess

KILLS = 8


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@fault(1)
@pytest.mark.timeout(400)
async def test_acknowledged_moves_survive_and_answers_go_on(server: ServerProcess, tmp_path: Path) -> None:
    rng = random.Random(20261121)
    acknowledged: list[tuple[str, int]] = []  # alias, mod_rev
    seen: list[Change] = []
    answers = failures = 0
    stop = False

    async with modelbox.Client(server.url, cache_dir=str(tmp_path / "cache"), request_timeout_s=20) as client:
        for constant in (1, 2):
            (tmp_path / "model.onnx").write_bytes(add_constant(constant))
            await client.publish("kill/model", str(tmp_path / "model.onnx"))
        await client.promote("kill/model@prod", 1)
        model = await client.load("kill/model@prod")

        async def promote(alias: str) -> None:
            version = 1
            while not stop:
                version = 3 - version
                try:
                    moved = await client.promote(f"kill/model@{alias}", version)
                except (TransportError, ConflictError, ServerBusy):
                    await anyio.sleep(0.02)
                    continue
                acknowledged.append((alias, moved.mod_rev))

        async def predict() -> None:
            nonlocal answers, failures
            while not stop:
                try:
                    outputs = await model.predict({"x": np.zeros((1, 4), np.float32)})
                    assert outputs["y"][0, 0] == outputs.version.version
                except Exception:
                    failures += 1
                answers += 1
                await anyio.sleep(0.005)

        async def follow() -> None:
            async for item in client.changes(objects=["kill/model"]):
                if isinstance(item, Change):
                    seen.append(item)

        with anyio.fail_after(350):
            async with anyio.create_task_group() as tg:
                tg.start_soon(follow)
                async with anyio.create_task_group() as load:
                    load.start_soon(predict)
                    for alias in ("prod", "a", "b", "c"):
                        load.start_soon(promote, alias)
                    for _ in range(KILLS):
                        await anyio.sleep(rng.uniform(0.05, 0.5))
                        await anyio.to_thread.run_sync(server.kill)
                        await anyio.to_thread.run_sync(server.restart)
                    while len(acknowledged) <= KILLS or answers <= 100:
                        await anyio.sleep(0.01)
                    stop = True
                last = await client.promote("kill/model@end", 1)
                while not seen or seen[-1].rev < last.mod_rev:
                    await anyio.sleep(0.01)
                final = await client.resolve("kill/model@prod")
                while model.version != final.version.version or model.stale:
                    await anyio.sleep(0.01)
                tg.cancel_scope.cancel()

        stored = {
            (move.name, move.rev) async for move in client.iter_alias_moves("kill/model") if move.to_version is not None
        }
        assert len(acknowledged) > KILLS
        assert set(acknowledged) <= stored
        # The watcher, which reconnected every time, saw the committed history and nothing else: in order, no holes.
        revisions = list(dict.fromkeys(change.rev for change in seen))
        assert revisions == sorted(revisions)
        moved = {(c.object.partition("@")[2], c.rev) for c in seen if c.kind == "alias"}
        first = revisions[0]
        assert {entry for entry in stored if entry[1] >= first} - {("latest", r) for r in revisions} <= moved
        assert moved <= stored
        assert failures == 0
        assert answers > 100


@fault(2)
async def test_the_service_starts_without_a_server(server: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(add_constant(1))
    cache_dir = str(tmp_path / "cache")
    async with modelbox.Client(server.url, cache_dir=cache_dir) as client:
        await client.publish("kill/model", str(tmp_path / "model.onnx"), aliases=["prod"])
        model = await client.load("kill/model@prod")
        assert isinstance(model._reloader, Reloader)
        await recorded(model._reloader, lambda state: True)
    server.kill()
    x = {"x": np.zeros((1, 4), np.float32)}
    async with modelbox.Client(server.url, cache_dir=cache_dir) as client:
        with anyio.fail_after(60):
            model = await client.load("kill/model@prod")
        assert model.stale
        assert (await model.predict(x))["y"][0, 0] == 1.0
        with pytest.raises(TransportError):
            await client.load("kill/other@prod", timeout=10)
        server.restart()
        (tmp_path / "model.onnx").write_bytes(add_constant(2))
        await client.publish("kill/model", str(tmp_path / "model.onnx"), aliases=["prod"])
        with anyio.fail_after(60):
            while model.version != 2 or model.stale:
                await anyio.sleep(0.02)
        assert (await model.predict(x))["y"][0, 0] == 2.0
