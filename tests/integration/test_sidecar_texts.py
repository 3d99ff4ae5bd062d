"""What a request's reading costs others, and what a request's answer is remembered for, over HTTP and gRPC."""

from __future__ import annotations

import json
import os
import struct
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

import modelbox
from modelbox.errors import InputError
from modelbox.refs import ModelRef
from modelbox.sidecar.oip import tensors
from modelbox.sidecar.oip.grpc import OpenInferenceAdapter
from modelbox.sidecar.oip.messages import ModelInferRequest, ModelInferResponse
from modelbox.sidecar.oip.routes import HttpRequest, Routes
from modelbox.sidecar.oip.shared_memory import SharedMemory
from modelbox.sidecar.service import InferenceService
from tests.onnx_models import add_constant
from tests.server import ServerProcess

ELEMENTS = 20_000
TEXTS = struct.pack("<I", 4) + b"text"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def service(shared_server: ServerProcess, tmp_path: Path) -> AsyncIterator[InferenceService]:
    async with modelbox.Client(shared_server.url, cache_dir=tmp_path / "cache") as client:
        (tmp_path / "model.onnx").write_bytes(add_constant(1))
        await client.publish("texts/add", tmp_path / "model.onnx", aliases=["prod"])
        async with InferenceService(client, [ModelRef.parse("texts/add@prod")], cache_bytes=1 << 20) as service:
            with anyio.fail_after(60):
                while not service.ready():
                    await anyio.sleep(0.01)
            yield service


@pytest.fixture
def memory(tmp_path: Path) -> SharedMemory:
    return SharedMemory(directory=str(tmp_path))


def tensor(datatype: str, shape: list[int], **parameters: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": datatype, "shape": shape, "parameters": parameters}


def http_request(*inputs: dict[str, Any], data: bytes = b"") -> HttpRequest:
    head = json.dumps({"inputs": inputs, "outputs": [{"name": "y"}]}).encode()
    headers = {"inference-header-content-length": str(len(head))}
    return HttpRequest("POST", "/v2/models/add/infer", headers, head + data)


def grpc_request(datatype: str, shape: list[int], data: bytes) -> bytes:
    message = ModelInferRequest(model_name="add")
    message.inputs.add(name="x", datatype=datatype, shape=shape)
    message.raw_input_contents.append(data)
    return bytes(message.SerializeToString())


@pytest.mark.parametrize("way", ["binary", "shared memory", "disguised", "grpc"])
@pytest.mark.parametrize("elements", [10, ELEMENTS])
async def test_many_texts_are_read_beside_the_loop(
    way: str,
    elements: int,
    service: InferenceService,
    memory: SharedMemory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads = []
    decode = tensors._decode_bytes

    def spy(*args: Any) -> Any:
        threads.append(threading.current_thread())
        return decode(*args)

    monkeypatch.setattr(tensors, "_decode_bytes", spy)
    data = TEXTS * elements
    if way == "grpc":
        with pytest.raises(InputError, match="float32"):
            await OpenInferenceAdapter(service, memory=None).infer(grpc_request("BYTES", [elements, 1], data), None)
    else:
        routes = Routes(service, memory=memory)
        if way == "shared memory":
            (tmp_path / "region").write_bytes(data)
            memory.register("region", "/region", 0, len(data))
            where = {"shared_memory_region": "region", "shared_memory_byte_size": len(data)}
            request = http_request(tensor("BYTES", [elements, 1], **where))
        else:
            request = http_request(tensor("BYTES", [elements, 1], binary_data_size=len(data)), data=data)
        if way == "disguised":
            body = bytes(request.body).replace(b"BYTES", b"B\\u0059TES")
            headers = {"inference-header-content-length": str(len(body) - len(data))}
            request = HttpRequest("POST", request.path, headers, body)
        answer = await routes.answer(request)
        assert answer.status == 400
    (thread,) = threads
    beside = elements == ELEMENTS or way in ("shared memory", "disguised")
    assert (thread is not threading.current_thread()) is beside


async def test_what_is_remembered_belongs_to_what_was_read(
    service: InferenceService, memory: SharedMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that changes its shared memory while its call is under way gets no wrong answer remembered."""
    region = tmp_path / "region"
    honest, other = np.ones((1, 4), np.float32), np.full((1, 4), 5, np.float32)
    region.write_bytes(honest.tobytes())
    memory.register("region", "/region", 0, honest.nbytes)
    routes = Routes(service, memory=memory)
    request = http_request(tensor("FP32", [1, 4], shared_memory_region="region", shared_memory_byte_size=honest.nbytes))
    pread = os.pread

    def read_and_change(*args: Any) -> bytes:
        data = pread(*args)
        region.write_bytes(other.tobytes())
        return data

    monkeypatch.setattr(os, "pread", read_and_change)
    first = await routes.answer(request)
    monkeypatch.undo()
    asked = []
    for x in (honest, other):
        answer = await OpenInferenceAdapter(service, memory=None).infer(grpc_request("FP32", [1, 4], x.tobytes()), None)
        asked.append(np.frombuffer(ModelInferResponse.FromString(answer).raw_output_contents[0], np.float32).tolist())
    assert first.status == 200
    assert json.loads(bytes(first.parts[0]))["outputs"][0]["data"] == [2.0] * 4
    assert asked == [[2.0] * 4, [6.0] * 4]
    assert service.statistics("add")[0]["inference_stats"]["cache_hit"]["count"] == 1
