"""Bytes that peers send: messages, frames, tensors, headers. They are read, or refused with an error of ours."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from hpack import Encoder
from hpack.exceptions import HPACKError
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from modelbox._frames import HEADER, FrameReader, Kind, json_body, json_frame
from modelbox._serving.headers import HeaderDecoder
from modelbox._serving.messages import GoogleMessages, decode_google
from modelbox._tensors import pack_any, parse_layout
from modelbox._transport.direct import direct_parts
from modelbox._transport.http import _upload_state
from modelbox._wire import decode_message
from modelbox._wire.errors import MAX_ERROR_BYTES, pack_error, unpack_error
from modelbox.errors import AuthError, InputError, InvalidError, LoadError, ModelBoxError, NotFoundError, ProtocolError
from modelbox.loader.safetensors import read_header
from modelbox.manifest import Manifest
from modelbox.objects import ModelVersion, NewVersion, from_json, to_json
from modelbox.runtime.rest.bodies import flag_of, int_of, time_of
from modelbox.runtime.rest.boundary import _check_origin
from modelbox.runtime.status import statuses_of
from modelbox.sidecar.oip.binary import parse_header_length, read_body
from modelbox.sidecar.oip.http_connection import parse_head
from modelbox.sidecar.oip.messages import decode_request, read_request
from modelbox.tracking import NewRun, Run
from tests.fuzzing import damaged, damaged_json, fuzzed, like, little_memory, nested
from tests.model_source import manifest_of, version_of
from tests.unit.loader.test_safetensors import tensors_of
from tests.unit.sidecar.oip.test_messages import raw
from tests.unit.sidecar.test_images import batch, described
from tests.unit.test_frames import feed
from tests.unit.test_wire import CASES as REGISTRY
from tests.unit.test_wire_tracking import CASES as TRACKING

GOOGLE = GoogleMessages("modelbox.v1")
CASES = {**REGISTRY, **TRACKING}
MIB = 1 << 20


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


# -- gRPC -----------------------------------------------------------------------------------------------------------


@fuzzed
@given(st.sampled_from(sorted(CASES)), st.data())
def test_messages_of_both_codecs(case: str, data: st.DataObject) -> None:
    pack, unpack, values = CASES[case]
    message = pack(data.draw(values))
    odd = data.draw(damaged([bytes(message)]))
    with contextlib.suppress(ModelBoxError):
        unpack(decode_message(type(message), odd))
    with contextlib.suppress(ModelBoxError):
        unpack(decode_google(getattr(GOOGLE, type(message).__name__), odd))


ERRORS = [
    NotFoundError("there is no ns/m", exists=["a"]),
    AuthError("no", role="writer"),
    ModelBoxError("x", a={"b": 1}),
]


@fuzzed
@given(st.integers(-1, 20), st.text(max_size=9), st.one_of(
    damaged([pack_error(error) for error in ERRORS]), damaged_json([error.to_dict() for error in ERRORS]).map(_json),
    st.sampled_from([nested(), b'{"code":"auth","message":"m","fields":{"self":1,"message":2,"cls":3}}']),
))  # fmt: skip
def test_the_trailer_of_errors(status: int, message: str, trailer: bytes) -> None:
    error = unpack_error(status, message, trailer)
    assert isinstance(error, ModelBoxError)
    assert str(error)
    statuses_of(error)
    # A server between the two passes it on.
    assert len(pack_error(error)) <= MAX_ERROR_BYTES


BLOCK = Encoder().encode(
    [(":path", "/a"), ("grpc-timeout", "5S"), ("authorization", "Bearer x" * 9), ("te", "trailers")]
)


@fuzzed
@given(st.lists(damaged([bytes(BLOCK), b"\x3f\xe1\x1f" + bytes(BLOCK)]), max_size=5), st.booleans())
def test_header_blocks(blocks: list[bytes], look: bool) -> None:
    decoder: HeaderDecoder[str] = HeaderDecoder(lambda headers: repr(headers) if headers else None, 1 << 14)
    with contextlib.suppress(HPACKError), little_memory(4 * MIB):
        for block in blocks:
            if not look or decoder.look(block) is None:
                decoder.decode(block, raw=True)


# -- the sidecar's socket -------------------------------------------------------------------------------------------

FRAMES = [json_frame(Kind.HELLO, {"protocol": 1, "name": "x"}), json_frame(Kind.OPEN, {"ref": "a/b@prod"}, 3, 4)]
HEAD, PARTS = pack_any(
    {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "t": np.array(["a", "ä"], object), "n": [1, {}]}
)


@fuzzed
@given(damaged([b"".join(FRAMES), HEADER.pack(64 << 20, Kind.INFER, 0, 0, 1, 1) + bytes(64)]), st.integers(1, 64))
def test_frames(data: bytes, cut: int) -> None:
    reader = FrameReader(max_frame_bytes=1 << 27)
    with contextlib.suppress(ProtocolError), little_memory(4 * MIB):
        for at in range(0, len(data), cut):
            for *_, body in feed(reader, data[at : at + cut]):
                json_body(body)


@fuzzed
@given(damaged([HEAD]), damaged([b"".join(PARTS)]))
def test_tensors_of_frames(head: bytes, data: bytes) -> None:
    with contextlib.suppress(ProtocolError, InputError), little_memory(8 * MIB):
        parse_layout(head).read(data)


# -- the open inference protocol ------------------------------------------------------------------------------------

INFER = {
    "id": "1",
    "parameters": {"priority": 1, "timeout": 5, "binary_data_output": True},
    "inputs": [
        {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [[1, 2], [3, 4.5]]},
        {"name": "t", "shape": [1], "datatype": "BYTES", "data": ["a"]},
        {"name": "b", "shape": [2], "datatype": "INT32", "parameters": {"binary_data_size": 8}},
    ],
    "outputs": [{"name": "y", "parameters": {"binary_data": True, "classification": 0}}],
}


@fuzzed
@given(st.one_of(damaged([_json(INFER)]), damaged_json([INFER]).map(_json), st.just(nested())), st.binary(max_size=16),
       like("5", "+1", "99999999999999999999"))  # fmt: skip
def test_bodies_of_the_inference_protocol(head: bytes, tail: bytes, length: str) -> None:
    for header in (len(head), None):
        with contextlib.suppress(InputError, NotFoundError), little_memory(8 * MIB):
            read_body(head + (tail if header is not None else b""), header)
    with contextlib.suppress(InputError):
        assert (parse_header_length(length, 1000) or 0) <= 1000


MESSAGE = raw(np.arange(4, dtype=np.float32).reshape(2, 2))
MESSAGE.parameters["priority"].int64_param = 2


@fuzzed
@given(damaged([MESSAGE.SerializeToString()]))
def test_messages_of_the_inference_protocol(data: bytes) -> None:
    with contextlib.suppress(InvalidError, InputError, NotFoundError), little_memory(8 * MIB):
        read_request(decode_request(data), None)


REQUEST = b"POST /v2/models/m/infer?x=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\nConnection: keep-alive\r\n\r\nbody"


@fuzzed
@given(damaged([REQUEST]))
def test_heads_of_requests(data: bytes) -> None:
    head = parse_head(data)
    if head is not None:
        assert head.method in ("GET", "POST")
        assert head.path.startswith("/")
        assert 0 <= head.length < 10**15


def picture(form: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(72, dtype=np.uint8).reshape(4, 6, 3)).save(file, form)
    return file.getvalue()


@fuzzed
@given(damaged([picture("PNG"), picture("JPEG"), picture("GIF")]))
def test_images(data: bytes) -> None:
    with contextlib.suppress(InputError), little_memory(600 * MIB):
        described({}).decode(batch(data))


# -- JSON and HTTP --------------------------------------------------------------------------------------------------

MANIFEST = manifest_of({"a/m.onnx": b"1", "b": b"2"}, entrypoint="a/m.onnx")
OBJECTS: Mapping[type, Any] = {
    ModelVersion: to_json(version_of(MANIFEST)),
    NewVersion: {
        "namespace": "ns",
        "model": "m",
        "manifest": to_json(MANIFEST),
        "labels": {"a": "b"},
        "aliases": ["x"],
    },
    Run: {field.name: None for field in fields(Run)},
    NewRun: {"experiment": "n/e", "name": "x", "started_at": "2026-05-03T10:00:00Z", "params": {"a": [1]}, "tags": {}},
}


@fuzzed
@given(st.sampled_from(list(OBJECTS)).flatmap(lambda cls: st.tuples(st.just(cls), damaged_json([OBJECTS[cls]]))))
def test_objects_as_json(case: tuple[type, Any]) -> None:
    cls, document = case
    with contextlib.suppress(ModelBoxError):
        found: Any = from_json(cls, document)
        assert isinstance(found, cls)


@fuzzed
@given(st.one_of(damaged([MANIFEST.to_json()]), damaged_json([json.loads(MANIFEST.to_json())]).map(_json)))
def test_manifests(data: bytes) -> None:
    with contextlib.suppress(ModelBoxError):
        found = Manifest.from_json(data)
        assert Manifest.from_json(found.to_json()) == found


@fuzzed
@given(damaged([tensors_of(a=[[1, 2], [3, 4]], b=5.0)]))
def test_headers_of_safetensors(data: bytes) -> None:
    with contextlib.suppress(LoadError), little_memory(4 * MIB):
        tensors, _ = read_header(data, len(data))
        assert all(0 <= tensor.begin <= tensor.end <= len(data) for tensor in tensors)


@fuzzed
@given(like("17", "-3", "true", "2026-05-03T10:00:00Z", "0001-01-01", "9999-12-31T23:59:59-23:59"))
def test_query_parameters(text: str) -> None:
    class Asked:
        query: Mapping[str, str] = {"x": text}

    request: Any = Asked()
    readers: list[Callable[[], Any]] = [
        lambda: int_of(request, "x", 0), lambda: flag_of(request, "x"), lambda: time_of(request, "x"),
    ]  # fmt: skip
    for read in readers:
        with contextlib.suppress(InvalidError):
            read()


@fuzzed
@given(
    like("http://127.0.0.1:8080", "http://[::1]:8080", "null", "http://["), like("127.0.0.1:8080", "[::1]:8080", "[")
)
def test_origins_and_hosts(origin: str, host: str) -> None:
    class Asked:
        headers: Mapping[str, str] = {"Origin": origin, "Host": host}

    request: Any = Asked()
    with contextlib.suppress(AuthError):
        _check_origin(request, loopback=True)


UPLOAD = {"upload_id": "u", "offset": 5, "complete": False}
DIRECT = {"parts": [{"offset": 0, "size_bytes": 5, "url": "https://h/x?a=b", "headers": {"a": "b"}}]}


@fuzzed
@given(damaged_json([UPLOAD, DIRECT]))
def test_answers_to_uploads(document: Any) -> None:
    if isinstance(document, dict):
        for read in (_upload_state, direct_parts):
            with contextlib.suppress(ProtocolError):
                read(document, "the server")
