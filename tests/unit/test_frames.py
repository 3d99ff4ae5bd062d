"""The frames and tensors of the sidecar's socket: what goes in comes out, and garbage does no harm."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modelbox._frames import (
    HEADER,
    HEADER_BYTES,
    Flag,
    FrameReader,
    Kind,
    json_body,
    json_frame,
    small_frame,
)
from modelbox._tensors import CODES, Packer, pack_any, parse_layout
from modelbox.errors import InputError, LimitError, ModelBoxError, ProtocolError
from modelbox.signature import TensorSpec

NUMERIC = [code for code in CODES if code not in ("string", "value", "bfloat16")]


def feed(reader: FrameReader, data: bytes) -> list[tuple[int, int, int, int, int, bytearray]]:
    """All frames of ``data``, which is received in as few parts as fit."""
    frames = []
    while data:
        space = reader.space()
        part = data[: len(space)]
        space[: len(part)] = part
        frames += list(reader.feed(len(part)))
        data = data[len(part) :]
    return frames


def frame(body: bytes, id_: int = 1, words: int = 0) -> bytes:
    return HEADER.pack(HEADER_BYTES + len(body), Kind.INFER, 0, words, id_, 7) + body


bodies = st.one_of(
    st.integers(0, 40).map(lambda n: bytes(range(n % 256)) * 8),
    # Around the reader's first buffer and its later one, and far above them.
    st.sampled_from([2032, 2048, 4080, 4096, 255 << 10, (256 << 10) - 16, 256 << 10, 300 << 10, 1 << 20]).map(bytes),
)


@given(st.lists(bodies, max_size=6), st.lists(st.integers(1, 400 << 10), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_frames_come_out_however_they_are_cut(contents: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(frame(body, number) for number, body in enumerate(contents))
    reader = FrameReader()
    found = []
    at = turn = 0
    while at < len(stream):
        part = stream[at : at + cuts[turn % len(cuts)]]
        found += feed(reader, part)
        at, turn = at + len(part), turn + 1
    assert [(kind, id_, target) for kind, _, _, id_, target, _ in found] == [
        (Kind.INFER, number, 7) for number in range(len(contents))
    ]
    assert [bytes(body) for *_, body in found] == contents


@pytest.mark.parametrize("size", [0, 8, 15, 17, 23, (64 << 20) + 8, 0xFFFFFFF8])
def test_refuses_a_size_that_no_frame_has(size: int) -> None:
    with pytest.raises(ProtocolError):
        feed(FrameReader(), HEADER.pack(size, Kind.INFER, 0, 0, 1, 1))


def test_refuses_a_layout_that_is_longer_than_its_frame() -> None:
    with pytest.raises(ProtocolError, match="layout"):
        feed(FrameReader(), HEADER.pack(HEADER_BYTES + 8, Kind.INFER, 0, 2, 1, 1) + bytes(8))


def test_a_large_announcement_takes_no_memory() -> None:
    reader = FrameReader()
    assert feed(reader, HEADER.pack(64 << 20, Kind.INFER, 0, 0, 1, 1) + bytes(1000)) == []
    large = reader._large
    assert large is not None
    assert len(large[5]) == 1000


@given(st.binary(max_size=4096))
@settings(max_examples=300, deadline=None)
def test_a_stream_of_garbage_ends_in_a_protocol_error_or_in_frames(data: bytes) -> None:
    reader = FrameReader(max_frame_bytes=1 << 16)
    try:
        for *_, body in feed(reader, data):
            assert len(body) < 1 << 16
    except ProtocolError:
        pass


def test_json_frames() -> None:
    (received,) = feed(FrameReader(), json_frame(Kind.ERROR, {"code": "x", "text": "ä"}, 5, flags=Flag.GONE))
    kind, flags, _, id_, _, body = received
    assert (kind, flags, id_) == (Kind.ERROR, Flag.GONE, 5)
    assert json_body(body) == {"code": "x", "text": "ä"}
    assert len(small_frame(Kind.PONG)) == HEADER_BYTES


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff\xfe", b"1" * 5000, b"[" * 100_000])
def test_refuses_bodies_that_are_no_objects(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        json_body(body)


# -- tensors


def through(values: dict[str, Any]) -> dict[str, Any]:
    raw, parts = pack_any(values)
    assert len(raw) % 8 == 0
    return parse_layout(raw).read(b"".join(parts))


arrays = st.sampled_from(NUMERIC).flatmap(
    lambda code: hnp.arrays(code, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)


@given(st.lists(arrays, min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_arrays_come_back(values: list[np.ndarray[Any, Any]]) -> None:
    names = [f"tensor {number} ü" for number in range(len(values))]
    found = through(dict(zip(names, values, strict=True)))
    packer = Packer([TensorSpec(name=n, dtype=v.dtype.name, shape=()) for n, v in zip(names, values, strict=True)])
    raw, parts = packer.pack(values)
    again = parse_layout(raw).read(b"".join(parts))
    for name, value in zip(names, values, strict=True):
        for result in (found[name], again[name]):
            assert result.dtype == value.dtype
            assert result.shape == value.shape
            assert result.tobytes() == value.tobytes()


def test_arrays_are_written_to_memory_at_their_offsets() -> None:
    values: list[np.ndarray[Any, Any]] = [
        np.arange(3, dtype=np.uint8),
        np.arange(6, dtype=np.float64).reshape(2, 3)[:, ::-1],
    ]
    packer = Packer([TensorSpec(name="a", dtype="uint8", shape=(3,)), TensorSpec(name="b", dtype="float64", shape=())])
    layout = packer.layout(values)
    memory = bytearray(layout.size)
    layout.write(values, memory)
    found = layout.read(memory)
    np.testing.assert_array_equal(found["a"], values[0])
    np.testing.assert_array_equal(found["b"], values[1])


texts = st.text(max_size=20)


@given(hnp.arrays(object, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4), elements=texts))
@settings(max_examples=100, deadline=None)
def test_text_comes_back(value: np.ndarray[Any, Any]) -> None:
    found = through({"before": np.ones(3, np.int8), "text": value, "behind": np.ones(2)})
    assert found["text"].shape == value.shape
    assert found["text"].tolist() == value.tolist()
    np.testing.assert_array_equal(found["behind"], np.ones(2))


plain = st.one_of(st.none(), st.booleans(), st.integers(-(2**60), 2**60), texts, st.floats(allow_nan=False))


@given(
    st.recursive(
        plain,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4), st.dictionaries(st.one_of(texts, st.integers()), inner, max_size=4)
        ),
        max_leaves=12,
    )
)
@settings(max_examples=150, deadline=None)
def test_what_is_no_tensor_comes_back(value: Any) -> None:
    assert through({"value": value})["value"] == value


def test_a_sequence_of_arrays_comes_back() -> None:
    value = [np.arange(6, dtype=np.int64).reshape(2, 3), np.array(["a", "b"], object)]
    found = through({"sequence": value})["sequence"]
    np.testing.assert_array_equal(found[0], value[0])
    assert found[0].dtype == np.int64
    assert found[1].tolist() == ["a", "b"]


def test_refuses_what_cannot_be_told() -> None:
    with pytest.raises(InputError, match="set"):
        pack_any({"x": {1, 2}})
    with pytest.raises(InputError, match="element"):
        pack_any({"x": np.array([object()], object)})
    with pytest.raises(LimitError):
        pack_any({f"{number:0900}": np.ones(1) for number in range(600)})


def tensor(code: int, *shape: int, name: bytes = b"x", rank: int | None = None) -> bytes:
    raw = struct.pack("<HBBH", 1, code, len(shape) if rank is None else rank, len(name)) + name
    raw += struct.pack(f"<{len(shape)}Q", *shape)
    return raw + bytes(-len(raw) % 8)


FLOAT = CODES.index("float32")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x01",
        tensor(99, 1),
        tensor(FLOAT, 1, rank=40),
        tensor(FLOAT, 1, rank=3),
        tensor(FLOAT, 2**63),
        tensor(FLOAT, 2**32, 2**32),
        tensor(FLOAT, 2**40, 2**40, 0),
        tensor(FLOAT, 1, name=b"\xff"),
        tensor(FLOAT, 1) + bytes(8),
        tensor(FLOAT, 1)[:-1] + b"\x01",
        b"\x02\x00" + tensor(FLOAT, name=b"x")[2:7] + tensor(FLOAT, name=b"x")[2:7],
        b"\xff\xff" + bytes(6),
    ],
)
def test_refuses_layouts_that_say_impossible_things(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_layout(raw)


def test_refuses_data_that_is_too_short() -> None:
    layout = parse_layout(tensor(FLOAT, 4))
    with pytest.raises(ProtocolError, match="16 bytes"):
        layout.read(bytes(15))
    with pytest.raises(ProtocolError):
        layout.read(bytes(16), 8)


@given(st.binary(max_size=200), st.binary(max_size=200))
@settings(max_examples=500, deadline=None)
def test_garbage_in_layouts_and_data_is_refused_with_an_error_of_ours(raw: bytes, data: bytes) -> None:
    try:
        found = parse_layout(raw).read(data)
    except ModelBoxError:
        return
    assert isinstance(found, dict)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_bits_that_flip_are_refused_or_give_other_values(data: st.DataObject) -> None:
    raw, parts = pack_any({"a": np.ones((2, 3), np.float32), "b": np.array(["x", "yz"], object), "c": [1, {"k": 2}]})
    whole = bytearray(raw + b"".join(parts))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        parse_layout(bytes(whole[: len(raw)])).read(whole, len(raw))
    except ModelBoxError:
        return
