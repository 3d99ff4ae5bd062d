"""The bytes of a spool: framed records, each with its length and a checksum. No I/O.

A segment begins with `HEADER`; records follow, each a frame (length and CRC-32 of the body) and a body (kind, number,
content), little-endian throughout. Numbers grow inside a spool and may have gaps. Names (keys, ids of objects) are
written once per segment and referred to by their place, so that a point is 49 bytes and every segment can be read on
its own.

Refuses to decide what a damaged record means: `decode` says where the readable part ends, and why.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from modelbox.errors import InvalidError
from modelbox.objects import JsonValue

__all__ = (
    "HEADER",
    "MAX_BODY_BYTES",
    "Decoded",
    "FilesRecord",
    "OperationRecord",
    "PayloadPoint",
    "Points",
    "SpooledFile",
    "decode",
    "encode_files",
    "encode_name",
    "encode_operation",
    "encode_payload",
    "encode_point",
    "encode_points",
)

HEADER = b"modelbox spool 1"
"""At the beginning of each segment: what it is, and the version of what follows."""

MAX_BODY_BYTES = 64 << 20
"""A longer one is damage: nothing writes it."""

_NAME, _POINT, _POINTS, _PAYLOAD, _OPERATION, _FILES = 1, 2, 3, 4, 5, 6
_FRAME = struct.Struct("<II")
_HEAD = struct.Struct("<BQ")
_NAME_BODY = struct.Struct("<BQI")
_POINT_BODY = struct.Struct("<BQIIqqd")
_POINTS_BODY = struct.Struct("<BQIqq")
_PAYLOAD_BODY = struct.Struct("<BQIIqqB")
_POINT_FRAME = np.dtype(
    [
        ("length", "<u4"),
        ("crc", "<u4"),
        ("kind", "u1"),
        ("seq", "<u8"),
        ("object", "<u4"),
        ("key", "<u4"),
        ("step", "<i8"),
        ("time", "<i8"),
        ("value", "<f8"),
    ]
)
_PAIR = np.dtype([("key", "<u4"), ("value", "<f8")])
_MOST_AT_ONCE = 16384

_pack_frame = _FRAME.pack
_pack_point = _POINT_BODY.pack
_crc32 = zlib.crc32
_dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True, kw_only=True)
class SpooledFile:
    """One file of an artifact in the spool.

    Attributes:
        path: Its path in the artifact.
        local: Where it lies: below the spool's directory if it was copied, else absolute.
        size_bytes: When it was logged.
        mtime_ns: When it was logged; of files that were not copied, which may change.
        copied: Whether the spool has a copy of its own.
    """

    path: str
    local: str
    size_bytes: int
    mtime_ns: int
    copied: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationRecord:
    """An operation as JSON; see `modelbox.spool.operations`."""

    seq: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesRecord:
    """An artifact whose files are to be uploaded."""

    seq: int
    parent: str
    name: str
    files: tuple[SpooledFile, ...]
    labels: Mapping[str, str]
    metadata: Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadPoint:
    """One point whose value is text (kind 1) or bytes (kind 2)."""

    seq: int
    object: str
    key: str
    step: int
    time_us: int
    kind: int
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """Numbers, as columns of one length; ``objects`` and ``keys`` are places in the segment's names."""

    seqs: npt.NDArray[np.uint64]
    objects: npt.NDArray[np.uint32]
    keys: npt.NDArray[np.uint32]
    steps: npt.NDArray[np.int64]
    times_us: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.seqs)


@dataclass(slots=True, kw_only=True)
class Decoded:
    """What a stretch of a segment holds.

    Attributes:
        size_bytes: How much of it was read; what follows is the beginning of a record, nothing, or damage.
        damage: What is wrong at that place; empty where only bytes are missing.
        last_seq: The greatest number read; 0 for none.
        count: How many records carry a number.
    """

    points: list[Points] = field(default_factory=list)
    payloads: list[PayloadPoint] = field(default_factory=list)
    operations: list[OperationRecord] = field(default_factory=list)
    files: FilesRecord | None = None
    size_bytes: int = 0
    damage: str = ""
    last_seq: int = 0
    count: int = 0


# --- writing ---------------------------------------------------------------------------------------------------------


def _framed(body: bytes) -> bytes:
    return _pack_frame(len(body), _crc32(body)) + body


def encode_name(index: int, name: str) -> bytes:
    """The record that gives ``name`` its place in a segment."""
    return _framed(_NAME_BODY.pack(_NAME, 0, index) + name.encode())


def encode_point(seq: int, object_index: int, key_index: int, step: int, time_us: int, value: float) -> bytes:
    """One number.

    Raises:
        struct.error: A number does not fit into 64 bits.
    """
    body = _pack_point(_POINT, seq, object_index, key_index, step, time_us, value)
    return _pack_frame(41, _crc32(body)) + body


def encode_points(seq: int, object_index: int, step: int, time_us: int, pairs: list[tuple[int, float]]) -> bytes:
    """Numbers of several keys at one step."""
    flat = [item for pair in pairs for item in pair]
    return _framed(
        _POINTS_BODY.pack(_POINTS, seq, object_index, step, time_us) + struct.pack("<" + "Id" * len(pairs), *flat)
    )


def encode_payload(
    seq: int, object_index: int, key_index: int, step: int, time_us: int, kind: int, payload: bytes
) -> bytes:
    """One point of text or bytes."""
    return _framed(_PAYLOAD_BODY.pack(_PAYLOAD, seq, object_index, key_index, step, time_us, kind) + payload)


def encode_operation(seq: int, data: bytes) -> bytes:
    """One operation, as `modelbox.spool.operations` writes it."""
    return _framed(_HEAD.pack(_OPERATION, seq) + data)


def encode_files(record: FilesRecord) -> bytes:
    """One artifact."""
    text = _dumps(
        {
            "parent": record.parent,
            "name": record.name,
            "labels": dict(record.labels),
            "metadata": dict(record.metadata),
            "files": [[f.path, f.local, f.size_bytes, f.mtime_ns, f.copied] for f in record.files],
        }
    )
    return _framed(_HEAD.pack(_FILES, record.seq) + text.encode())


# --- reading ---------------------------------------------------------------------------------------------------------


def decode(data: bytes, names: dict[int, str], *, after_seq: int = 0, max_operations: int = 5000) -> Decoded:
    """Reads the records at the beginning of ``data``, up to an artifact, which is only returned alone.

    Args:
        data: From somewhere between two records of a segment.
        names: Of the segment so far; grows.
        after_seq: Records up to this number are passed over.
        max_operations: Where to stop.
    """
    out = Decoded()
    at, end = 0, len(data)
    while at + 8 <= end:
        length, crc = _FRAME.unpack_from(data, at)
        if not _HEAD.size <= length <= MAX_BODY_BYTES:
            out.damage = f"a record of {length} bytes"
            break
        if at + 8 + length > end:
            break
        kind, seq = _HEAD.unpack_from(data, at + 8)
        if kind == _POINT and length == _POINT_BODY.size:
            taken = _read_run(data, at, after_seq, out)
            if taken == 0:
                out.damage = "a wrong checksum"
                break
            at += taken
            continue
        body = data[at + 8 : at + 8 + length]
        if _crc32(body) != crc:
            out.damage = "a wrong checksum"
            break
        if seq <= after_seq and kind != _NAME:
            at += 8 + length
            continue
        if kind == _FILES and out.count:
            break
        if kind == _OPERATION and len(out.operations) == max_operations:
            break
        try:
            _read_one(kind, seq, body, names, out)
        except (ValueError, KeyError, IndexError, TypeError, struct.error, RecursionError) as exc:
            out.damage = f"a record of kind {kind} that cannot be read ({type(exc).__name__})"
            break
        at += 8 + length
        if kind != _NAME:
            out.last_seq = max(out.last_seq, seq)
            out.count += 1
        if kind == _FILES:
            break
    out.size_bytes = at
    return out


def _read_run(data: bytes, at: int, after_seq: int, out: Decoded) -> int:
    """Reads the points that lie one behind the other from ``at``; returns their size, 0 if the first is damaged."""
    count = min((len(data) - at) // _POINT_FRAME.itemsize, _MOST_AT_ONCE)
    step = 16
    run: npt.NDArray[Any] = np.frombuffer(data, _POINT_FRAME, count=min(step, count), offset=at)
    good = _good(run)
    while good == len(run) and len(run) < count:
        # Short runs are common: look further only where all so far are points.
        step *= 8
        run = np.frombuffer(data, _POINT_FRAME, count=min(step, count), offset=at)
        good = _good(run)
    checksums = run["crc"][:good].tolist()
    for number, crc in enumerate(checksums):
        begin = at + number * 49 + 8
        if _crc32(data[begin : begin + 41]) != crc:
            good = number
            break
    if good == 0:
        return 0
    size = good * _POINT_FRAME.itemsize
    run = run[:good]
    if int(run["seq"][0]) <= after_seq:
        run = run[run["seq"] > after_seq]
    if len(run):
        out.points.append(
            Points(
                seqs=run["seq"],
                objects=run["object"],
                keys=run["key"],
                steps=run["step"],
                times_us=run["time"],
                values=run["value"],
            )
        )
        out.last_seq = max(out.last_seq, int(run["seq"].max()))
        out.count += len(run)
    return size


def _good(run: npt.NDArray[Any]) -> int:
    same = (run["length"] == _POINT_BODY.size) & (run["kind"] == _POINT)
    return len(run) if same.all() else int(same.argmin())


def _read_one(kind: int, seq: int, body: bytes, names: dict[int, str], out: Decoded) -> None:
    if kind == _NAME:
        _, _, index = _NAME_BODY.unpack_from(body)
        names[index] = body[_NAME_BODY.size :].decode()
    elif kind == _POINTS:
        _, _, object_index, step, time_us = _POINTS_BODY.unpack_from(body)
        pairs = np.frombuffer(body, _PAIR, offset=_POINTS_BODY.size)
        count = len(pairs)
        out.points.append(
            Points(
                seqs=np.full(count, seq, np.uint64),
                objects=np.full(count, object_index, np.uint32),
                keys=pairs["key"],
                steps=np.full(count, step, np.int64),
                times_us=np.full(count, time_us, np.int64),
                values=pairs["value"],
            )
        )
    elif kind == _PAYLOAD:
        _, _, object_index, key_index, step, time_us, value_kind = _PAYLOAD_BODY.unpack_from(body)
        out.payloads.append(
            PayloadPoint(
                seq=seq,
                object=names[object_index],
                key=names[key_index],
                step=step,
                time_us=time_us,
                kind=value_kind,
                payload=body[_PAYLOAD_BODY.size :],
            )
        )
    elif kind == _OPERATION:
        out.operations.append(OperationRecord(seq=seq, data=body[_HEAD.size :]))
    elif kind == _FILES:
        read = json.loads(body[_HEAD.size :])
        record = FilesRecord(
            seq=seq,
            parent=read["parent"],
            name=read["name"],
            labels=read["labels"],
            metadata=read["metadata"],
            files=tuple(
                SpooledFile(path=path, local=local, size_bytes=size, mtime_ns=mtime_ns, copied=copied)
                for path, local, size, mtime_ns, copied in read["files"]
            ),
        )
        _check_files(record)
        out.files = record
    else:
        raise InvalidError(f"records of kind {kind} are not known: a newer ModelBox wrote this spool")


def _check_files(record: FilesRecord) -> None:
    """Refuses what no spool of ours says; above all copies elsewhere, which would be removed after their upload."""
    sound = isinstance(record.labels, dict) and isinstance(record.metadata, dict)
    values = (record.parent, record.name, *(record.labels.values() if sound else ()))
    sound = sound and all(isinstance(value, str) for value in values)
    for file in record.files:
        sound = sound and isinstance(file.path, str) and isinstance(file.local, str) and isinstance(file.copied, bool)
        sound = sound and type(file.size_bytes) is int and type(file.mtime_ns) is int and "\0" not in file.local
        if sound and file.copied:
            parts = file.local.split("/")
            sound = len(parts) > 1 and parts[0] == "files" and not {"", ".", ".."} & set(parts)
    if not sound:
        raise InvalidError("an artifact of a spool is not described as ModelBox does")
