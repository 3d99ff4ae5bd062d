"""The binary tensor data extension: JSON first, then the raw tensors, one behind the other.

Sans-I/O. Owns where the JSON ends and which bytes belong to which tensor. Refuses a body whose parts do not add up to
exactly what came.
"""

from __future__ import annotations

from modelbox.errors import InputError
from modelbox.refs import shown
from modelbox.sidecar.oip.datatypes import BYTES, datatype_of
from modelbox.sidecar.oip.json_body import InferBody, Memory, parse_json, read_infer
from modelbox.sidecar.oip.large_json import Pause
from modelbox.sidecar.oip.tensors import Buffer, decode_raw, elements_of
from modelbox.signature import Signature

__all__ = ("BinaryPart", "parse_header_length", "read_body", "read_raw")


class BinaryPart:
    """The bytes behind the JSON, taken one tensor at a time."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int, name: str) -> memoryview:
        """The next ``size`` bytes.

        Raises:
            InputError: There are fewer.
        """
        start, end = self._at, self._at + size
        if end > len(self._data):
            raise InputError(
                f"unexpected size for input {shown(name)}: expecting {end - len(self._data)} additional bytes"
            )
        self._at = end
        return self._data[start:end]

    def end(self) -> None:
        """Makes sure that nothing is left.

        Raises:
            InputError: There are bytes that no tensor took.
        """
        if self._at != len(self._data):
            raise InputError(f"unexpected additional input data: {len(self._data) - self._at} bytes belong to no input")


def parse_header_length(value: str | None, body_size: int) -> int | None:
    """The header Inference-Header-Content-Length as a number; None when it was not sent.

    Raises:
        InputError: It is no number of bytes, or more than the body has.
    """
    if value is None:
        return None
    text = value.strip()
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise InputError(f"Inference-Header-Content-Length is {shown(value)}: expected a number of bytes")
    length = int(text)
    if length > body_size:
        raise InputError(f"Inference-Header-Content-Length is {length}, but the body has only {body_size} bytes")
    return length


def read_body(
    body: Buffer, header_length: int | None = None, memory: Memory | None = None, pause: Pause | None = None
) -> InferBody:
    """An inference request out of a whole body.

    Args:
        body: JSON, or JSON and binary tensors.
        header_length: Bytes of the JSON; None when all of it is. 0 belongs to `read_raw`.
        memory: Registered shared memory.
        pause: For large ones: see `modelbox.sidecar.oip.json_body.parse_json`.

    Raises:
        InputError: The body is not as the protocol says.
        NotFoundError: It names a shared-memory region that is not registered.
    """
    if header_length is None:
        return read_infer(parse_json(body, "the request", pause), None, memory)
    view = memoryview(body)
    chunks = BinaryPart(view[header_length:])
    request = read_infer(parse_json(view[:header_length], "the request's JSON part", pause), chunks, memory)
    chunks.end()
    return request


def read_raw(body: Buffer, signature: Signature) -> InferBody:
    """A request without JSON (header length 0): the body is the model's one input; the answer is binary too.

    Raises:
        InputError: The model has another number of inputs, more than one free dimension, or the size does not fit.
    """
    if len(signature.inputs) != 1:
        raise InputError(
            f"a raw request is for models with one input, this one has {len(signature.inputs)}: send a JSON part"
        )
    (spec,) = signature.inputs
    datatype = datatype_of(spec.dtype)
    if datatype is None:
        raise InputError(f"input {shown(spec.name)} has the type {shown(spec.dtype)}, which the protocol cannot carry")
    free = [axis for axis, dim in enumerate(spec.shape) if not isinstance(dim, int) or dim < 0]
    if len(free) > 1:
        raise InputError(
            f"input {shown(spec.name)} has {len(free)} free dimensions ({spec}), so a raw request does not say which "
            "shape it has: send a JSON part"
        )
    shape = [dim if isinstance(dim, int) and dim >= 0 else 1 for dim in spec.shape]
    if datatype is BYTES:
        if elements_of(shape, spec.name) != 1:
            raise InputError(f"input {shown(spec.name)} has several BYTES elements: send a JSON part")
        data: Buffer = len(body).to_bytes(4, "little") + bytes(body)
    else:
        data = body
        if free:
            row = elements_of(shape, spec.name) * datatype.itemsize
            if not row or len(body) % row:
                raise InputError(
                    f"unexpected size for input {shown(spec.name)}: {len(body)} bytes are no multiple of {row}"
                )
            shape[free[0]] = len(body) // row
    return InferBody({spec.name: decode_raw(datatype, tuple(shape), data, spec.name)}, binary_output=True)
