"""What the callers of the Open Inference Protocol say: one model's requests as JSON, as binary data and as gRPC.

Bodies are made once; only a state that goes from an answer into the next request is put in anew, by position. Before
anything is measured, `check` compares what the server answers with what the runtime gives.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.load import Connection, Exchange, GrpcConnection, HttpConnection, call
from modelbox._proto import inference as pb

__all__ = ("METHOD", "Model", "Way", "check", "ways")

METHOD = "/inference.GRPCInferenceService/ModelInfer"

_CLOSE = 1e-4
_STEPS = 3
_DATATYPES = {"float32": "FP32", "int64": "INT64"}
_DTYPES = {"FP32": np.float32, "INT64": np.int64}

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model and what is asked of it.

    Attributes:
        name: As the server serves it.
        session: The runtime's own, to compare with.
        inputs: In the order in which they are sent; a state comes last.
        state: The input that gets the last output of the answer before; empty for models without one.
    """

    name: str
    session: Any
    inputs: Mapping[str, Array]
    state: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to ask for a model.

    Attributes:
        name: ``json``, ``binary`` or ``grpc``.
        exchange: What is said.
        headers: Of HTTP.
        outputs: Reads the outputs of an answer.
    """

    name: str
    exchange: Exchange
    outputs: Callable[[bytes], list[Array]]
    headers: tuple[str, ...] = ()

    async def open(self, address: str, path: str, callers: int) -> Sequence[Connection]:
        """Connections for ``callers`` callers: of HTTP one each, of gRPC one for all."""
        if self.name == "grpc":
            return [await GrpcConnection.open(address, METHOD)] * callers
        return [await HttpConnection.open(address, path, headers=self.headers) for _ in range(callers)]


def ways(model: Model) -> list[Way]:
    """All ways to ask for ``model``."""
    return [_json(model), _binary(model), _grpc(model)]


async def check(connection: Connection, way: Way, model: Model) -> None:
    """Compares a few answers, each from what the one before left, with the runtime's own.

    Raises:
        ValueError: They differ.
        ConnectionError: A call failed.
    """
    body, inputs = way.exchange.first, dict(model.inputs)
    for _ in range(_STEPS):
        answer = await call(connection, body)
        expected = model.session.run(None, inputs)
        found = way.outputs(answer)
        if len(found) != len(expected) or not all(
            np.allclose(ours.reshape(-1), theirs.reshape(-1), atol=_CLOSE)
            for ours, theirs in zip(found, expected, strict=True)
        ):
            raise ValueError(f"{model.name} as {way.name} answers what the runtime does not")
        if way.exchange.follow is not None:
            body = way.exchange.follow(answer)
            inputs[model.state] = expected[-1]


def _described(name: str, array: Array) -> dict[str, Any]:
    return {"name": name, "shape": list(array.shape), "datatype": _DATATYPES[array.dtype.name]}


def _json(model: Model) -> Way:
    tensors = [{**_described(name, array), "data": array.reshape(-1).tolist()} for name, array in model.inputs.items()]
    first = json.dumps({"inputs": tensors}, separators=(",", ":")).encode()
    begin = first.rindex(b'"data":[') + 8
    prefix, suffix = first[:begin], first[first.index(b"]", begin) :]

    def follow(answer: bytes) -> bytes:
        at = answer.rindex(b'"data":[') + 8
        return b"".join((prefix, answer[at : answer.index(b"]", at)], suffix))

    def outputs(answer: bytes) -> list[Array]:
        return [np.array(tensor["data"]) for tensor in json.loads(answer)["outputs"]]

    return Way(
        name="json",
        exchange=Exchange(first, follow if model.state else None),
        outputs=outputs,
        headers=("Content-Type: application/json",),
    )


def _binary(model: Model) -> Way:
    tensors = [
        {**_described(name, array), "parameters": {"binary_data_size": array.nbytes}}
        for name, array in model.inputs.items()
    ]
    head = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}, separators=(",", ":")).encode()

    def outputs(answer: bytes) -> list[Array]:
        # Where the JSON ends is in a header, which the generator does not keep.
        document, end = json.JSONDecoder().raw_decode(answer.decode("latin-1"))
        found = []
        for tensor in document["outputs"]:
            size = tensor["parameters"]["binary_data_size"]
            found.append(np.frombuffer(answer[end : end + size], _DTYPES[tensor["datatype"]]))
            end += size
        return found

    return Way(
        name="binary",
        exchange=_raw_exchange(head + b"".join(array.tobytes() for array in model.inputs.values()), model),
        outputs=outputs,
        headers=("Content-Type: application/octet-stream", f"Inference-Header-Content-Length: {len(head)}"),
    )


def _grpc(model: Model) -> Way:
    request = pb.ModelInferRequest(
        model_name=model.name,
        inputs=[
            pb.ModelInferRequestInferInputTensor(**_described(name, array)) for name, array in model.inputs.items()
        ],
        raw_input_contents=[array.tobytes() for array in model.inputs.values()],
    )

    def outputs(answer: bytes) -> list[Array]:
        message = pb.ModelInferResponse.parse(answer)
        if message.raw_output_contents:
            return [
                np.frombuffer(raw, _DTYPES[tensor.datatype])
                for raw, tensor in zip(message.raw_output_contents, message.outputs, strict=True)
            ]
        return [np.array(tensor.contents.fp32_contents) for tensor in message.outputs if tensor.contents is not None]

    return Way(name="grpc", exchange=_raw_exchange(bytes(request), model), outputs=outputs)


def _raw_exchange(first: bytes, model: Model) -> Exchange:
    """Requests and answers that end with the state."""
    if not model.state:
        return Exchange(first)
    size = model.inputs[model.state].nbytes
    prefix = first[:-size]
    return Exchange(first, lambda answer: prefix + answer[-size:])
