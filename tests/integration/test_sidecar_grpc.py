"""The Open Inference Protocol over gRPC: a real sidecar, and the clients that people use."""

from __future__ import annotations

import contextlib
import queue
import re
import secrets
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import grpc
import ml_dtypes
import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
import tritonclient.utils.shared_memory as shm
from grpclib.client import Channel
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from onnx import TensorProto, helper
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

import modelbox
from modelbox._proto import inference as pb
from modelbox.loader.pool import available_cores
from tests.onnx_models import OPSET, add_constant, add_element, perceptron
from tests.server import ServerProcess
from tests.sidecar import SidecarProcess

EVERY_TYPE = {
    "bool": TensorProto.BOOL,
    "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16,
    "uint32": TensorProto.UINT32,
    "uint64": TensorProto.UINT64,
    "int8": TensorProto.INT8,
    "int16": TensorProto.INT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "string": TensorProto.STRING,
}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def echo_every_type() -> bytes:
    """One input and one output of each type, passed through."""
    graph = helper.make_graph(
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name in EVERY_TYPE],
        "echo",
        [helper.make_tensor_value_info(name, kind, ["n"]) for name, kind in EVERY_TYPE.items()],
        [helper.make_tensor_value_info(f"{name}_out", kind, ["n"]) for name, kind in EVERY_TYPE.items()],
    )
    return bytes(onnx.helper.make_model(graph, opset_imports=[OPSET], ir_version=9).SerializeToString())


async def publish(url: str, directory: Path, path: str, model: bytes, *, promote: str = "prod") -> None:
    file = directory / "model.onnx"
    file.write_bytes(model)
    async with modelbox.Client(url) as client:
        created = await client.publish(path, str(file))
        if promote:
            await client.promote(f"{path}@{promote}", created.item.version)


@pytest.fixture(scope="module")
def sidecar(shared_server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SidecarProcess]:
    directory = tmp_path_factory.mktemp("sidecar")

    async def prepare() -> None:
        await publish(shared_server.url, directory, "acme/tiny", add_constant(1.0))
        await publish(shared_server.url, directory, "acme/echo", echo_every_type())
        await publish(shared_server.url, directory, "acme/wide", add_constant(1.0, columns=160_000))
        await publish(shared_server.url, directory, "acme/half", add_element(1.0, TensorProto.BFLOAT16))

    anyio.run(prepare)
    models = ("acme/tiny@prod", "acme/echo@prod", "acme/wide@prod", "acme/half@prod")
    with SidecarProcess(directory, shared_server.url, *models, max_request_mb=8) as process:
        yield process


@pytest.fixture
def client(sidecar: SidecarProcess) -> Iterator[Any]:
    with contextlib.closing(triton.InferenceServerClient(sidecar.grpc_address)) as made:
        yield made


def tensor(array: np.ndarray[Any, Any], name: str = "x") -> Any:
    made = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array)
    return made


X = np.arange(8, dtype=np.float32).reshape(2, 4)


# -- tritonclient


def test_tritonclient_asks_about_server_and_models(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("acme/tiny")
    assert client.is_model_ready("tiny", "prod")
    assert client.is_model_ready("acme/tiny", "1")
    assert not client.is_model_ready("acme/tiny", "7")
    assert not client.is_model_ready("nobody/nothing")

    about = client.get_server_metadata()
    assert about.name == "modelbox"
    assert {"binary_tensor_data", "statistics", "model_repository", "system_shared_memory"} <= set(about.extensions)
    metadata = client.get_model_metadata("acme/tiny")
    assert (metadata.name, list(metadata.versions), metadata.platform) == ("acme/tiny", ["1"], "onnxruntime_onnx")
    [given], [taken] = metadata.inputs, metadata.outputs
    assert (given.name, given.datatype, list(given.shape)) == ("x", "FP32", [-1, 4])
    assert (taken.name, taken.datatype, list(taken.shape)) == ("y", "FP32", [-1, 4])
    types = {spec.name: spec.datatype for spec in client.get_model_metadata("acme/echo").inputs}
    assert types["string"] == "BYTES"
    assert types["float16"] == "FP16"

    config = client.get_model_config("acme/tiny").config
    assert config.name == "acme/tiny"
    assert config.input[0].name == "x"
    assert config.input[0].data_type == 11


def test_tritonclient_infers(client: Any) -> None:
    result = client.infer("acme/tiny", [tensor(X)], request_id="seven")
    np.testing.assert_array_equal(result.as_numpy("y"), X + 1)
    answer = result.get_response()
    assert (answer.model_name, answer.model_version, answer.id) == ("acme/tiny", "1", "seven")
    assert [output.name for output in answer.outputs] == ["y"]

    named = client.infer("tiny", [tensor(X)], model_version="prod", outputs=[triton.InferRequestedOutput("y")])
    np.testing.assert_array_equal(named.as_numpy("y"), X + 1)
    assert named.get_response().model_name == "tiny"


def test_every_type_goes_there_and_back(client: Any) -> None:
    values: dict[str, np.ndarray[Any, Any]] = {
        name: np.array([0, 1, 1], name) for name in EVERY_TYPE if name not in ("string", "float32")
    }
    values["float32"] = np.array([np.nan, np.inf, -0.0], np.float32)
    values["string"] = np.array(["", "grün", "x" * 1000], object)
    result = client.infer("acme/echo", [tensor(array, name) for name, array in values.items()])
    for name, array in values.items():
        back = result.as_numpy(f"{name}_out")
        if name == "string":
            assert [item.decode() for item in back] == array.tolist()
        else:
            assert back.dtype == array.dtype
            np.testing.assert_array_equal(back, array)


def test_bfloat16_travels_raw(sidecar: SidecarProcess, client: Any) -> None:
    x = triton.InferInput("x", list(X.shape), "BF16")
    x.set_data_from_numpy(X.astype(ml_dtypes.bfloat16))
    result = client.infer("acme/half", [x])
    assert result.get_output("y").datatype == "BF16"
    np.testing.assert_array_equal(result.as_numpy("y").astype(np.float32), X + 1)
    with grpc.insecure_channel(sidecar.grpc_address) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            service_pb2.ModelInferRequest.SerializeToString,
            service_pb2.ModelInferResponse.FromString,
        )
        typed = service_pb2.ModelInferRequest(model_name="acme/half")
        typed.inputs.add(name="x", datatype="BF16", shape=[1, 4]).contents.fp32_contents.extend([1, 2, 3, 4])
        with pytest.raises(grpc.RpcError) as caught:
            infer(typed, timeout=60)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "raw_input_contents" in str(caught.value.details())
        typed.inputs[0].datatype = "FP8"
        with pytest.raises(grpc.RpcError) as caught:
            infer(typed, timeout=60)
        assert "'FP8' is not a datatype" in str(caught.value.details())


def test_large_tensors_pass(client: Any) -> None:
    wide = np.random.default_rng(1).standard_normal((10, 160_000), dtype=np.float32)
    np.testing.assert_array_equal(client.infer("acme/wide", [tensor(wide)]).as_numpy("y"), wide + 1)


def test_typed_contents_are_answered_in_kind(sidecar: SidecarProcess) -> None:
    with grpc.insecure_channel(sidecar.grpc_address) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )
        request = service_pb2.ModelInferRequest(model_name="acme/tiny")
        request.inputs.add(name="x", datatype="FP32", shape=[2, 4]).contents.fp32_contents.extend(X.ravel().tolist())
        answer = infer(request)
    assert list(answer.outputs[0].contents.fp32_contents) == (X + 1).ravel().tolist()
    assert not answer.raw_output_contents


@pytest.mark.parametrize(
    ("change", "status", "text"),
    [
        ({"model_name": "acme/none"}, "NOT_FOUND", "acme/none"),
        ({"model_version": "9"}, "NOT_FOUND", "no version '9'"),
        ({"inputs": [tensor(X, "wrong")]}, "INVALID_ARGUMENT", "wrong"),
        ({"inputs": []}, "INVALID_ARGUMENT", "x"),
        ({"inputs": [tensor(X[:, :3])]}, "INVALID_ARGUMENT", "x"),
        ({"inputs": [tensor(X.astype(np.int32))]}, "INVALID_ARGUMENT", "int32"),
        ({"outputs": [triton.InferRequestedOutput("z")]}, "INVALID_ARGUMENT", "'z' is not an output"),
        ({"outputs": [triton.InferRequestedOutput("y", class_count=2)]}, "INVALID_ARGUMENT", "classification"),
        ({"sequence_id": 5}, "INVALID_ARGUMENT", "keeps no sequences"),
        ({"inputs": [tensor(np.zeros((800, 4000), np.float32))]}, "RESOURCE_EXHAUSTED", "more than the 8388608"),
    ],
    ids=lambda value: "",
)
def test_a_faulty_call_gets_its_status_and_a_text(client: Any, change: dict[str, Any], status: str, text: str) -> None:
    call = {"model_name": "acme/tiny", "inputs": [tensor(X)]} | change
    with pytest.raises(InferenceServerException) as caught:
        client.infer(**call)
    assert (caught.value.status(), text in caught.value.message()) == (f"StatusCode.{status}", True), caught.value
    assert client.infer("acme/tiny", [tensor(X)]).as_numpy("y") is not None


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_are_refused_clearly(client: Any, algorithm: str) -> None:
    wide = np.zeros((1, 160_000), np.float32)
    with pytest.raises(InferenceServerException, match="compressed messages are not taken") as caught:
        client.infer("acme/wide", [tensor(wide)], compression_algorithm=algorithm)
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


def test_what_is_not_served_says_so(client: Any) -> None:
    for ask, arguments in (
        (client.register_cuda_shared_memory, ("r", b"\0" * 64, 0, 8)),
        (client.get_trace_settings, ()),
        (client.get_log_settings, ()),
    ):
        with pytest.raises(InferenceServerException) as caught:
            ask(*arguments)
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
        assert caught.value.message()
    # Many clients begin like this.
    client.unregister_cuda_shared_memory()
    assert not client.get_cuda_shared_memory_status().regions


def test_statistics_count_what_was_done(client: Any) -> None:
    def successes() -> Any:
        [entry] = client.get_inference_statistics("acme/tiny").model_stats
        return entry

    before = successes()
    for _ in range(3):
        client.infer("acme/tiny", [tensor(X)])
    after = successes()
    assert after.version == "1"
    assert after.inference_stats.success.count - before.inference_stats.success.count == 3
    assert after.inference_count - before.inference_count == 6
    assert after.last_inference > 1e12
    for part in ("compute_input", "compute_infer", "compute_output"):
        assert getattr(after.inference_stats, part).ns > getattr(before.inference_stats, part).ns
    assert len(client.get_inference_statistics().model_stats) >= 3
    with pytest.raises(InferenceServerException) as caught:
        client.get_inference_statistics("acme/none")
    assert caught.value.status() == "StatusCode.NOT_FOUND"


@contextlib.contextmanager
def region(key: str, size: int) -> Iterator[Any]:
    handle = shm.create_shared_memory_region(key.strip("/"), key, size)
    try:
        yield handle
    finally:
        shm.destroy_shared_memory_region(handle)


def test_tritonclient_infers_through_shared_memory(client: Any) -> None:
    client.unregister_system_shared_memory()
    # The machine's names are shared with whatever else runs on it.
    keys = {name: f"/modelbox_grpc_{secrets.token_hex(8)}_{name}" for name in ("in", "out")}
    with region(keys["in"], 64) as given, region(keys["out"], 64) as taken:
        shm.set_shared_memory_region(given, [X])
        client.register_system_shared_memory("in", keys["in"], 64)
        client.register_system_shared_memory("out", keys["out"], 64)
        status = client.get_system_shared_memory_status()
        assert {name: (found.key, found.byte_size) for name, found in status.regions.items()} == {
            "in": (keys["in"], 64),
            "out": (keys["out"], 64),
        }
        x = triton.InferInput("x", [2, 4], "FP32")
        x.set_shared_memory("in", 32)
        y = triton.InferRequestedOutput("y")
        y.set_shared_memory("out", 32, 16)
        result = client.infer("acme/tiny", [x], outputs=[y])
        assert list(result.get_response().raw_output_contents) == [b""]
        np.testing.assert_array_equal(shm.get_contents_as_numpy(taken, np.float32, [2, 4], 16), X + 1)

        y.set_shared_memory("out", 16)
        with pytest.raises(InferenceServerException, match="32 bytes") as caught:
            client.infer("acme/tiny", [x], outputs=[y])
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        client.unregister_system_shared_memory("in")
        with pytest.raises(InferenceServerException) as caught:
            client.infer("acme/tiny", [x])
        assert caught.value.status() == "StatusCode.NOT_FOUND"
        client.unregister_system_shared_memory()
    with pytest.raises(InferenceServerException) as caught:
        client.register_system_shared_memory("in", f"{keys['in']}_gone", 64)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_a_stream_answers_in_order_and_survives_a_failed_request(client: Any) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(200):
        model = "acme/none" if number % 10 == 3 else "acme/tiny"
        client.async_stream_infer(model, [tensor(X + number)], request_id=str(number))
    for number in range(200):
        result, error = answers.get(timeout=60)
        if number % 10 == 3:
            assert "acme/none" in str(error)
        else:
            assert error is None
            assert result.get_response().id == str(number)
            assert result.get_response().parameters["triton_final_response"].bool_param
            np.testing.assert_array_equal(result.as_numpy("y"), X + number + 1)
    client.stop_stream()


def test_a_stream_that_is_cancelled_leaves_the_others_alone(sidecar: SidecarProcess, client: Any) -> None:
    with contextlib.closing(triton.InferenceServerClient(sidecar.grpc_address)) as other:
        other.start_stream(lambda result, error: None)
        for number in range(50):
            other.async_stream_infer("acme/tiny", [tensor(X)], request_id=str(number))
        other.stop_stream(cancel_requests=True)
    np.testing.assert_array_equal(client.infer("acme/tiny", [tensor(X)]).as_numpy("y"), X + 1)


async def test_the_asynchronous_tritonclient_infers_and_streams(sidecar: SidecarProcess) -> None:
    async with triton_aio.InferenceServerClient(sidecar.grpc_address) as client:
        assert await client.is_server_ready()

        async def one(number: int) -> None:
            result = await client.infer("acme/tiny", [tensor(X * number)])
            np.testing.assert_array_equal(result.as_numpy("y"), X * number + 1)

        async with anyio.create_task_group() as tasks:
            for number in range(64):
                tasks.start_soon(one, number)

        async def requests() -> Any:
            for number in range(20):
                yield {"model_name": "acme/tiny", "inputs": [tensor(X + number)], "request_id": str(number)}

        seen = []
        async for result, error in client.stream_infer(requests()):
            assert error is None
            seen.append(result.get_response().id)
        assert seen == [str(number) for number in range(20)]


# -- other clients

_KSERVE = """
import asyncio, sys
import numpy as np
from kserve.inference_client import InferenceGRPCClient
from kserve.protocol.infer_type import InferInput, InferRequest

async def main():
    client = InferenceGRPCClient(sys.argv[1])
    assert await client.is_server_live() and await client.is_server_ready() and await client.is_model_ready("acme/tiny")
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    typed = InferInput(name="x", shape=[2, 4], datatype="FP32", data=x.ravel().tolist())
    raw = InferInput(name="x", shape=[2, 4], datatype="FP32")
    raw.set_data_from_numpy(x, binary_data=True)
    for tensor in (typed, raw):
        request = InferRequest(model_name="acme/tiny", infer_inputs=[tensor], request_id="k")
        answer = await client.infer(request, timeout=60)
        assert answer.id == "k" and answer.model_version == "1", answer
        assert (answer.outputs[0].as_numpy() == x + 1).all(), answer
    await client.close()

asyncio.run(main())
print("fine")
"""


def test_the_kserve_client_infers(sidecar: SidecarProcess) -> None:
    # In a process of its own: its messages have the names of tritonclient's.
    done = subprocess.run(
        [sys.executable, "-c", _KSERVE, sidecar.grpc_address], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.stdout.strip().endswith("fine"), done.stderr


async def test_generated_clients_infer_and_errors_carry_their_code(sidecar: SidecarProcess) -> None:
    host, _, port = sidecar.grpc_address.rpartition(":")
    async with Channel(host, int(port)) as channel:
        stub = pb.GrpcInferenceServiceStub(channel)
        request = pb.ModelInferRequest(
            model_name="acme/tiny",
            inputs=[pb.ModelInferRequestInferInputTensor(name="x", datatype="FP32", shape=[2, 4])],
            raw_input_contents=[X.tobytes()],
        )
        answer = await stub.model_infer(request)
        assert answer.raw_output_contents == [(X + 1).tobytes()]
        with pytest.raises(GRPCError) as caught:
            await stub.model_metadata(pb.ModelMetadataRequest(name="acme/none"))
        assert caught.value.status is Status.NOT_FOUND


def test_health_and_reflection_are_served(sidecar: SidecarProcess) -> None:
    from grpclib.health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
    from grpclib.reflection.v1.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

    with grpc.insecure_channel(sidecar.grpc_address) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        for service in ("", "inference.GRPCInferenceService"):
            assert check(HealthCheckRequest(service=service)).status == HealthCheckResponse.SERVING
        reflect = channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            request_serializer=ServerReflectionRequest.SerializeToString,
            response_deserializer=ServerReflectionResponse.FromString,
        )
        [answer] = reflect(iter([ServerReflectionRequest(list_services="")]))
        names = {service.name for service in answer.list_services_response.service}
        assert "inference.GRPCInferenceService" in names


# -- bad input


def test_malformed_messages_fail_alone(sidecar: SidecarProcess, client: Any) -> None:
    good = service_pb2.ModelInferRequest(model_name="acme/tiny")
    good.inputs.add(name="x", datatype="FP32", shape=[2, 4])
    good.raw_input_contents.append(X.tobytes())
    wire = good.SerializeToString()
    rng = np.random.default_rng(7)
    codes: set[Any] = set()
    with grpc.insecure_channel(sidecar.grpc_address) as channel:
        for method in ("ModelInfer", "ModelStreamInfer", "ModelMetadata", "RepositoryIndex", "ModelStatistics"):
            path = f"/inference.GRPCInferenceService/{method}"
            for _ in range(60):
                body = bytearray(wire)
                for _ in range(rng.integers(1, 6)):
                    body[rng.integers(len(body))] = rng.integers(256)
                cut = bytes(body[: rng.integers(len(body) + 1)])
                method_call: Any = channel.stream_stream(path)
                call = method_call(iter([cut]), timeout=60)
                with contextlib.suppress(grpc.RpcError):
                    list(call)
                codes.add(call.code())
    # A flipped bit may leave a request that is right in form.
    assert codes == {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}
    np.testing.assert_array_equal(client.infer("acme/tiny", [tensor(X)]).as_numpy("y"), X + 1)
    assert "Traceback" not in sidecar.output


def test_a_call_without_a_message_is_refused(sidecar: SidecarProcess) -> None:
    with grpc.insecure_channel(sidecar.grpc_address) as channel:
        for method in ("ModelInfer", "ServerLive"):
            empty: Any = channel.stream_unary(f"/inference.GRPCInferenceService/{method}")
            with pytest.raises(grpc.RpcError) as caught:
                empty(iter([]), timeout=60)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            twice: Any = channel.stream_unary(f"/inference.GRPCInferenceService/{method}")
            with contextlib.suppress(grpc.RpcError):
                twice(iter([b"", b""]), timeout=60)


# -- repository, swaps, stops


async def test_models_are_loaded_and_unloaded(shared_server: ServerProcess, tmp_path: Path) -> None:
    await publish(shared_server.url, tmp_path, "later/one", add_constant(1.0))
    await publish(shared_server.url, tmp_path, "later/two", add_constant(2.0))
    with SidecarProcess(tmp_path, shared_server.url, "later/one@prod") as sidecar:
        async with triton_aio.InferenceServerClient(sidecar.grpc_address) as client:
            await client.load_model("later/two@prod")
            index = (await client.get_model_repository_index()).models
            assert {(entry.name, entry.version, entry.state) for entry in index} == {
                ("later/one", "1", "READY"),
                ("later/two", "1", "READY"),
            }
            answer = await client.infer("later/two", [tensor(X)])
            np.testing.assert_array_equal(answer.as_numpy("y"), X + 2)
            await client.unload_model("later/two")
            assert not await client.is_model_ready("later/two")
            await client.unload_model("later/none")
            with pytest.raises(InferenceServerException) as caught:
                await client.infer("later/two", [tensor(X)])
            assert caught.value.status() == "StatusCode.NOT_FOUND"
            with pytest.raises(InferenceServerException, match="takes no parameters"):
                await client.load_model("later/two@prod", config="{}")
            with pytest.raises(InferenceServerException) as caught:
                await client.load_model("later/none@prod")
            assert caught.value.status() == "StatusCode.NOT_FOUND"


async def test_no_call_fails_or_mixes_while_the_model_moves(shared_server: ServerProcess, tmp_path: Path) -> None:
    for version in (1, 2):
        await publish(shared_server.url, tmp_path, "moving/model", add_constant(version * 10.0), promote="")
    answers = {"1": 10.0, "2": 20.0}
    async with modelbox.Client(shared_server.url) as registry:
        await registry.promote("moving/model@prod", 1)
        with SidecarProcess(tmp_path, shared_server.url, "moving/model@prod") as sidecar:
            async with triton_aio.InferenceServerClient(sidecar.grpc_address) as client:
                done = anyio.Event()
                seen: set[str] = set()

                async def call() -> None:
                    while not done.is_set():
                        result = await client.infer("moving/model", [tensor(X)])
                        version = result.get_response().model_version
                        np.testing.assert_array_equal(result.as_numpy("y"), X + answers[version])
                        seen.add(version)

                async with anyio.create_task_group() as tasks:
                    for _ in range(8):
                        tasks.start_soon(call)
                    for number in range(6):
                        seen.clear()
                        wanted = 1 + (number + 1) % 2
                        await registry.promote("moving/model@prod", wanted)
                        with anyio.fail_after(60):
                            while str(wanted) not in seen:
                                await anyio.sleep(0.01)
                    done.set()


def accepted(sidecar: SidecarProcess) -> int:
    """How many calls wait or run."""
    with urllib.request.urlopen(sidecar.metrics_url, timeout=60) as answer:
        text = answer.read().decode()
    found = re.findall(r"^modelbox_sidecar_queue_(?:running|waiting)\{.*\} (\d+)", text, re.MULTILINE)
    return sum(map(int, found))


def test_a_stop_finishes_what_was_accepted(shared_server: ServerProcess, tmp_path: Path) -> None:
    anyio.run(publish, shared_server.url, tmp_path, "stopping/slow", perceptron(1500, 8))
    with SidecarProcess(tmp_path, shared_server.url, "stopping/slow@prod", mode="pool", batching="off") as sidecar:
        rows = 64 * available_cores()
        x = np.ones((rows, 1500), np.float32)
        outcomes: list[Any] = []

        def call(client: Any) -> None:
            try:
                outcomes.append(client.infer("stopping/slow", [tensor(x)]).as_numpy("y").shape)
            except Exception as exc:
                outcomes.append(exc)

        with contextlib.closing(triton.InferenceServerClient(sidecar.grpc_address)) as client:
            before = client.get_inference_statistics("stopping/slow").model_stats[0].inference_stats
            assert before.success.count == 0
            threads = [threading.Thread(target=call, args=(client,)) for _ in range(6)]
            for thread in threads:
                thread.start()
            deadline = time.monotonic() + 60
            while len(outcomes) + accepted(sidecar) < 6:
                assert time.monotonic() < deadline
                time.sleep(0.005)
            assert sidecar.terminate() == 0
            for thread in threads:
                thread.join(60)
        assert outcomes == [(rows, 1500)] * 6
