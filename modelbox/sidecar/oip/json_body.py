"""The JSON of inference requests and answers.

Sans-I/O. Reads a request's document with whatever accompanies it (binary chunks, shared memory) into arrays, and writes
an answer's. Refuses documents that are not as the protocol says; unknown members are ignored, as extensions may add
some. NaN and Infinity are no JSON and are refused, though Python would read them.

Invariants: every failure is an `InputError`; its text holds names from the request, shortened, never values.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from modelbox.errors import InputError
from modelbox.refs import shown
from modelbox.sidecar.oip.datatypes import DATATYPES, datatype_named, datatype_of_array
from modelbox.sidecar.oip.large_json import Pause, read_document
from modelbox.sidecar.oip.tensors import Array, Buffer, decode_raw, decode_shape, decode_values, encode_json, encode_raw

__all__ = (
    "Chunks",
    "EncodedAnswer",
    "InferBody",
    "Memory",
    "OutputWish",
    "Region",
    "encode_answer",
    "parse_json",
    "read_infer",
    "read_parameters",
    "read_region",
)

Parameter = bool | int | float | str

_MAX_NAME_CHARS = 1024
_MAX_PARAMETERS = 256


@dataclass(frozen=True, slots=True)
class Region:
    """Part of a registered shared-memory region: ``byte_size`` bytes from ``offset`` on."""

    name: str
    offset: int
    byte_size: int


class Memory(Protocol):
    """Registered shared memory; `modelbox.sidecar.oip.shared_memory.SharedMemory` is one."""

    def read(self, region: Region) -> Buffer:
        """The bytes there; raises NotFoundError for an unknown region, InputError outside of its bounds."""
        ...

    def write(self, region: Region, data: Buffer) -> None:
        """Puts ``data`` at the beginning of ``region``; raises like `read`, and when it does not fit."""
        ...


class Chunks(Protocol):
    """The binary tensors that follow the JSON, in order."""

    def take(self, size: int, name: str) -> Buffer:
        """The next ``size`` bytes; raises InputError when there are fewer."""
        ...


@dataclass(slots=True)
class OutputWish:
    """An output that the request names.

    Attributes:
        name: Of the output.
        binary: Whether as binary data; None where the request's default decides.
        region: Where to put it instead of into the answer.
    """

    name: str
    binary: bool | None = None
    region: Region | None = None


@dataclass(slots=True)
class InferBody:
    """An inference request, decoded.

    Attributes:
        inputs: Arrays by name.
        id: To be echoed; empty when the request has none.
        outputs: What is wanted; all outputs when empty.
        binary_output: Whether outputs without a wish of their own come as binary data.
        priority: See `modelbox.sidecar.service.InferRequest`.
        timeout_s: The same.
        parameters: All others.
    """

    inputs: dict[str, Array]
    id: str = ""
    outputs: list[OutputWish] = field(default_factory=list)
    binary_output: bool = False
    priority: int = 0
    timeout_s: float | None = None
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


# -- reading


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON; send NaN and infinities as binary data")


_decode: Callable[[str], object] = json.JSONDecoder(parse_constant=_refuse_constant).decode


def _decode_rest(text: str, take: Callable[[str], object]) -> object:
    return json.JSONDecoder(parse_constant=take).decode(text)


def parse_json(data: Buffer, what: str, pause: Pause | None = None) -> object:
    """The document in ``data``.

    Args:
        data: All of it.
        what: For errors.
        pause: Where it is given, the document is read in slices, with this between them, and lists of numbers under
            ``"data"`` come as arrays: see `large_json`.

    Raises:
        InputError: It is no UTF-8, no JSON, or nested deeper than anything that the protocol asks for.
        LimitError: With ``pause``, it is large beside its lists of values.
    """
    try:
        if pause is not None:
            return read_document(str(data, "utf-8"), _decode_rest, pause)
        return _decode(str(data, "utf-8"))
    except UnicodeDecodeError as exc:
        raise InputError(f"{what} is no UTF-8: byte {exc.start} cannot be there") from exc
    except json.JSONDecodeError as exc:
        raise InputError(f"{what} is no JSON: {exc.msg} at character {exc.pos}") from exc
    except RecursionError as exc:
        raise InputError(f"{what} is nested too deeply") from exc
    except ValueError as exc:
        # Of numbers with thousands of digits, and of `_refuse_constant`.
        raise InputError(f"{what} is no JSON: {str(exc)[:200]}") from exc


def read_infer(document: object, chunks: Chunks | None = None, memory: Memory | None = None) -> InferBody:
    """An inference request out of its JSON document.

    Args:
        document: As parsed.
        chunks: The binary data behind the JSON; None when there are none.
        memory: Registered shared memory; None when the server has none.

    Raises:
        InputError: It is not as the protocol says.
        NotFoundError: It names a shared-memory region that is not registered.
    """
    if type(document) is not dict:
        raise InputError('the request is no JSON object: expected {"inputs": [...]}')
    inputs = document.get("inputs")
    if type(inputs) is not list:
        raise InputError(
            'the request has no "inputs": expected a list of tensors'
            if inputs is None
            else f'"inputs" is {_kind_of(inputs)}: expected a list of tensors'
        )
    arrays: dict[str, Array] = {}
    for tensor in inputs:
        name, array = _read_tensor(tensor, chunks, memory)
        if name in arrays:
            raise InputError(f"the request has the input {shown(name)} twice")
        arrays[name] = array
    body = InferBody(arrays)
    if (request_id := document.get("id")) is not None:
        if not isinstance(request_id, str):
            raise InputError(f'"id" is {_kind_of(request_id)}: expected a string')
        body.id = request_id
    if (outputs := document.get("outputs")) is not None:
        if type(outputs) is not list:
            raise InputError(f'"outputs" is {_kind_of(outputs)}: expected a list')
        body.outputs = [_read_wish(output) for output in outputs]
        if len({wish.name for wish in body.outputs}) < len(outputs):
            raise InputError("the request names an output twice")
    if parameters := document.get("parameters"):
        read_parameters(body, parameters)
    return body


def _read_tensor(tensor: object, chunks: Chunks | None, memory: Memory | None) -> tuple[str, Array]:
    if type(tensor) is not dict:
        raise InputError(f"an input is {_kind_of(tensor)}: expected an object with name, datatype, shape and data")
    name = _read_name(tensor, "an input")
    shape = decode_shape(tensor.get("shape"), name)
    kind = tensor.get("datatype")
    datatype = DATATYPES.get(kind) if isinstance(kind, str) else None
    if datatype is None:
        raise InputError(f"input {shown(name)}: {datatype_problem(kind)}")
    parameters = tensor.get("parameters")
    if not parameters:
        if "data" not in tensor:
            raise InputError(
                f'input {shown(name)} has neither "data" nor "binary_data_size" nor a shared-memory region'
            )
        return name, decode_values(datatype, shape, tensor["data"], name)
    if type(parameters) is not dict:
        raise InputError(f"the parameters of input {shown(name)} are {_kind_of(parameters)}: expected an object")
    region = read_region(parameters, name)
    size = parameters.get("binary_data_size")
    if region is None and size is None and "data" in tensor:
        return name, decode_values(datatype, shape, tensor["data"], name)
    if "data" in tensor or (region is not None and size is not None):
        raise InputError(f"input {shown(name)} comes in two ways: data, binary data and shared memory exclude another")
    if region is not None:
        if memory is None:
            raise InputError(f"input {shown(name)} is in shared memory, which this sidecar was told not to use")
        return name, decode_raw(datatype, shape, memory.read(region), name)
    if type(size) is not int or size < 0:
        raise InputError(
            f'input {shown(name)} has neither "data" nor "binary_data_size" nor a shared-memory region'
            if size is None
            else f"input {shown(name)} has the binary_data_size {shown(size)}: expected a number of bytes"
        )
    if chunks is None:
        raise InputError(
            f"input {shown(name)} has a binary_data_size, but the request has no Inference-Header-Content-Length"
        )
    return name, decode_raw(datatype, shape, chunks.take(size, name), name)


def datatype_problem(name: object) -> str:
    """What is wrong with a name that is no data type."""
    try:
        datatype_named(name)
    except InputError as exc:
        return exc.message
    return ""


def _read_wish(output: object) -> OutputWish:
    if type(output) is not dict:
        raise InputError(f"an output is {_kind_of(output)}: expected an object with a name")
    wish = OutputWish(_read_name(output, "an output"))
    parameters = output.get("parameters")
    if parameters:
        if type(parameters) is not dict:
            raise InputError(f"the parameters of output {shown(wish.name)} are {_kind_of(parameters)}")
        if (binary := parameters.get("binary_data")) is not None:
            wish.binary = _bool(binary, f"binary_data of output {shown(wish.name)}")
        wish.region = read_region(parameters, wish.name)
        if parameters.get("classification"):
            raise InputError(f"output {shown(wish.name)}: the classification extension is not part of this server")
    return wish


def read_region(parameters: Mapping[str, object], name: str) -> Region | None:
    """The shared-memory region that a tensor's parameters name; None when they name none.

    Raises:
        InputError: They are incomplete, or no sizes.
    """
    region = parameters.get("shared_memory_region")
    size = parameters.get("shared_memory_byte_size")
    offset = parameters.get("shared_memory_offset", 0)
    if region is None and size is None:
        return None
    if not isinstance(region, str) or type(size) is not int or type(offset) is not int or size < 0 or offset < 0:
        raise InputError(
            f"tensor {shown(name)} in shared memory needs shared_memory_region (text), shared_memory_byte_size and "
            "shared_memory_offset (numbers of bytes)"
        )
    return Region(region, offset, size)


def read_parameters(body: InferBody, parameters: object) -> None:
    """Puts a request's parameters where they belong in ``body``.

    Raises:
        InputError: They are no parameters, or ask for what this server does not do.
    """
    if not isinstance(parameters, Mapping):
        raise InputError(f'"parameters" is {_kind_of(parameters)}: expected an object')
    if len(parameters) > _MAX_PARAMETERS:
        raise InputError(f"the request has {len(parameters)} parameters, more than {_MAX_PARAMETERS}")
    others: dict[str, Parameter] = {}
    for key, value in parameters.items():
        if not isinstance(value, bool | int | float | str):
            raise InputError(f"the parameter {shown(key)} is {_kind_of(value)}: expected text, a number or a boolean")
        if key == "binary_data_output":
            body.binary_output = _bool(value, key)
        elif key == "priority":
            body.priority = _whole(value, key)
        elif key == "timeout":
            # In microseconds; 0 is the server's default.
            timeout_us = _whole(value, key)
            body.timeout_s = timeout_us / 1e6 if timeout_us else None
        elif key == "sequence_id" and value not in (0, ""):
            raise InputError(
                "this server keeps no sequences: a stateful model takes its state as an input and returns it as an "
                "output"
            )
        else:
            others[key] = value
    body.parameters = others


def _bool(value: object, what: str) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{what} is {shown(value)}: expected true or false")
    return value


def _whole(value: object, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise InputError(f"the parameter {what} is {shown(value)}: expected a whole number from 0 on")
    return value


def _read_name(tensor: Mapping[str, object], what: str) -> str:
    name = tensor.get("name")
    if not isinstance(name, str) or not name or len(name) > _MAX_NAME_CHARS:
        raise InputError(f"{what} has the name {shown(name)}: expected text")
    return name


def _kind_of(value: object) -> str:
    kinds = {
        dict: "an object",
        list: "a list",
        np.ndarray: "a list",
        str: "text",
        bool: "a boolean",
        type(None): "null",
    }
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


# -- writing


@dataclass(slots=True)
class EncodedAnswer:
    """An answer's bytes.

    Attributes:
        head: The JSON.
        buffers: The binary tensors that follow it, in order.
        header_length: Of the JSON, to be sent as Inference-Header-Content-Length; None when all of it is JSON.
    """

    head: bytes
    buffers: list[Buffer]
    header_length: int | None


@lru_cache(maxsize=4096)
def _quoted(text: str) -> str:
    return json.dumps(text)


def encode_answer(
    *,
    model: str,
    version: str,
    id: str,
    outputs: Mapping[str, Any],
    wishes: Sequence[OutputWish] = (),
    binary_output: bool = False,
    memory: Memory | None = None,
    parameters: Mapping[str, Parameter] | None = None,
    pause: Pause | None = None,
) -> EncodedAnswer:
    """Writes an answer.

    Outputs that no data type carries (sequences and maps of ONNX) are an error where they were asked for by name, and
    otherwise left out and named in the parameter ``omitted_outputs``.

    Args:
        model: Name of the model.
        version: Its version.
        id: Of the request; left out when empty.
        outputs: What the model gave, by name.
        wishes: What the request asked for; all outputs when empty.
        binary_output: For outputs without a wish of their own.
        memory: Where outputs with a region go.
        parameters: Of the answer.
        pause: Called between slices of large tensors that go into the JSON.

    Raises:
        InputError: An output cannot be given as it was asked for.
        NotFoundError: A region is not registered.
    """
    buffers: list[Buffer] = []
    parts: list[str] = []
    omitted: list[str] = []
    binary = False
    if wishes:
        wanted = [(wish.name, wish.binary, wish.region) for wish in wishes]
    else:
        wanted = [(name, None, None) for name in outputs]
    for name, as_binary, region in wanted:
        value = outputs[name]
        array = value if type(value) is np.ndarray else np.asarray(value) if isinstance(value, np.generic) else None
        datatype = datatype_of_array(array) if array is not None else None
        if array is None or datatype is None:
            if wishes or len(outputs) == 1:
                raise InputError(
                    f"output {shown(name)} is no tensor but {_onnx_kind(value)}, which this protocol cannot carry"
                )
            omitted.append(name)
            continue
        head = f'{{"name":{_quoted(name)},"datatype":"{datatype.name}","shape":{list(array.shape)},'
        if region is not None:
            if memory is None:
                raise InputError(
                    f"output {shown(name)} is wanted in shared memory, which this sidecar was told not to use"
                )
            data = encode_raw(array)
            memory.write(region, data)
            offset = f',"shared_memory_offset":{region.offset}' if region.offset else ""
            parts.append(
                f'{head}"parameters":{{"shared_memory_region":{_quoted(region.name)},'
                f'"shared_memory_byte_size":{len(data)}{offset}}}}}'
            )
        elif as_binary or (as_binary is None and binary_output):
            binary = True
            data = encode_raw(array)
            buffers.append(data)
            parts.append(f'{head}"parameters":{{"binary_data_size":{len(data)}}}}}')
        else:
            parts.append(f'{head}"data":{encode_json(array, name, pause)}}}')
    if omitted:
        parameters = {**(parameters or {}), "omitted_outputs": ", ".join(omitted)}
    text = (
        f'{{"model_name":{_quoted(model)},"model_version":"{version}",'
        + (f'"id":{json.dumps(id)},' if id else "")
        + (f'"parameters":{json.dumps(parameters)},' if parameters else "")
        + f'"outputs":[{",".join(parts)}]}}'
    )
    encoded = text.encode()
    return EncodedAnswer(encoded, buffers, len(encoded) if binary else None)


def _onnx_kind(value: object) -> str:
    if isinstance(value, list):
        return "a sequence"
    return "a map" if isinstance(value, dict) else "another value"
