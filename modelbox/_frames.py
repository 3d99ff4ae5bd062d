"""The frames of the sidecar's Unix socket: what both of its ends agree on, without any I/O.

Owns the frame header, the kinds of frames, the fixed part of a call, and `FrameReader`, which cuts a stream of bytes
into frames. What stands in a frame's tensors is in `modelbox._tensors`. ``docs/protocol.md`` describes all of it for
other languages.

A frame is a header of 16 bytes and a body, little-endian, a multiple of 8 bytes long::

    u32 size      of the whole frame, header included
    u8  kind      see `Kind`
    u8  flags     see `Flag`
    u16 words     length of the layout in the body, in units of 8 bytes
    u32 id        of the request that is made or answered; 0 for what nobody asked for
    u32 target    a handle, a generation or a segment, by kind

Invariants: a reader keeps no more than it was sent, so that a header which announces much costs nothing. A frame that
breaks the rules ends the connection, because nobody knows where the next one begins; what is wrong inside of a whole
frame is the answer to that frame.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from enum import IntEnum, IntFlag
from typing import Any

from modelbox.errors import ProtocolError

__all__ = (
    "CALL",
    "CALL_BYTES",
    "HEADER",
    "HEADER_BYTES",
    "MAX_FRAME_BYTES",
    "PROTOCOL",
    "Flag",
    "Frame",
    "FrameReader",
    "Kind",
    "json_body",
    "json_frame",
    "small_frame",
)

PROTOCOL = 1
"""Version of the protocol; both ends say theirs and the smaller one holds."""

HEADER = struct.Struct("<IBBHII")
HEADER_BYTES = HEADER.size
CALL = struct.Struct("<IBBHIIQIHH")
"""Header and fixed part of an `Kind.INFER` frame: lease (0 for none), milliseconds until the caller gives up (0 for
never), segment that holds the inputs, segment that takes the outputs (0 for none)."""
CALL_BYTES = CALL.size

MAX_FRAME_BYTES = 64 << 20
_FIRST_BYTES = 4 << 10
"""Of a reader's buffer, until more than half of that comes at once: a sidecar has many connections that are idle."""
_BUFFER_BYTES = 256 << 10

Frame = tuple[int, int, int, int, int, bytearray]
"""Kind, flags, words, id, target and body; a plain tuple, because one is made for every call."""


class Kind(IntEnum):
    """What a frame is. Below 64 the application sends it, from 64 on the sidecar."""

    HELLO = 1
    OPEN = 2
    INFER = 3
    CANCEL = 4
    LEASE = 5
    RELEASE = 6
    SEGMENT = 7
    UNSEGMENT = 8
    CLOSE = 9
    PING = 10
    WELCOME = 65
    OPENED = 66
    RESULT = 67
    ERROR = 68
    LEASED = 69
    VERSION = 70
    EVENT = 71
    STATE = 72
    PONG = 73
    GOAWAY = 74


class Flag(IntFlag):
    """How a frame is meant."""

    SHARED = 1
    """Of a `Kind.RESULT`: its data is in the segment that the call named."""
    GONE = 2
    """Of a `Kind.ERROR`: the handle or lease of the call does not exist (any more); open it again."""
    TOO_LARGE = 4
    """Of a `Kind.ERROR`: the answer does not fit into a frame; ``fields["size_bytes"]`` says what it needs."""


def small_frame(kind: Kind, id: int = 0, target: int = 0, *, flags: int = 0) -> bytes:
    """A frame without a body."""
    return HEADER.pack(HEADER_BYTES, kind, flags, 0, id, target)


def json_frame(kind: Kind, body: object, id: int = 0, target: int = 0, *, flags: int = 0) -> bytes:
    """A frame whose body is JSON, filled up with spaces."""
    data = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    data += b" " * (-len(data) % 8)
    return HEADER.pack(HEADER_BYTES + len(data), kind, flags, 0, id, target) + data


def json_body(body: bytes | bytearray) -> dict[str, Any]:
    """What `json_frame` wrote.

    Raises:
        ProtocolError: It is no JSON object.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise ProtocolError(f"the body of a frame is not JSON: {type(exc).__name__}") from exc
    if not isinstance(value, dict):
        raise ProtocolError(f"the body of a frame is a JSON {type(value).__name__}, expected an object")
    return value


class FrameReader:
    """Cuts received bytes into frames.

    ::

        n = socket.recv_into(reader.space())
        for kind, flags, words, id, target, body in reader.feed(n):
            ...

    Args:
        max_frame_bytes: What is longer is refused at its header.
    """

    __slots__ = ("_buffer", "_end", "_large", "_max", "_missing", "_start", "_view")

    def __init__(self, *, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._buffer = bytearray(_FIRST_BYTES)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._max = max_frame_bytes
        # A frame that does not fit into the buffer: its header, what is here of its body, and how much is not.
        self._large: tuple[int, int, int, int, int, bytearray] | None = None
        self._missing = 0

    @property
    def more(self) -> bool:
        """Whether there is anything behind the frame that `feed` gave last."""
        return self._start != self._end

    def space(self) -> memoryview:
        """Where the next bytes go; never empty. Only once `feed` was read to its end."""
        size = len(self._buffer)
        small = size < _BUFFER_BYTES
        if (self._end > size // 2 and (self._start or small)) or (small and self._large is not None):
            rest = bytes(self._view[self._start : self._end])
            if small:
                self._buffer = bytearray(_BUFFER_BYTES)
                self._view = memoryview(self._buffer)
            self._buffer[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        return self._view[self._end :]

    def feed(self, received: int) -> Iterator[Frame]:
        """The frames that are complete with ``received`` more bytes in `space`.

        Raises:
            ProtocolError: A header that no peer may send; nothing more can be read.
        """
        self._end += received
        if self._large is not None:
            yield from self._grow()
        view, unpack = self._view, HEADER.unpack_from
        while self._end - self._start >= HEADER_BYTES:
            start = self._start
            size, kind, flags, words, id_, target = unpack(view, start)
            if size < HEADER_BYTES or size & 7 or size > self._max:
                raise ProtocolError(
                    f"a frame of {size} bytes: expected a multiple of 8 from {HEADER_BYTES} to {self._max}",
                    size_bytes=size,
                )
            if HEADER_BYTES + words * 8 > size:
                raise ProtocolError(f"a frame of {size} bytes says that its layout alone has {words * 8}")
            stop = start + size
            if stop > self._end:
                if size > _BUFFER_BYTES:
                    body = bytearray(view[start + HEADER_BYTES : self._end])
                    self._large = (kind, flags, words, id_, target, body)
                    self._missing = stop - self._end
                    self._start = self._end = 0
                break
            self._start = stop
            yield kind, flags, words, id_, target, bytearray(view[start + HEADER_BYTES : stop])
        if self._start == self._end:
            self._start = self._end = 0

    def _grow(self) -> Iterator[Frame]:
        frame = self._large
        assert frame is not None
        part = min(self._missing, self._end)
        frame[5].extend(self._view[:part])
        self._missing -= part
        if self._missing:
            self._end = 0
            return
        self._large = None
        self._start = part
        yield frame
