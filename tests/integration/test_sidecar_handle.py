"""One behaviour, two places where a model runs: the handle's promises hold in the process and through a sidecar."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

import modelbox
from modelbox import otel
from modelbox.errors import (
    ClientClosed,
    DeadlineExceeded,
    InputError,
    LeaseReleased,
    NotFoundError,
    PredictError,
    RefError,
    UsageError,
)
from modelbox.events import ModelEvent, ReloadFailed, ReloadStarted, ReloadSucceeded
from modelbox.model import ModelState
from tests.onnx_models import add_constant, perceptron, same_text, unknown_operator
from tests.server import ServerProcess
from tests.sidecar import SidecarProcess
from tests.unit.loader.inference import lookup

ONE = {"x": np.ones((1, 4), np.float32)}


@dataclass(frozen=True)
class Place:
    """Where models run: in this process (no socket) or in a sidecar."""

    server: ServerProcess
    socket: str
    directory: Path

    @asynccontextmanager
    async def client(self) -> AsyncIterator[modelbox.Client]:
        cache = self.directory / "cache"
        async with modelbox.Client(self.server.url, cache_dir=cache, sidecar=self.socket) as client:
            yield client

    async def publish(self, path: str, *models: bytes, alias: str = "prod") -> None:
        """Publishes versions 1, 2, …, and points the alias to the first."""
        async with modelbox.Client(self.server.url, cache_dir=self.directory / "cache") as client:
            for number, model in enumerate(models, 1):
                file = self.directory / "model.onnx"
                file.write_bytes(model)
                await client.publish(path, file, aliases=[alias] if number == 1 else [])

    async def promote(self, ref: str, version: int) -> None:
        async with modelbox.Client(self.server.url, cache_dir=self.directory / "cache") as client:
            await client.promote(ref, version)


@pytest.fixture(scope="module")
def sidecar(shared_server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SidecarProcess]:
    with SidecarProcess(tmp_path_factory.mktemp("sidecar"), shared_server.url, http="false", grpc="false") as process:
        yield process


@pytest.fixture(params=["in-process", "sidecar"])
def place(
    request: pytest.FixtureRequest, shared_server: ServerProcess, sidecar: SidecarProcess, tmp_path: Path
) -> Place:
    socket = sidecar.socket_url if request.param == "sidecar" else ""
    return Place(server=shared_server, socket=socket, directory=tmp_path)


@pytest.fixture
def path(request: pytest.FixtureRequest) -> str:
    """A model of the test's own."""
    name = "".join(ch if ch.isalnum() else "-" for ch in request.node.name.lower())
    return f"handle/{name[:60].strip('-')}"


async def test_says_what_it_is(place: Place, path: str) -> None:
    await place.publish(path, add_constant(1.0))
    async with place.client() as client:
        model = await client.load(f"{path}@prod")
        assert model.ref == f"{path}@prod"
        assert model.version == 1
        assert model.digest == model.info.digest == (await client.get_version(f"{path}@1")).digest
        assert [str(spec) for spec in model.signature.inputs] == ["x: float32[batch, 4]"]
        assert (model.state, model.stale, dict(model.metadata)) == (ModelState.ACTIVE, False, {})
        assert "version=1" in repr(model)


async def test_predicts(place: Place, path: str) -> None:
    await place.publish(path, add_constant(1.0))
    async with place.client() as client:
        model = await client.load(f"{path}@prod")
        outputs = await model.predict({"x": np.arange(8, dtype=np.float32).reshape(2, 4)})
        np.testing.assert_array_equal(outputs["y"], np.arange(1, 9, dtype=np.float32).reshape(2, 4))
        assert type(outputs) is modelbox.Prediction
        assert outputs.version == model.info
        outputs["y"][0, 0] = 5.0  # an answer belongs to its caller
        assert (await model.predict({"x": [[1, 2, 3, 4]]}))["y"].tolist() == [[2, 3, 4, 5]]
        turned = np.arange(8, dtype=np.float32).reshape(4, 2).T
        np.testing.assert_array_equal((await model.predict({"x": turned}))["y"], turned + 1)
        empty = await model.predict({"x": np.empty((0, 4), np.float32)})
        assert empty["y"].shape == (0, 4)


async def test_predicts_without_a_loop(place: Place, path: str) -> None:
    await place.publish(path, add_constant(1.0))
    async with place.client() as client:
        model = await client.load(f"{path}@prod")
        outputs = await anyio.to_thread.run_sync(model.predict_sync, ONE)
        assert outputs["y"].tolist() == [[2, 2, 2, 2]]
        assert outputs.version.version == 1


@pytest.mark.parametrize("columns", [4, 20_000, 300_000], ids=["small", "80 KB", "1.2 MB"])
async def test_many_callers_get_their_own_answers(place: Place, path: str, columns: int) -> None:
    await place.publish(path, add_constant(1.0, columns=columns))
    async with place.client() as client:
        model = await client.load(f"{path}@prod")
        wrong: list[int] = []

        async def call(number: int) -> None:
            for turn in range(6):
                value = number * 100.0 + turn
                outputs = await model.predict({"x": np.full((1 + turn % 3, columns), value, np.float32)})
                if outputs["y"].shape != (1 + turn % 3, columns) or not (outputs["y"] == value + 1).all():
                    wrong.append(number)

        async with anyio.create_task_group() as tasks:
            for number in range(24):
                tasks.start_soon(call, number)
        assert wrong == []


async def test_refuses_wrong_inputs(place: Place, path: str) -> None:
    await place.publish(path, add_constant(1.0))
    async with place.client() as client:
        model = await client.load(f"{path}@prod")
        with pytest.raises(InputError, match=r"expected float32\[batch, 4\], got float32\[1, 5\]"):
            await model.predict({"x": np.ones((1, 5), np.float32)})
        with pytest.raises(InputError, match="is missing"):
            await model.predict({})
        with pytest.raises(InputError, match="float64"):
            model.predict_sync({"x": np.ones((1, 4))})
        assert (await model.predict(ONE))["y"].tolist() == [[2, 2, 2, 2]]


async def test_a_model_that_fails_says_so(place: Place, path: str) -> None:
    await place.publish(path, lookup())
    async with place.client() as client:
        model = await client.load(f"{path}@prod")
        with pytest.raises(PredictError, match="the model failed"):
            await model.predict({"i": np.array([99])})
        with pytest.raises(PredictError, match="the model failed"):
            await anyio.to_thread.run_sync(model.predict_sync, {"i": np.array([99])})
        assert (await model.predict({"i": np.array([1])}))["y"].shape[0] == 1


async def test_text(place: Place, path: str) -> None:
    await place.publish(path, same_text())
    async with place.client() as client:
        model = await client.load(f"{path}@prod")
        outputs = await model.predict({"text": np.array(["a", "zwölf", ""], object)})
        assert outputs["same"].tolist() == ["a", "zwölf", ""]
        assert (await model.predict({"text": ["x"]}))["same"].tolist() == ["x"]


async def test_names_what_does_not_exist(place: Place, path: str) -> None:
    async with place.client() as client:
        with pytest.raises(NotFoundError):
            await client.load(f"{path}@prod")
        with pytest.raises(RefError):
            await client.load("no reference at all")
        await place.publish(path, add_constant(1.0))
        with pytest.raises(NotFoundError):
            await client.load(f"{path}@other")


async def test_follows_the_alias_and_tells_of_it(place: Place, path: str) -> None:
    await place.publish(path, add_constant(1.0), add_constant(2.0))
    async with place.client() as client:
        model = await client.load(f"{path}@prod")
        seen: list[ModelEvent] = []
        events = model.events()
        await place.promote(f"{path}@prod", 2)
        with anyio.fail_after(60):
            async for event in events:
                seen.append(event)
                if isinstance(event, ReloadSucceeded):
                    break
        assert any(isinstance(event, ReloadStarted) and event.version == 2 for event in seen)
        last = seen[-1]
        assert isinstance(last, ReloadSucceeded)
        assert (last.version, last.previous_version, last.ref) == (2, 1, f"{path}@prod")
        assert set(last.stage_s) >= {"fetch", "open", "warm"}
        # An event comes after the state that it tells of.
        assert model.version == 2
        outputs = await model.predict(ONE)
        assert (outputs.version.version, outputs["y"][0, 0]) == (2, 3.0)


async def test_a_refused_version_changes_nothing(place: Place, path: str) -> None:
    await place.publish(path, add_constant(1.0), unknown_operator())
    async with place.client() as client:
        model = await client.load(f"{path}@prod")
        events = model.events()
        await place.promote(f"{path}@prod", 2)
        with anyio.fail_after(60):
            async for event in events:
                if isinstance(event, ReloadFailed):
                    break
        assert (event.version, event.code, event.quarantined) == (2, "load.operator", True)  # type: ignore[attr-defined]
        assert (model.version, (await model.predict(ONE))["y"][0, 0]) == (1, 2.0)


async def test_sees_edits(place: Place, path: str) -> None:
    await place.publish(path, add_constant(1.0))
    async with place.client() as client:
        model = await client.load(f"{path}@prod")
        await client.update_version(f"{path}@1", metadata={"threshold": 0.5})
        with anyio.fail_after(60):
            while model.metadata.get("threshold") != 0.5:
                await anyio.sleep(0.01)
        assert (await model.predict(ONE)).version.metadata == {"threshold": 0.5}


async def test_a_lease_pins_its_version(place: Place, path: str) -> None:
    await place.publish(path, add_constant(1.0), add_constant(2.0))
    async with place.client() as client:
        model = await client.load(f"{path}@prod")
        async with model.lease() as lease:
            await place.promote(f"{path}@prod", 2)
            with anyio.fail_after(60):
                while model.version != 2:
                    await anyio.sleep(0.01)
            outputs = await lease.predict(ONE)
            assert (outputs.version.version, outputs["y"][0, 0], lease.version.version) == (1, 2.0, 1)
            assert (await anyio.to_thread.run_sync(lease.predict_sync, ONE)).version.version == 1
            assert (await model.predict(ONE)).version.version == 2
        with pytest.raises(LeaseReleased):
            await lease.predict(ONE)
        with model.lease() as second:
            assert second.predict_sync(ONE).version.version == 2
            with pytest.raises(UsageError):
                second.__enter__()


async def test_a_timeout_ends_the_wait(place: Place, path: str) -> None:
    await place.publish(path, perceptron(1024, 12))
    async with place.client() as client:
        model = await client.load(f"{path}@prod")
        x = {"x": np.ones((512, 1024), np.float32)}
        with pytest.raises(DeadlineExceeded):
            with anyio.fail_after(60):
                await model.predict(x, timeout=0.001)
        assert (await model.predict(x, timeout=60))["y"].shape == (512, 1024)


async def test_cancelled_calls_leave_nothing_behind(place: Place, path: str) -> None:
    await place.publish(path, perceptron(1024, 12))
    async with place.client() as client:
        model = await client.load(f"{path}@prod")
        x = {"x": np.ones((256, 1024), np.float32)}
        for _ in range(5):
            async with anyio.create_task_group() as tasks:
                for _ in range(8):
                    tasks.start_soon(model.predict, x)
                await anyio.sleep(0.005)
                tasks.cancel_scope.cancel()
        with anyio.fail_after(60):
            assert (await model.predict(x))["y"].shape == (256, 1024)


async def test_is_counted_here(place: Place, path: str) -> None:
    registry = CollectorRegistry()
    otel.configure_prometheus(registry=registry)
    await place.publish(path, add_constant(1.0))
    async with place.client() as client:
        model = await client.load(f"{path}@prod")
        for _ in range(3):
            await model.predict(ONE)
        model.predict_sync(ONE)
        with pytest.raises(InputError):
            await model.predict({})
        lines = [line for line in otel.render_prometheus(registry=registry).decode().splitlines() if path in line]
    calls = {line.split('outcome="')[1].split('"')[0]: line.split()[-1] for line in lines if "calls_total{" in line}
    assert calls == {"ok": "4.0", "invalid": "1.0"}
    assert any("modelbox_reloads_total" in line for line in lines) or place.socket
    # Without anything else to show, exporters would pass over the calls.
    assert [line.split()[-1] for line in lines if line.startswith("modelbox_stale{")] == ["0.0"]


async def test_handles_of_one_reference_are_independent(place: Place, path: str) -> None:
    await place.publish(path, add_constant(1.0))
    async with place.client() as client:
        one, other = await client.load(f"{path}@prod"), await client.load(f"{path}@prod")
        await one.aclose()
        assert one.state is ModelState.CLOSED
        assert (await other.predict(ONE)).version.version == 1
        await other.aclose()
        with pytest.raises(ClientClosed):
            await other.predict(ONE)
        again = await client.load(f"{path}@prod")
        assert (await again.predict(ONE)).version.version == 1


async def test_closes_with_its_client(place: Place, path: str) -> None:
    await place.publish(path, add_constant(1.0))
    async with place.client() as client:
        model = await client.load(f"{path}@prod")
        await model.predict(ONE)
    with pytest.raises(ClientClosed):
        await model.predict(ONE)
