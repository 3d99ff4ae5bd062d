from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modelbox.errors import InputError, ModelBoxError, NotFoundError
from modelbox.sidecar.oip.datatypes import datatype_of_array
from modelbox.sidecar.oip.json_body import Region
from modelbox.sidecar.oip.messages import Call, ModelInferRequest, read_request, write_response
from modelbox.sidecar.oip.tensors import encode_raw
from modelbox.sidecar.service import InferResponse

DTYPES = ["?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]


class Memory:
    """Regions that are bytearrays."""

    def __init__(self, **regions: bytes) -> None:
        self.regions = {name: bytearray(content) for name, content in regions.items()}

    def read(self, region: Region) -> bytes:
        if region.name not in self.regions:
            raise NotFoundError(f"no {region.name}")
        return bytes(self.regions[region.name][region.offset : region.offset + region.byte_size])

    def write(self, region: Region, data: Any) -> None:
        self.regions[region.name][region.offset : region.offset + len(data)] = data


def request(**fields: Any) -> Any:
    return ModelInferRequest(model_name="acme/tiny", **fields)


def raw(array: np.ndarray[Any, Any], *, name: str = "x") -> Any:
    message = request()
    datatype = datatype_of_array(array)
    assert datatype is not None
    message.inputs.add(name=name, datatype=datatype.name, shape=array.shape)
    message.raw_input_contents.append(bytes(encode_raw(array)))
    return message


def answer(outputs: dict[str, Any], call: Call, memory: Memory | None = None) -> Any:
    response = InferResponse(
        model=call.request.model, version=3, digest="sha256:00", id=call.request.id, outputs=outputs
    )
    return write_response(response, call, memory)


@given(st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0))))
def test_raw_tensors_come_through_unchanged(array: np.ndarray[Any, Any]) -> None:
    call = read_request(raw(array), None)
    assert not call.typed
    np.testing.assert_array_equal(call.request.inputs["x"], array)
    back = answer({"y": call.request.inputs["x"]}, call)
    assert list(back.outputs[0].shape) == list(array.shape)
    assert back.outputs[0].datatype == datatype_of_array(array).name  # type: ignore[union-attr]  # it has one
    assert back.raw_output_contents[0] == array.tobytes()


FIELDS = {"?": "bool_contents", "u8": "uint64_contents", "i8": "int64_contents", "f4": "fp32_contents"}
FIELDS |= {"f8": "fp64_contents"} | dict.fromkeys(["u1", "u2", "u4"], "uint_contents")
FIELDS |= dict.fromkeys(["i1", "i2", "i4"], "int_contents")


@given(
    st.sampled_from(sorted(FIELDS)).flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0)))
)
def test_typed_contents_come_through_unchanged_and_are_answered_in_kind(array: np.ndarray[Any, Any]) -> None:
    message = request()
    datatype = datatype_of_array(array)
    assert datatype is not None
    tensor = message.inputs.add(name="x", datatype=datatype.name, shape=array.shape)
    tensor.contents.SetInParent()
    field = FIELDS[array.dtype.str[1:] if array.dtype.kind != "b" else "?"]
    getattr(tensor.contents, field).extend(array.ravel().tolist())
    call = read_request(message, None)
    assert call.typed
    found = call.request.inputs["x"]
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)
    back = answer({"y": array}, call)
    assert not back.raw_output_contents
    np.testing.assert_array_equal(np.array(getattr(back.outputs[0].contents, field), array.dtype), array.ravel())


@given(hnp.arrays(object, hnp.array_shapes(min_dims=0, min_side=0), elements=st.binary(max_size=9), fill=st.nothing()))
def test_bytes_come_through_unchanged_raw_and_typed(array: np.ndarray[Any, Any]) -> None:
    call = read_request(raw(array), None)
    assert answer({"y": call.request.inputs["x"]}, call).raw_output_contents[0] == bytes(encode_raw(array))
    message = request()
    tensor = message.inputs.add(name="x", datatype="BYTES", shape=array.shape)
    tensor.contents.SetInParent()
    tensor.contents.bytes_contents.extend(array.ravel().tolist())
    call = read_request(message, None)
    back = answer({"y": call.request.inputs["x"]}, call)
    assert list(back.outputs[0].contents.bytes_contents) == array.ravel().tolist()


def test_half_floats_are_answered_raw_even_to_typed_requests() -> None:
    message = request()
    message.inputs.add(name="x", datatype="FP32", shape=[1]).contents.fp32_contents.append(1.0)
    call = read_request(message, None)
    back = answer({"a": np.ones(1, np.float32), "b": np.ones(1, np.float16)}, call)
    assert list(back.raw_output_contents) == [np.ones(1, np.float32).tobytes(), np.ones(1, np.float16).tobytes()]


def test_parameters_reach_the_service() -> None:
    message = raw(np.zeros(1, np.float32))
    message.parameters["timeout"].int64_param = 1500
    message.parameters["priority"].uint64_param = 2
    message.parameters["flavour"].string_param = "plain"
    message.parameters["ratio"].double_param = 0.5
    found = read_request(message, None).request
    assert (found.timeout_s, found.priority, found.parameters) == (0.0015, 2, {"flavour": "plain", "ratio": 0.5})


def test_shared_memory_takes_no_raw_entry_on_the_way_in_and_an_empty_one_on_the_way_out() -> None:
    message = request()
    place = message.inputs.add(name="a", datatype="FP32", shape=[2]).parameters
    place["shared_memory_region"].string_param = "in"
    place["shared_memory_byte_size"].int64_param = 8
    place["shared_memory_offset"].int64_param = 4
    message.inputs.add(name="b", datatype="FP32", shape=[1])
    message.raw_input_contents.append(np.full(1, 9, np.float32).tobytes())
    wanted = message.outputs.add(name="y").parameters
    wanted["shared_memory_region"].string_param = "out"
    wanted["shared_memory_byte_size"].int64_param = 8
    message.outputs.add(name="z")
    values = np.array([0, 1, 2], np.float32)
    memory = Memory(**{"in": values.tobytes(), "out": bytes(8)})

    call = read_request(message, memory)
    assert call.request.inputs["a"].tolist() == [1, 2]
    assert call.request.inputs["b"].tolist() == [9]
    back = answer({"y": values[1:], "z": values}, call, memory)
    assert bytes(memory.regions["out"]) == values[1:].tobytes()
    assert list(back.raw_output_contents) == [b"", values.tobytes()]
    assert back.outputs[0].parameters["shared_memory_byte_size"].int64_param == 8


def test_sequences_are_left_out_unless_they_were_asked_for() -> None:
    call = read_request(raw(np.zeros(1, np.float32)), None)
    outputs = {"label": np.zeros(1, np.int64), "scores": [{0: 0.5}]}
    back = answer(outputs, call)
    assert [output.name for output in back.outputs] == ["label"]
    assert back.parameters["omitted_outputs"].string_param == "scores"
    call.request.outputs = ["scores"]
    with pytest.raises(InputError, match="'scores' is no tensor but a sequence"):
        answer({"scores": outputs["scores"]}, call)


def contents(datatype: str, shape: list[int], **values: Any) -> Any:
    message = request()
    tensor = message.inputs.add(name="x", datatype=datatype, shape=shape)
    tensor.contents.SetInParent()
    for field, items in values.items():
        getattr(tensor.contents, field).extend(items)
    return message


def spoilt(*, entries: int = 1, parameters: dict[str, Any] | None = None, **change: Any) -> Any:
    message = request()
    fields = {"name": "x", "datatype": "FP32", "shape": [1]} | change
    tensor = message.inputs.add(**fields)
    for key, value in (parameters or {}).items():
        setattr(tensor.parameters[key], "string_param" if isinstance(value, str) else "int64_param", value)
    message.raw_input_contents.extend([bytes(4)] * entries)
    return message


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (spoilt(datatype="FP31"), "'FP31' is not a datatype"),
        (spoilt(datatype=""), "is not a datatype"),
        (spoilt(shape=[-1]), "has the dimension -1"),
        (spoilt(shape=[2]), "got 4 bytes, expecting 8"),
        (spoilt(shape=[2**40, 2**40]), "no memory could hold"),
        (spoilt(shape=[0, 2**62]), "no memory could hold"),
        (spoilt(shape=[1] * 40), "40 dimensions"),
        (spoilt(entries=2), "2 entries, but only 1 inputs"),
        (spoilt(entries=0), "got 0 values in fp32_contents, expecting 1"),
        (spoilt(entries=0, parameters={"shared_memory_region": "r"}), "needs shared_memory_region"),
        (spoilt(entries=0, parameters={"shared_memory_byte_size": 4}), "needs shared_memory_region"),
        (
            spoilt(entries=0, parameters={"shared_memory_region": "r", "shared_memory_byte_size": 4}),
            "was told not to use",
        ),
        (contents("FP32", [2], fp32_contents=[1]), "got 1 values in fp32_contents, expecting 2"),
        (contents("FP32", [1], fp64_contents=[1]), "got 0 values in fp32_contents"),
        (contents("INT8", [1], int_contents=[128]), "outside of INT8"),
        (contents("UINT8", [1], uint_contents=[256]), "outside of UINT8"),
        (contents("INT16", [1], int_contents=[-32769]), "outside of INT16"),
        (contents("FP16", [1]), "FP16 has no typed contents"),
        (contents("BF16", [1]), "BF16 has no typed contents"),
        (contents("BYTES", [2], bytes_contents=[b"a"]), "has 1 values"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_match_its_declaration_is_refused(message: Any, text: str) -> None:
    with pytest.raises(InputError, match=text):
        read_request(message, None)


def test_contents_beside_raw_entries_are_refused() -> None:
    message = contents("FP32", [1], fp32_contents=[1])
    message.raw_input_contents.append(bytes(4))
    with pytest.raises(InputError, match="contents must not be specified beside raw_input_contents"):
        read_request(message, None)


def test_twice_the_same_name_is_refused() -> None:
    message = raw(np.zeros(1, np.float32))
    message.inputs.add(name="x", datatype="FP32", shape=[1])
    message.raw_input_contents.append(bytes(4))
    with pytest.raises(InputError, match="input 'x' twice"):
        read_request(message, None)
    message = raw(np.zeros(1, np.float32))
    message.outputs.add(name="y")
    message.outputs.add(name="y")
    with pytest.raises(InputError, match="output 'y' twice"):
        read_request(message, None)


def test_sequences_of_calls_and_classification_are_refused() -> None:
    message = raw(np.zeros(1, np.float32))
    message.parameters["sequence_id"].int64_param = 5
    with pytest.raises(InputError, match="keeps no sequences"):
        read_request(message, None)
    message = raw(np.zeros(1, np.float32))
    message.outputs.add(name="y").parameters["classification"].int64_param = 3
    with pytest.raises(InputError, match="classification"):
        read_request(message, None)
    message = raw(np.zeros(1, np.float32))
    message.parameters["empty"].SetInParent()
    with pytest.raises(InputError, match="has no value"):
        read_request(message, None)


@given(st.data())
def test_any_message_is_read_or_refused_with_an_error_of_ours(data: st.DataObject) -> None:
    text = st.text(max_size=4)
    number = st.integers(-(2**63), 2**63 - 1)
    message = request()
    for _ in range(data.draw(st.integers(0, 3))):
        tensor = message.inputs.add(
            name=data.draw(text),
            datatype=data.draw(st.sampled_from(["FP32", "BYTES", "BOOL", "INT8", "UINT64", "FP16", "BF16", "?"])),
            shape=data.draw(st.lists(st.one_of(st.integers(0, 3), number), max_size=3)),
        )
        if data.draw(st.booleans()):
            tensor.contents.fp32_contents.extend(data.draw(st.lists(st.floats(width=32), max_size=3)))
        for key in data.draw(st.sets(st.sampled_from(["shared_memory_region", "shared_memory_byte_size", "x"]))):
            setattr(tensor.parameters[key], *data.draw(st.sampled_from([("string_param", "r"), ("int64_param", -1)])))
    message.raw_input_contents.extend(data.draw(st.lists(st.binary(max_size=16), max_size=3)))
    for key in data.draw(st.sets(st.sampled_from(["priority", "timeout", "sequence_id", "y"]))):
        setattr(message.parameters[key], *data.draw(st.sampled_from([("bool_param", True), ("int64_param", 2**62)])))
    try:
        call = read_request(message, Memory(r=bytes(8)))
    except ModelBoxError:
        return
    assert len(call.request.inputs) == len(message.inputs)
