"""The Open Inference Protocol over HTTP, with the clients that people use: tritonclient (sync, aio) and kserve."""

from __future__ import annotations

import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import anyio
import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
import tritonclient.utils.shared_memory as shm
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

import modelbox
from tests.onnx_models import OPSET, add_constant, add_element, loop_as_told
from tests.server import ServerProcess
from tests.sidecar import SidecarProcess

TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}
VALUES: dict[str, Any] = {
    "BOOL": np.array([True, False, True]),
    "UINT64": np.array([0, 1, (1 << 64) - 1], np.uint64),
    "INT64": np.array([-(1 << 63), 0, (1 << 63) - 1]),
    "FP16": np.array([1.5, -0.25, 0], np.float16),
    "FP32": np.array([1.5, -0.25, 1e-30], np.float32),
    "FP64": np.array([0.1, -0.25, 1e300]),
    "BYTES": np.array(["", "größer", "a\nb"], object),
}
X = np.array([[1, 2, 3, 4]], np.float32)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def echo_every_type() -> bytes:
    """One input and one output of each type, passed through."""
    graph = helper.make_graph(
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name in TYPES],
        "echo",
        [helper.make_tensor_value_info(name, kind, ["n"]) for name, kind in TYPES.items()],
        [helper.make_tensor_value_info(f"{name}_out", kind, ["n"]) for name, kind in TYPES.items()],
    )
    return bytes(helper.make_model(graph, opset_imports=[OPSET], ir_version=9).SerializeToString())


async def publish(url: str, directory: Path, models: Mapping[str, bytes]) -> None:
    async with modelbox.Client(url) as client:
        for path, model in models.items():
            file = directory / "model.onnx"
            file.write_bytes(model)
            await client.publish(path, str(file), aliases=["prod"])


@pytest.fixture(scope="module")
def sidecar(shared_server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SidecarProcess]:
    directory = tmp_path_factory.mktemp("sidecar")
    models = {
        "acme/tiny": add_constant(1),
        "acme/echo": echo_every_type(),
        "acme/spare": add_constant(5),
        "acme/half": add_element(1, TensorProto.BFLOAT16, also_float=True),
        "acme/loop": loop_as_told(),
    }
    anyio.run(publish, shared_server.url, directory, models)
    refs = ("acme/tiny@prod", "acme/echo@prod", "acme/half@prod", "acme/loop@prod")
    with SidecarProcess(directory, shared_server.url, *refs) as process:
        yield process


@pytest.fixture
def client(sidecar: SidecarProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(sidecar.http_address, concurrency=4) as client:
        yield client


def _input(name: str, array: Any, *, binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
    return tensor.set_data_from_numpy(array, binary_data=binary)


def shared_key() -> str:
    """A name of shared memory that nothing else on this machine has."""
    return f"/modelbox_test_{secrets.token_hex(8)}"


def _text(array: Any) -> list[Any]:
    return [item.decode() if isinstance(item, bytes) else item for item in array.tolist()]


def test_health_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("acme/tiny", "prod")
    assert client.is_model_ready("acme/tiny", "1")
    assert not client.is_model_ready("acme/missing")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert client.get_model_metadata("tiny") == {
        "name": "tiny",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}],
    }
    config = client.get_model_config("acme/tiny", "prod")
    assert config["input"][0]["data_type"] == "TYPE_FP32"


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("version", ["", "1", "prod"])
def test_infer(client: triton.InferenceServerClient, version: str, binary: bool) -> None:
    result = client.infer(
        "acme/tiny",
        [_input("x", X, binary=binary)],
        model_version=version,
        outputs=[triton.InferRequestedOutput("y", binary_data=binary)],
        request_id="call 7",
    )
    assert result.as_numpy("y").tolist() == (X + 1).tolist()
    assert result.get_response()["id"] == "call 7"
    assert result.get_response()["model_version"] == "1"


@pytest.mark.parametrize("binary_in", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("binary_out", [True, False, None], ids=["binary", "json", "default"])
def test_every_type(client: triton.InferenceServerClient, binary_in: bool, binary_out: bool | None) -> None:
    arrays = {name: VALUES[name] if name in VALUES else np.array([0, 1, 100], name.lower()) for name in TYPES}
    inputs = [_input(name, array, binary=binary_in or name == "FP16") for name, array in arrays.items()]
    outputs = None
    if binary_out is not None:
        outputs = [
            triton.InferRequestedOutput(f"{name}_out", binary_data=binary_out or name == "FP16") for name in arrays
        ]
    result = client.infer("echo", inputs, outputs=outputs)
    for name, array in arrays.items():
        back = result.as_numpy(f"{name}_out")
        assert _text(back) == array.tolist()
        assert back.dtype == array.dtype


def test_bfloat16(client: triton.InferenceServerClient) -> None:
    half = X.astype(ml_dtypes.bfloat16)
    x = triton.InferInput("x", X.shape, "BF16").set_data_from_numpy(half)
    result = client.infer("half", [x], outputs=[triton.InferRequestedOutput(name) for name in ("y", "wide")])
    assert result.get_output("y")["datatype"] == "BF16"
    assert result.as_numpy("y").astype(np.float32).tolist() == result.as_numpy("wide").tolist() == (X + 1).tolist()
    assert client.get_model_metadata("half")["inputs"] == [{"name": "x", "datatype": "BF16", "shape": [-1, 4]}]
    assert client.get_model_config("half")["input"][0]["data_type"] == "TYPE_BF16"
    with pytest.raises(InferenceServerException, match="binary_data") as caught:
        client.infer("half", [x], outputs=[triton.InferRequestedOutput("y", binary_data=False)])
    assert caught.value.status() == "400"
    with pytest.raises(InferenceServerException, match="expected bfloat16") as caught:
        client.infer("half", [_input("x", X)])
    assert caught.value.status() == "400"


def test_bfloat16_in_shared_memory(client: triton.InferenceServerClient) -> None:
    key = shared_key()
    region = shm.create_shared_memory_region("half", key, 16)
    try:
        half = np.array([[1, 2, 3, 4]], ml_dtypes.bfloat16)
        shm.set_shared_memory_region(region, [half.view(np.uint16)])
        client.register_system_shared_memory("half", key, 16)
        x = triton.InferInput("x", X.shape, "BF16")
        x.set_shared_memory("half", 8)
        y = triton.InferRequestedOutput("y")
        y.set_shared_memory("half", 8, offset=8)
        client.infer("half", [x], outputs=[y])
        got = shm.get_contents_as_numpy(region, np.uint16, [1, 4], 8).view(ml_dtypes.bfloat16)
        assert got.astype(np.float32).tolist() == [[2, 3, 4, 5]]
    finally:
        client.unregister_system_shared_memory()
        shm.destroy_shared_memory_region(region)


def test_a_call_without_end_hurts_its_caller_only(client: triton.InferenceServerClient) -> None:
    def ask(times: int, **kwargs: Any) -> Any:
        return client.infer("loop", [_input("x", X), _input("n", np.array([times]))], **kwargs).as_numpy("y").tolist()

    assert ask(2) == (X + 2).tolist()
    for _ in range(10):
        with pytest.raises(InferenceServerException) as caught:
            ask(10**15, timeout=700_000)
        assert caught.value.status() == "504"
        # Behind the other one, which has no end, these would wait until the client gives them up.
        assert ask(3) == (X + 3).tolist()
        assert client.infer("tiny", [_input("x", X)]).as_numpy("y").tolist() == (X + 1).tolist()


@pytest.mark.parametrize("sent", [None, "gzip", "deflate"])
@pytest.mark.parametrize("wanted", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_compression(client: triton.InferenceServerClient, sent: str | None, wanted: str | None, binary: bool) -> None:
    x = np.arange(40_000, dtype=np.float32).reshape(-1, 4)
    result = client.infer(
        "tiny",
        [_input("x", x, binary=binary)],
        outputs=[triton.InferRequestedOutput("y", binary_data=binary)],
        request_compression_algorithm=sent,
        response_compression_algorithm=wanted,
    )
    assert (result.as_numpy("y") == x + 1).all()


def test_errors_of_infer(client: triton.InferenceServerClient) -> None:
    def status(*inputs: triton.InferInput, model: str = "tiny", version: str = "", **more: Any) -> tuple[str, str]:
        with pytest.raises(InferenceServerException) as caught:
            client.infer(model, list(inputs), version, **more)
        return caught.value.status(), caught.value.message()

    x = _input("x", X)
    assert status(x, model="missing")[0] == "404"
    assert status(x, version="7")[0] == "404"
    for wrong in (
        status(_input("z", X)),
        status(_input("x", X.astype(np.float64))),
        status(_input("x", X[0])),
        status(x, outputs=[triton.InferRequestedOutput("z")]),
        status(x, outputs=[triton.InferRequestedOutput("y", class_count=2)]),
        status(x, sequence_id=5),
    ):
        assert wrong[0] == "400", wrong
        assert wrong[1]
    assert client.infer("tiny", [x]).as_numpy("y").tolist() == (X + 1).tolist()


def test_repository(client: triton.InferenceServerClient) -> None:
    names = {entry["name"]: entry["state"] for entry in client.get_model_repository_index()}
    assert names["acme/tiny"] == "READY"
    client.load_model("acme/spare@prod")
    assert client.infer("spare", [_input("x", X)]).as_numpy("y").tolist() == (X + 5).tolist()
    client.unload_model("acme/spare")
    assert not client.is_model_ready("spare")
    with pytest.raises(InferenceServerException) as caught:
        client.load_model("acme/never@prod")
    assert caught.value.status() == "404"
    with pytest.raises(InferenceServerException) as caught:
        client.load_model("tiny", config="{}")
    assert caught.value.status() == "400"


def test_statistics(client: triton.InferenceServerClient) -> None:
    def inferences() -> int:
        (stats,) = client.get_inference_statistics("acme/tiny")["model_stats"]
        return int(stats["inference_count"])

    before = inferences()
    client.infer("tiny", [_input("x", np.repeat(X, 3, 0))])
    assert inferences() == before + 3
    assert {stats["name"] for stats in client.get_inference_statistics()["model_stats"]} >= {"acme/tiny", "acme/echo"}


def test_extensions_that_are_not_there(client: triton.InferenceServerClient) -> None:
    for call in (client.get_trace_settings, client.get_log_settings, client.get_cuda_shared_memory_status):
        with pytest.raises(InferenceServerException) as caught:
            call()
        assert caught.value.status() == "501"


def test_shared_memory(client: triton.InferenceServerClient) -> None:
    size = X.nbytes
    key = shared_key()
    handle = shm.create_shared_memory_region("both", key, 2 * size)
    try:
        shm.set_shared_memory_region(handle, [X])
        client.register_system_shared_memory("both", key, 2 * size)
        assert client.get_system_shared_memory_status() == [
            {"name": "both", "key": key, "offset": 0, "byte_size": 2 * size}
        ]
        x = triton.InferInput("x", X.shape, "FP32")
        x.set_shared_memory("both", size)
        y = triton.InferRequestedOutput("y")
        y.set_shared_memory("both", size, offset=size)
        result = client.infer("tiny", [x], outputs=[y])
        assert result.get_output("y")["shape"] == [1, 4]
        assert shm.get_contents_as_numpy(handle, np.float32, [2, 4]).tolist() == [X[0].tolist(), (X[0] + 1).tolist()]
        y.set_shared_memory("both", size - 1, offset=size)
        with pytest.raises(InferenceServerException, match="has 16 bytes") as caught:
            client.infer("tiny", [x], outputs=[y])
        assert caught.value.status() == "400"
        x.set_shared_memory("other", size)
        with pytest.raises(InferenceServerException) as caught:
            client.infer("tiny", [x])
        assert caught.value.status() == "404"
        client.unregister_system_shared_memory("both")
        assert client.get_system_shared_memory_status() == []
    finally:
        client.unregister_system_shared_memory()
        shm.destroy_shared_memory_region(handle)


def test_shared_memory_that_shrinks_hurts_its_owner_only(client: triton.InferenceServerClient) -> None:
    key = shared_key()
    path = Path(f"/dev/shm{key}")
    path.write_bytes(X.tobytes())
    try:
        client.register_system_shared_memory("shrinks", key, X.nbytes)
        x = triton.InferInput("x", X.shape, "FP32")
        x.set_shared_memory("shrinks", X.nbytes)
        assert client.infer("tiny", [x]).as_numpy("y").tolist() == (X + 1).tolist()
        with path.open("r+b") as file:
            file.truncate(0)
        with pytest.raises(InferenceServerException, match="smaller") as caught:
            client.infer("tiny", [x])
        assert caught.value.status() == "400"
        assert client.infer("tiny", [_input("x", X)]).as_numpy("y").tolist() == (X + 1).tolist()
    finally:
        client.unregister_system_shared_memory("shrinks")
        path.unlink()


def test_threads_and_async_infer(client: triton.InferenceServerClient) -> None:
    pending = [client.async_infer("tiny", [_input("x", X + n)]) for n in range(40)]
    for n, request in enumerate(pending):
        assert request.get_result().as_numpy("y").tolist() == (X + n + 1).tolist()


async def test_aio(sidecar: SidecarProcess) -> None:
    async with triton_aio.InferenceServerClient(sidecar.http_address) as client:
        assert await client.is_server_ready()
        for binary in (True, False):
            result = await client.infer(
                "tiny",
                [_input("x", X, binary=binary)],
                outputs=[triton.InferRequestedOutput("y", binary_data=binary)],
            )
            assert result.as_numpy("y").tolist() == (X + 1).tolist()
        large = np.zeros((40_000, 4), np.float32)
        assert (await client.infer("tiny", [_input("x", large)])).as_numpy("y").sum() == large.size
        with pytest.raises(InferenceServerException):
            await client.infer("missing", [_input("x", X)])


_KSERVE = """
import asyncio, sys
import httpx
import kserve
import numpy as np
from kserve import InferenceRESTClient, InferInput, RESTConfig
from kserve.protocol.infer_type import InferRequest

X = np.array(eval(sys.argv[2]), np.float32)

async def main(url):
    async with InferenceRESTClient(RESTConfig(protocol="v2", retries=0)) as client:
        assert await client.is_server_live(url) is True
        assert await client.is_server_ready(url) is True
        assert await client.is_model_ready(url, "tiny")
        assert not await client.is_model_ready(url, "missing")
        for binary in (True, False):
            tensor = InferInput("x", list(X.shape), "FP32")
            tensor.set_data_from_numpy(X, binary_data=binary)
            request = InferRequest(
                model_name="tiny", infer_inputs=[tensor], request_id="k", parameters={"binary_data_output": binary}
            )
            response = await client.infer(url, request, model_name="tiny")
            assert isinstance(response, kserve.InferResponse)
            assert response.id == "k"
            assert response.outputs[0].as_numpy().tolist() == (X + 1).tolist()
        try:
            await client.infer(url, {"inputs": []}, model_name="missing")
        except httpx.HTTPStatusError as exc:
            assert exc.response.status_code == 404
        else:
            raise AssertionError("an unknown model was answered")

asyncio.run(main(sys.argv[1]))
print("fine")
"""


def test_kserve(sidecar: SidecarProcess) -> None:
    # In a process of its own: its messages have the names of tritonclient's.
    done = subprocess.run(
        [sys.executable, "-c", _KSERVE, sidecar.http_url, repr(X.tolist())],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.stdout.strip().endswith("fine"), done.stderr


async def test_swap_under_load(shared_server: ServerProcess, sidecar: SidecarProcess, tmp_path: Path) -> None:
    """No call fails, and none mixes versions."""
    done = threading.Event()
    seen: list[tuple[str, float]] = []

    def call() -> None:
        with triton.InferenceServerClient(sidecar.http_address) as client:
            while not done.is_set():
                result = client.infer("acme/swapped", [_input("x", X)])
                seen.append((result.get_response()["model_version"], float(result.as_numpy("y")[0, 0])))

    await publish(shared_server.url, tmp_path, {"acme/swapped": add_constant(10)})
    await publish(shared_server.url, tmp_path, {"acme/swapped": add_constant(20)})
    async with (
        modelbox.Client(shared_server.url) as box,
        triton_aio.InferenceServerClient(sidecar.http_address) as client,
        anyio.create_task_group() as tasks,
    ):
        await client.load_model("acme/swapped@prod")
        for _ in range(4):
            tasks.start_soon(anyio.to_thread.run_sync, call)
        try:
            for version in (1, 2, 1):
                await box.promote("acme/swapped@prod", version)
                with anyio.fail_after(60):
                    while (await client.get_model_metadata("acme/swapped"))["versions"] != [str(version)]:
                        await anyio.sleep(0.02)
                    before = len(seen)
                    while not any(name == str(version) for name, _ in seen[before:]):
                        await anyio.sleep(0.02)
        finally:
            done.set()
    assert set(seen) == {("1", 11.0), ("2", 21.0)}
