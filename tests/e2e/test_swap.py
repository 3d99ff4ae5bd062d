"""A reference moves under load: no failed call, no answer that mixes two versions, and no memory left behind.

Real server process, real sessions, callers on every event loop. The models add a constant to their input, so that an
answer tells by its value which version gave it, and a batch of two different versions would tell on itself.
"""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import psutil
import pytest

import modelbox
from modelbox import LoadOptions, Mode, ReloadSucceeded, RunnerOptions, SessionFreed
from tests.faults.registry import fault
from tests.onnx_models import add_constant, perceptron
from tests.server import ServerProcess

CALLERS = 8
SWAPS = 200
FLAT_BYTES = 10 << 20

pytestmark = pytest.mark.timeout(400)


class Load:
    """Callers in a closed loop, and what became of their calls."""

    def __init__(self, model: modelbox.LiveModel, answers: dict[int, float]) -> None:
        self.model = model
        self.answers = answers
        self.by_version: Counter[int] = Counter()
        self.problems: list[str] = []
        self.stop = False

    async def call(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        while not self.stop:
            x = rng.standard_normal((int(rng.integers(1, 4)), 4), dtype=np.float32)
            try:
                outputs = await self.model.predict({"x": x})
            except Exception as exc:
                self.problems.append(f"failed: {exc!r}")
                return
            version = outputs.version.version
            if not np.allclose(outputs["y"], x + self.answers[version], atol=1e-5):
                self.problems.append(f"version {version} gave another version's answer")
                return
            self.by_version[version] += 1
            await anyio.lowlevel.checkpoint()


@fault(57)
@pytest.mark.parametrize(
    "options",
    [
        LoadOptions(batching=False),
        LoadOptions(batching=True),
        LoadOptions(runner=RunnerOptions(mode=Mode.POOL), batching=False),
    ],
    ids=["inline", "batched", "pool"],
)
async def test_no_call_fails_or_mixes_over_swaps(
    options: LoadOptions, shared_server: ServerProcess, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = f"swap/{request.node.callspec.id.replace('+', '-')}"
    answers = {1: 10.0, 2: 20.0}
    async with modelbox.Client(shared_server.url, cache_dir=str(tmp_path / "cache")) as client:
        for version, constant in answers.items():
            (tmp_path / "model.onnx").write_bytes(add_constant(constant))
            await client.publish(path, str(tmp_path / "model.onnx"))
            if version == 1:
                await client.promote(f"{path}@prod", 1)
        model = await client.load(f"{path}@prod", options=options)
        load = Load(model, answers)
        with anyio.fail_after(300):
            async with anyio.create_task_group() as tg:
                for seed in range(CALLERS):
                    tg.start_soon(load.call, seed)
                for swap in range(30):
                    version = 2 - swap % 2
                    await client.promote(f"{path}@prod", version, reason=f"swap {swap}")
                    while model.version != version:
                        assert not load.problems
                        await anyio.sleep(0.002)
                load.stop = True
        assert load.problems == []
        assert min(load.by_version[1], load.by_version[2]) > 0


@fault(57)
async def test_memory_stays_flat_over_200_swaps(shared_server: ServerProcess, tmp_path: Path) -> None:
    path = f"flat/{tmp_path.name[:60].lower().replace('[', '-').replace(']', '').strip('-')}"
    async with modelbox.Client(shared_server.url, cache_dir=str(tmp_path / "cache")) as client:
        for seed in (1, 2):
            (tmp_path / "model.onnx").write_bytes(perceptron(256, 8, seed=seed))  # 2 MB of weights
            await client.publish(path, str(tmp_path / "model.onnx"))
        await client.promote(f"{path}@prod", 1)
        model = await client.load(f"{path}@prod")
        x = np.ones((1, 256), np.float32)
        expected: dict[int, np.ndarray[Any, np.dtype[Any]]] = {}
        failed = mixed = done = 0
        stop = False
        freed = anyio.Event()
        finished = 0

        async def count_freed() -> None:
            nonlocal finished
            async for event in model.events():
                if isinstance(event, SessionFreed):
                    assert not event.forced
                    finished += 1
                    if finished >= SWAPS:
                        freed.set()

        async def call() -> None:
            nonlocal failed, mixed, done
            while not stop:
                try:
                    outputs = await model.predict({"x": x})
                except Exception:
                    failed += 1
                    continue
                known = expected.setdefault(outputs.version.version, outputs["y"].copy())
                mixed += not np.allclose(known, outputs["y"], atol=1e-5)
                done += 1
                await anyio.sleep(0.001)

        process = psutil.Process()
        sizes: list[int] = []
        with anyio.fail_after(300):
            async with anyio.create_task_group() as tg:
                tg.start_soon(count_freed)
                for _ in range(4):
                    tg.start_soon(call)
                await anyio.sleep(0.05)
                for swap in range(SWAPS):
                    version = 2 - swap % 2
                    await client.promote(f"{path}@prod", version)
                    while model.version != version:
                        await anyio.sleep(0.001)
                    if swap % 4 == 0:
                        gc.collect()
                        sizes.append(process.memory_info().rss)
                stop = True
                await freed.wait()
                gc.collect()
                # A single look may find two versions at once.
                grown = process.memory_info().rss - max(sizes[5 : len(sizes) // 5 + 1])
                await model.aclose()
        assert (failed, mixed) == (0, 0)
        assert done > SWAPS
        assert grown < FLAT_BYTES, f"{grown / 2**20:.1f} MiB grown from swap {SWAPS // 5} to {SWAPS}"


@fault(57)
async def test_a_lease_keeps_its_version_across_a_swap(shared_server: ServerProcess, tmp_path: Path) -> None:
    path = f"lease/{abs(hash(str(tmp_path)))}"
    async with modelbox.Client(shared_server.url, cache_dir=str(tmp_path / "cache")) as client:
        for constant in (1, 2):
            (tmp_path / "model.onnx").write_bytes(add_constant(constant))
            await client.publish(path, str(tmp_path / "model.onnx"))
        await client.promote(f"{path}@prod", 1)
        model = await client.load(f"{path}@prod")
        x = {"x": np.zeros((1, 4), np.float32)}
        async with anyio.create_task_group() as tg:
            swapped = anyio.Event()
            events = model.events()

            async def watch() -> None:
                async for event in events:
                    if isinstance(event, ReloadSucceeded) and event.version == 2:
                        swapped.set()
                        return

            tg.start_soon(watch)
            async with model.lease() as lease:
                await client.promote(f"{path}@prod", 2)
                with anyio.fail_after(60):
                    await swapped.wait()
                assert lease.version.version == 1
                assert float((await lease.predict(x))["y"][0, 0]) == 1.0
                assert float((await model.predict(x))["y"][0, 0]) == 2.0
