"""Bodies of inference requests: JSON, binary data, and what is neither."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modelbox.errors import InputError, NotFoundError
from modelbox.sidecar.oip.binary import parse_header_length, read_body, read_raw
from modelbox.sidecar.oip.datatypes import BYTES, DATATYPES, datatype_of_array
from modelbox.sidecar.oip.json_body import InferBody, OutputWish, Region, encode_answer, parse_json, read_infer
from modelbox.sidecar.oip.tensors import Buffer, encode_json, encode_raw
from modelbox.signature import Dim, Signature, TensorSpec

_ARRAYS = st.sampled_from([d for d in DATATYPES.values() if d.dtype is not None and d is not BYTES]).flatmap(
    lambda kind: hnp.arrays(kind.array_dtype(), hnp.array_shapes(min_dims=0, max_dims=3, max_side=4))
)
_NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
X = np.array([[1.0, 2.0]], np.float32)


class Regions:
    """Shared memory without a kernel."""

    def __init__(self, **regions: bytes) -> None:
        self.regions = {name: bytearray(data) for name, data in regions.items()}

    def read(self, region: Region) -> Buffer:
        if region.name not in self.regions:
            raise NotFoundError("no such region")
        return bytes(self.regions[region.name][region.offset : region.offset + region.byte_size])

    def write(self, region: Region, data: Buffer) -> None:
        self.regions[region.name][region.offset : region.offset + len(data)] = data


def _tensor(name: str, array: Any, **parameters: object) -> dict[str, Any]:
    datatype = datatype_of_array(array)
    assert datatype is not None
    tensor: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": datatype.name}
    return tensor | ({"parameters": parameters} if parameters else {})


def _outcome(read: Callable[[], InferBody]) -> InferBody | InputError | NotFoundError:
    try:
        return read()
    except (InputError, NotFoundError) as exc:
        return exc


def _fits_json(array: Any) -> bool:
    return array.dtype != np.float16 and not (array.dtype.kind == "f" and not np.isfinite(array).all())


@given(st.dictionaries(_NAMES, st.tuples(_ARRAYS, st.booleans()), min_size=1, max_size=4), _NAMES)
def test_mixed_request_round_trip(inputs: dict[str, tuple[Any, bool]], request_id: str) -> None:
    tensors, raw = [], []
    for name, (array, binary) in inputs.items():
        if binary or not _fits_json(array):
            data = bytes(encode_raw(array))
            tensors.append(_tensor(name, array, binary_data_size=len(data)))
            raw.append(data)
        else:
            tensors.append(_tensor(name, array) | {"data": json.loads(encode_json(array, name))})
    head = json.dumps({"id": request_id, "inputs": tensors}).encode()
    body = read_body(head + b"".join(raw), len(head))
    assert body.id == request_id
    assert list(body.inputs) == list(inputs)
    for name, (array, _) in inputs.items():
        assert body.inputs[name].tobytes() == array.tobytes()
        assert body.inputs[name].shape == array.shape


@given(st.dictionaries(_NAMES, st.tuples(_ARRAYS, st.booleans()), min_size=1, max_size=4), _NAMES, st.booleans())
def test_answer_round_trip(outputs: dict[str, tuple[Any, bool]], request_id: str, default: bool) -> None:
    wishes = [
        OutputWish(name, None if default else binary or not _fits_json(array))
        for name, (array, binary) in outputs.items()
    ]
    answer = encode_answer(
        model="m",
        version="3",
        id=request_id,
        outputs={name: array for name, (array, _) in outputs.items()},
        wishes=wishes,
        binary_output=default,
    )
    document = json.loads(answer.head)
    assert (document["model_name"], document["model_version"], document["id"]) == ("m", "3", request_id)
    assert answer.header_length == (len(answer.head) if answer.buffers else None)
    # Read back by the request's own reader: inputs and outputs have the same form.
    tail = b"".join(bytes(buffer) for buffer in answer.buffers)
    back = read_body(
        json.dumps({"inputs": document["outputs"]}).encode() + tail,
        len(json.dumps({"inputs": document["outputs"]}).encode()),
    )
    assert list(back.inputs) == list(outputs)
    for name, (array, _) in outputs.items():
        assert back.inputs[name].tobytes() == array.tobytes()


@given(_JSON)
def test_any_json_is_a_request_or_an_error(document: object) -> None:
    outcome = _outcome(lambda: read_infer(document))
    assert isinstance(outcome, InferBody) or len(outcome.message) < 1000


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "name": st.sampled_from(["x", "", None, 3]) | _JSON,
            "shape": st.lists(st.integers(-1, 5), max_size=3) | _JSON,
            "datatype": st.sampled_from([*DATATYPES, "fp32", None]) | _JSON,
            "data": _JSON,
            "parameters": st.fixed_dictionaries(
                {},
                optional={
                    "binary_data_size": st.integers(-1, 40) | _JSON,
                    "shared_memory_region": st.sampled_from(["r", "q"]) | _JSON,
                    "shared_memory_byte_size": st.integers(-1, 40) | _JSON,
                    "shared_memory_offset": st.integers(-1, 40) | _JSON,
                },
            )
            | _JSON,
        },
    ),
    st.binary(max_size=40),
)
def test_any_tensor_is_read_or_an_error(tensor: dict[str, Any], tail: bytes) -> None:
    head = json.dumps({"inputs": [tensor]}).encode()
    outcome = _outcome(lambda: read_body(head + tail, len(head), Regions(r=bytes(32))))
    if isinstance(outcome, InferBody):
        (array,) = outcome.inputs.values()
        assert list(array.shape) == tensor["shape"]
    else:
        assert len(outcome.message) < 1000


@given(st.binary(max_size=80), st.integers(0, 100))
def test_any_bytes_are_an_error(data: bytes, cut: int) -> None:
    with pytest.raises(InputError):
        read_body(data, min(cut, len(data)))


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "is no JSON"),
        (b"\xff", "no UTF-8"),
        (b"{", "is no JSON"),
        (b'{"a":1}x', "is no JSON"),
        (b"[" * 200_000, "too deeply"),
        (b"1" * 5000, "is no JSON"),
        (b'{"inputs":[NaN]}', "NaN is not JSON"),
        (b'{"inputs":[-Infinity]}', "Infinity is not JSON"),
    ],
)
def test_bytes_that_are_no_json(data: bytes, match: str) -> None:
    with pytest.raises(InputError, match=match):
        parse_json(data, "it")


@pytest.mark.parametrize(
    ("document", "match"),
    [
        ([], "no JSON object"),
        ({}, 'no "inputs"'),
        ({"inputs": None}, 'no "inputs"'),
        ({"inputs": {}}, "list of tensors"),
        ({"inputs": [3]}, "an input is a number"),
        ({"inputs": [_tensor("x", X)]}, "neither"),
        ({"inputs": [_tensor("x", X, a=1)]}, "neither"),
        ({"inputs": [_tensor("x", X, binary_data_size=8)]}, "Inference-Header-Content-Length"),
        ({"inputs": [_tensor("x", X, binary_data_size=8) | {"data": [1, 2]}]}, "two ways"),
        ({"inputs": [_tensor("x", X, binary_data_size=True)]}, "number of bytes"),
        ({"inputs": [_tensor("x", X, shared_memory_region="r")]}, "needs"),
        ({"inputs": [_tensor("x", X, shared_memory_byte_size=8)]}, "needs"),
        ({"inputs": [_tensor("x", X, shared_memory_region="r", shared_memory_byte_size=8)]}, "told not to"),
        ({"inputs": [_tensor("x", X) | {"data": [1, 2]}] * 2}, "twice"),
        ({"inputs": [], "id": 7}, '"id" is a number'),
        ({"inputs": [], "outputs": {}}, '"outputs" is an object'),
        ({"inputs": [], "outputs": ["y"]}, "an output is text"),
        ({"inputs": [], "outputs": [{"name": "y"}, {"name": "y"}]}, "twice"),
        ({"inputs": [], "outputs": [{"name": "y", "parameters": {"binary_data": 1}}]}, "true or false"),
        ({"inputs": [], "outputs": [{"name": "y", "parameters": {"classification": 3}}]}, "classification"),
        ({"inputs": [], "parameters": {"a": []}}, "is a list"),
        ({"inputs": [], "parameters": {"priority": -1}}, "priority"),
        ({"inputs": [], "parameters": {"timeout": 1.5}}, "timeout"),
        ({"inputs": [], "parameters": {"sequence_id": 5}}, "keeps no sequences"),
        ({"inputs": [], "parameters": {str(i): i for i in range(300)}}, "300 parameters"),
    ],
)
def test_documents_that_are_no_request(document: object, match: str) -> None:
    with pytest.raises(InputError, match=match):
        read_infer(document)


def test_parameters_find_their_place() -> None:
    body = read_infer(
        {
            "inputs": [],
            "outputs": [{"name": "y", "parameters": {"binary_data": False}}, {"name": "z"}],
            "parameters": {
                "binary_data_output": True,
                "priority": 2,
                "timeout": 250_000,
                "sequence_id": 0,
                "tenant": "a",
            },
            "member_of_an_extension": [1],
        }
    )
    assert body.outputs == [OutputWish("y", False), OutputWish("z")]
    assert (body.binary_output, body.priority, body.timeout_s) == (True, 2, 0.25)
    assert body.parameters == {"sequence_id": 0, "tenant": "a"}
    assert read_infer({"inputs": [], "parameters": {"timeout": 0}}).timeout_s is None


def test_binary_parts_must_add_up() -> None:
    head = json.dumps({"inputs": [_tensor("x", X, binary_data_size=8)]}).encode()
    with pytest.raises(InputError, match="expecting 3 additional bytes"):
        read_body(head + bytes(5), len(head))
    with pytest.raises(InputError, match="2 bytes belong to no input"):
        read_body(head + bytes(10), len(head))


@pytest.mark.parametrize("value", ["", "-1", "1.0", "abc", "²", "9" * 19, "11"])
def test_header_length_that_is_none(value: str) -> None:
    with pytest.raises(InputError, match="Inference-Header-Content-Length"):
        parse_header_length(value, 10)


def test_header_length() -> None:
    assert parse_header_length(None, 10) is None
    assert parse_header_length(" 10 ", 10) == 10


def test_shared_memory_in_and_out() -> None:
    memory = Regions(r=b"...." + X.tobytes(), out=bytes(16))
    where = {"shared_memory_region": "r", "shared_memory_byte_size": 8, "shared_memory_offset": 4}
    body = read_infer({"inputs": [_tensor("x", X, **where)]}, None, memory)
    assert body.inputs["x"].tolist() == X.tolist()
    answer = encode_answer(
        model="m",
        version="1",
        id="",
        outputs={"y": X},
        wishes=[OutputWish("y", None, Region("out", 8, 8))],
        memory=memory,
    )
    assert answer.header_length is None
    assert json.loads(answer.head)["outputs"] == [
        _tensor("y", X, shared_memory_region="out", shared_memory_byte_size=8, shared_memory_offset=8)
    ]
    assert memory.regions["out"][8:] == X.tobytes()


def test_outputs_that_are_no_tensors() -> None:
    outputs = {"label": X, "probabilities": [{0: 0.5}]}
    document = json.loads(encode_answer(model="m", version="1", id="", outputs=outputs).head)
    assert [output["name"] for output in document["outputs"]] == ["label"]
    assert document["parameters"] == {"omitted_outputs": "probabilities"}
    with pytest.raises(InputError, match="a sequence, which this protocol cannot carry"):
        encode_answer(model="m", version="1", id="", outputs=outputs, wishes=[OutputWish("probabilities")])
    with pytest.raises(InputError, match="a map"):
        encode_answer(model="m", version="1", id="", outputs={"p": {}})


def _signature(dtype: str, *shape: Dim, inputs: int = 1) -> Signature:
    return Signature(
        inputs=tuple(TensorSpec(name=f"x{n}", dtype=dtype, shape=shape) for n in range(inputs)), outputs=()
    )


def test_raw_request() -> None:
    body = read_raw(np.arange(6, dtype=np.float32).tobytes(), _signature("float32", "n", 3))
    assert body.inputs["x0"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert body.binary_output
    assert read_raw(b"\x01\x02", _signature("uint8", 2)).inputs["x0"].tolist() == [1, 2]
    assert read_raw(b"text", _signature("string", -1)).inputs["x0"].tolist() == ["text"]


@pytest.mark.parametrize(
    ("body", "signature", "match"),
    [
        (b"", _signature("float32", 1, inputs=2), "one input"),
        (b"", _signature("float32", -1, -1), "2 free dimensions"),
        (b"12345", _signature("float32", -1, 2), "no multiple of 8"),
        (b"12345", _signature("float32", 1), "expecting 4"),
        (b"a", _signature("string", 2), "several"),
        (b"a", _signature("seq(tensor(float))"), "cannot carry"),
        (b"12", _signature("float32", -1, 0), "no multiple of 0"),
    ],
)
def test_raw_request_that_says_too_little(body: bytes, signature: Signature, match: str) -> None:
    with pytest.raises(InputError, match=match):
        read_raw(body, signature)
