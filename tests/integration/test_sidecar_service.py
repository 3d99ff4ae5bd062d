"""The sidecar's service on a real server: names and versions, queue and deadlines, loading and unloading."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image

import modelbox
from modelbox.errors import DeadlineExceeded, InputError, LoadError, NotFoundError, QueueFull, RefError, ServerBusy
from modelbox.loader.runner import Mode, RunnerOptions
from modelbox.loader.settings import LoadOptions
from modelbox.refs import ModelRef
from modelbox.sidecar import service as service_module
from modelbox.sidecar.model_settings import ModelServing
from modelbox.sidecar.served import ServingState
from modelbox.sidecar.service import InferenceService, InferRequest, InferResponse
from tests.onnx_models import OPSET, add_constant, perceptron, unknown_operator
from tests.server import ServerProcess


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
async def registry(shared_server: ServerProcess, tmp_path: Path) -> AsyncIterator[modelbox.Client]:
    async with modelbox.Client(shared_server.url, cache_dir=tmp_path / "publisher") as client:
        yield client


@pytest.fixture
def publish(registry: modelbox.Client, tmp_path: Path) -> Any:
    async def publish(path: str, model: bytes, *aliases: str, **kwargs: Any) -> int:
        file = tmp_path / "model.onnx"
        file.write_bytes(model)
        return (await registry.publish(path, file, aliases=list(aliases), **kwargs)).item.version

    return publish


@pytest.fixture
def serving(shared_server: ServerProcess, tmp_path: Path) -> Any:
    @asynccontextmanager
    async def serving(*refs: str, wait: bool = True, **kwargs: Any) -> AsyncIterator[InferenceService]:
        async with modelbox.Client(shared_server.url, cache_dir=tmp_path / "cache") as client:
            service = InferenceService(client, [ModelRef.parse(ref) for ref in refs], **kwargs)
            async with service:
                if wait:
                    await until_ready(service)
                yield service

    return serving


Serving = Any


async def until_ready(service: InferenceService) -> None:
    ready = anyio.Event()
    service.health.on_change(lambda now: ready.set() if now else None)
    if not service.ready():
        with anyio.fail_after(60):
            await ready.wait()


def request(model: str, value: float = 0.0, *, rows: int = 1, columns: int = 4, **kwargs: Any) -> InferRequest:
    return InferRequest(model=model, inputs={"x": np.full((rows, columns), value, np.float32)}, **kwargs)


def answer(response: InferResponse) -> float:
    return float(response.outputs["y"].flat[0])


async def eventually(check: Any) -> None:
    with anyio.fail_after(60):
        while not check():
            await anyio.sleep(0.001)


async def test_a_model_answers_by_every_name_and_version_it_has(serving: Serving, publish: Any) -> None:
    await publish("names/one", add_constant(1.0), "prod")
    await publish("names/one", add_constant(2.0), "staging")
    async with serving("names/one@prod", "names/one@staging") as service:
        for name in ("names/one", "one"):
            for version, value in (("", 1), ("prod", 1), ("1", 1), ("staging", 2), ("2", 2)):
                response = await service.infer(request(name, version=version, id="k"))
                assert (answer(response), response.version, response.id, response.model) == (value, value, "k", name)
        digest = (await service.infer(request("one", version="2"))).digest
        by_digest = await service.infer(request("one", version=digest))
        assert by_digest.version == 2
        for version in ("3", "latest", "x", "sha256:0"):
            with pytest.raises(NotFoundError, match=r"prod \(1\), staging \(2\)"):
                await service.infer(request("one", version=version))
        with pytest.raises(NotFoundError, match="names/one"):
            await service.infer(request("two"))
        assert service.metadata("one").versions == ("1", "2")
        assert service.metadata("one", "2").signature.inputs[0].name == "x"
        assert service.model_ready("one", "2")
        assert not service.model_ready("one", "3")
        assert not service.model_ready("nothing")


async def test_a_bare_name_that_two_namespaces_have_means_neither(serving: Serving, publish: Any) -> None:
    await publish("left/same", add_constant(1.0))
    await publish("right/same", add_constant(2.0))
    async with serving("left/same", "right/same") as service:
        assert answer(await service.infer(request("right/same"))) == 2
        with pytest.raises(NotFoundError, match="left/same, right/same"):
            await service.infer(request("same"))
        await service.unload("left/same")
        assert answer(await service.infer(request("same"))) == 2


async def test_wrong_inputs_and_outputs_are_named(serving: Serving, publish: Any) -> None:
    await publish("wrong/m", add_constant(1.0))
    async with serving("wrong/m") as service:
        with pytest.raises(InputError, match="'z' is not an output"):
            await service.infer(request("m", outputs=["y", "z"]))
        with pytest.raises(InputError, match="x"):
            await service.infer(request("m", columns=5))
        response = await service.infer(request("m", outputs=["y"]))
        assert list(response.outputs) == ["y"]


async def test_a_swap_under_load_fails_no_call_and_mixes_no_versions(
    serving: Serving, publish: Any, registry: modelbox.Client
) -> None:
    await publish("swap/m", add_constant(1.0), "prod")
    await publish("swap/m", add_constant(2.0))
    async with serving("swap/m@prod") as service:
        seen: list[int] = []
        stop = False

        async def call() -> None:
            while not stop:
                response = await service.infer(request("swap/m", rows=3))
                assert np.all(response.outputs["y"] == response.version)
                seen.append(response.version)
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(call)
            for version in (2, 1, 2):
                await registry.promote("swap/m@prod", version)
                await eventually(lambda version=version: seen[-1:] == [version])
            stop = True
        stats = {entry["version"]: entry for entry in service.statistics("swap/m")}
        assert set(stats) == {"1", "2"}
        for version in (1, 2):
            entry = stats[str(version)]
            assert entry["inference_stats"]["success"]["count"] == seen.count(version)
            assert entry["inference_stats"]["fail"]["count"] == 0
            assert entry["inference_count"] == 3 * seen.count(version)
            assert sum(b["compute_infer"]["count"] for b in entry["batch_stats"]) == entry["execution_count"]
        assert service.statistics("swap/m", "2")[0]["version"] == "2"


async def test_readiness_waits_for_every_configured_model(serving: Serving, publish: Any) -> None:
    await publish("patience/here", add_constant(1.0))
    async with serving("patience/here", "patience/later", wait=False) as service:
        await eventually(lambda: service.find("here").live is not None)
        await eventually(lambda: service.find("later").state is ServingState.UNAVAILABLE)
        assert not service.ready()
        assert service.live()
        assert "patience/later" in service.health.reason
        with pytest.raises(ServerBusy, match="does not answer yet") as caught:
            await service.infer(request("later"))
        assert caught.value.fields["retry_after_s"] == 1.0
        assert answer(await service.infer(request("here"))) == 1
        entry = next(entry for entry in service.index() if entry.name == "patience/later")
        assert (entry.version, entry.state) == ("", ServingState.UNAVAILABLE)
        assert "patience/later" in entry.reason
        await publish("patience/later", add_constant(5.0))
        await until_ready(service)
        assert answer(await service.infer(request("later"))) == 5


async def test_loading_by_name_does_not_wait_for_the_pause(serving: Serving, publish: Any) -> None:
    async with serving("hurry/m", wait=False) as service:
        await eventually(lambda: service.find("m").state is ServingState.UNAVAILABLE)
        with pytest.raises(NotFoundError):
            await service.load("hurry/m")
        assert service.find("m").configured
        await publish("hurry/m", add_constant(3.0))
        with anyio.fail_after(60):
            await service.load("m")
        assert service.ready()
        assert answer(await service.infer(request("m"))) == 3


async def test_what_is_not_configured_can_be_loaded_and_unloaded(serving: Serving, publish: Any) -> None:
    await publish("extra/m", add_constant(1.0), "prod")
    await publish("extra/m", add_constant(2.0))
    await publish("extra/broken", unknown_operator())
    async with serving() as service:
        assert service.ready()
        await service.load("extra/m@1")
        await service.load("extra/m@prod")
        await service.load("extra/m")
        assert [str(served.ref) for served in service.models()] == ["extra/m@1", "extra/m@prod"]
        await service.load("extra/m@2")
        assert answer(await service.infer(request("m", version="2"))) == 2
        for name, error in (("extra/none", NotFoundError), ("extra/broken", LoadError), ("nonsense", RefError)):
            with pytest.raises(error):
                await service.load(name)
        assert len(service.models()) == 3
        await service.unload("extra/m@2")
        with pytest.raises(NotFoundError):
            await service.infer(request("m", version="2"))
        await service.unload("extra/m")
        with pytest.raises(NotFoundError, match="nothing is served"):
            await service.infer(request("m"))
        with pytest.raises(NotFoundError):
            await service.unload("extra/m")
        assert {(entry.state, entry.reason) for entry in service.index()} == {(ServingState.UNAVAILABLE, "unloaded")}
        assert service.index(ready_only=True) == []
        await service.load("extra/m@prod")
        assert answer(await service.infer(request("m"))) == 1
        assert service.ready()


async def test_an_unloaded_model_that_is_configured_ends_readiness(serving: Serving, publish: Any) -> None:
    await publish("gone/m", add_constant(1.0))
    async with serving("gone/m") as service:
        await service.unload("m")
        assert not service.ready()
        await service.load("m")
        assert service.ready()
        assert service.find("m").configured


async def test_unloading_lets_accepted_calls_end(serving: Serving, publish: Any) -> None:
    await publish("end/slow", perceptron(512, 8))
    async with serving("end/slow") as service:
        results: list[InferResponse] = []

        async def call() -> None:
            results.append(await service.infer(request("slow", rows=2000, columns=512)))

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(call)
            gate = service.models()[0].gate
            # Some machines let fewer in at once, or have answered one already.
            await eventually(lambda: gate.running + gate.waiting + len(results) >= 3)
            await service.unload("slow")
            assert len(results) == 3


async def test_a_full_queue_refuses_and_urgent_calls_go_first(
    serving: Serving, publish: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "_TUNE_S", 3600)  # nobody but the test sets the queue's width
    await publish("full/slow", perceptron(512, 8))
    async with serving("full/slow", max_queue=6) as service:
        served = service.find("slow")
        done: list[str] = []

        async def call(name: str, priority: int = 0) -> None:
            await service.infer(request("slow", rows=700, columns=512, priority=priority))
            done.append(name)

        async with anyio.create_task_group() as tasks:
            await service.infer(request("slow", rows=700, columns=512))
            served.gate.width = 1
            await served.gate.enter()  # the only place is taken until all the others wait
            for i in range(5):
                tasks.start_soon(call, f"ordinary {i}")
            tasks.start_soon(call, "urgent", 1)
            await eventually(lambda: served.gate.waiting == 6)
            with pytest.raises(ServerBusy) as caught:
                await service.infer(request("slow", columns=512))
            assert 0 < float(str(caught.value.fields["retry_after_s"])) <= 30
            served.gate.leave()
        assert len(done) == 6
        assert done[0] == "urgent"
        assert served.gate.refused == 1


async def test_a_deadline_ends_waiting_and_leaves_the_queue_clean(serving: Serving, publish: Any) -> None:
    await publish("late/slow", perceptron(512, 8))
    async with serving("late/slow", default_timeout_s=60.0) as service:
        served = service.find("slow")
        async with anyio.create_task_group() as tasks:
            for _ in range(served.gate.width + 3):
                tasks.start_soon(service.infer, request("slow", rows=1000, columns=512))
            await eventually(lambda: served.gate.running > 1)
            with anyio.fail_after(50), pytest.raises(DeadlineExceeded):
                await service.infer(request("slow", columns=512, rows=1000, timeout_s=0.05))
            with pytest.raises(DeadlineExceeded):
                await service.infer(request("slow", columns=512, timeout_s=0))
            tasks.cancel_scope.cancel()
        assert (served.gate.running, served.gate.waiting) == (0, 0)
        assert (await service.infer(request("slow", columns=512))).version == 1


async def test_answers_are_remembered_for_one_version_only(
    serving: Serving, publish: Any, registry: modelbox.Client
) -> None:
    await publish("again/m", add_constant(1.0), "prod")
    await publish("again/m", add_constant(2.0))
    async with serving("again/m@prod", cache_bytes=1 << 20) as service:
        first = await service.infer(request("m", 5.0))
        again = await service.infer(request("m", 5.0))
        other = await service.infer(request("m", 6.0))
        assert [answer(r) for r in (first, again, other)] == [6, 6, 7]
        assert [r.from_cache for r in (first, again, other)] == [False, True, False]
        stats = service.statistics("m")[0]
        assert stats["inference_stats"]["cache_hit"]["count"] == 1
        assert stats["inference_stats"]["cache_miss"]["count"] == 2
        assert (stats["inference_count"], stats["inference_stats"]["success"]["count"]) == (2, 3)
        await registry.promote("again/m@prod", 2)
        await eventually(lambda: service.find("m").version_text == "2")
        newer = await service.infer(request("m", 5.0))
        assert (answer(newer), newer.version, newer.from_cache) == (7, 2, False)


def brightness() -> bytes:
    """``y`` = mean of float32[n, 3, 2, 2] over all but the first dimension."""
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["pixels"], ["y"], axes=[1, 2, 3], keepdims=0)],
        "brightness",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )
    return helper.make_model(graph, opset_imports=[OPSET], ir_version=9).SerializeToString()


async def test_images_may_be_sent_where_the_metadata_says_so(serving: Serving, publish: Any) -> None:
    await publish("pixels/m", brightness(), metadata={"image": {"input": "pixels", "scale": 0.5}})
    await publish("pixels/plain", brightness())
    images = np.empty(2, object)
    for i, level in enumerate((100, 200)):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (level, level, level)).save(file, "PNG")
        images[i] = file.getvalue()
    async with serving("pixels/m", "pixels/plain") as service:
        response = await service.infer(InferRequest(model="pixels/m", inputs={"pixels": images}))
        assert response.outputs["y"].tolist() == [50, 100]
        tensor = np.full((1, 3, 2, 2), 3, np.float32)
        assert (await service.infer(InferRequest(model="pixels/m", inputs={"pixels": tensor}))).outputs["y"] == [3]
        with pytest.raises(InputError, match="expected"):
            await service.infer(InferRequest(model="pixels/plain", inputs={"pixels": images}))
        images[0] = b"nothing"
        with pytest.raises(InputError, match="neither PNG nor JPEG"):
            await service.infer(InferRequest(model="pixels/m", inputs={"pixels": images}))


async def test_the_configuration_is_that_of_the_model(serving: Serving, publish: Any) -> None:
    await publish("shape/m", add_constant(1.0))
    async with serving("shape/m") as service:
        config = service.config("m")
        assert config["name"] == "m"
        assert config["max_batch_size"] == 64
        assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}]
        assert config["dynamic_batching"]["default_queue_policy"]["max_queue_size"] == 1000
        assert config["parameters"]["modelbox_ref"] == {"string_value": "shape/m@latest"}


async def test_draining_ends_readiness_but_no_call(serving: Serving, publish: Any) -> None:
    await publish("drain/m", add_constant(1.0))
    async with serving("drain/m") as service:
        service.drain()
        assert not service.ready()
        assert service.health.reason == "shutting down"
        assert answer(await service.infer(request("m"))) == 1
        with pytest.raises(ServerBusy):
            await service.load("drain/m@1")


async def test_each_model_is_served_as_is_set_for_it(serving: Serving, publish: Any) -> None:
    await publish("apart/fast", add_constant(1.0), "prod")
    await publish("apart/slow", perceptron(512, 40), "prod")

    def set_for(ref: ModelRef) -> ModelServing:
        if ref.model == "fast":
            return ModelServing(caches=False, priority=3)
        runner = RunnerOptions(mode=Mode.POOL, threads=1, max_batch=2)
        options = LoadOptions(runner=runner, batching=False)
        return ModelServing(options=options, max_queue=1, default_timeout_s=0.001, priority=20)

    async with serving("apart/fast@prod", "apart/slow@prod", serving=set_for, cache_bytes=1 << 20) as service:
        fast, slow = service.config("fast"), service.config("slow")
        assert (fast["max_batch_size"], slow["max_batch_size"]) == (64, 0)
        assert (fast["response_cache"], slow["response_cache"]) == ({"enable": False}, {"enable": True})
        assert fast["dynamic_batching"]["default_priority_level"] == 3
        parameters = {key: value["string_value"] for key, value in slow["parameters"].items()}
        assert (
            parameters.items()
            >= {
                "mode": "pool",
                "threads": "1",
                "max_queue": "1",
                "default_timeout_s": "0.001",
                "priority": "20",
            }.items()
        )
        assert (await service.infer(request("fast"))).from_cache is False
        assert (await service.infer(request("fast"))).from_cache is False
        with pytest.raises(DeadlineExceeded):
            await service.infer(request("slow", rows=64, columns=512))
        await service.infer(request("slow", columns=512, timeout_s=100))
        assert (await service.infer(request("slow", columns=512, timeout_s=100))).from_cache
        await eventually(lambda: not service.find("slow").gate.running)
        busy: list[type[BaseException] | None] = []

        async def ask(value: int) -> None:
            try:
                await service.infer(request("slow", value, rows=64, columns=512, timeout_s=100))
                busy.append(None)
            except QueueFull as exc:
                busy.append(type(exc))

        async with anyio.create_task_group() as tasks:
            for value in range(10):
                tasks.start_soon(ask, value)
        # Two are inside, as one thread has it, and one waits.
        assert sorted(map(bool, busy)) == [False] * 3 + [True] * 7
