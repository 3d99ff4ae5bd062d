"""Answers to calls and questions, as frames.

Owns how outputs and errors are written: into the frame, or into the segment that the call brought for them. Decides
nothing about calls: `modelbox.sidecar.socket.calls` does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from modelbox._frames import HEADER, HEADER_BYTES, MAX_FRAME_BYTES, Flag, Kind, json_frame
from modelbox._tensors import parts_of
from modelbox.errors import (
    ClientClosed,
    DeadlineExceeded,
    LimitError,
    ModelBoxError,
    NotFoundError,
    ServerBusy,
    UsageError,
)
from modelbox.sidecar.socket.handles import KnownVersion
from modelbox.sidecar.socket.segments import Segments

__all__ = ("Answers", "Gone", "TooLarge", "cancelled", "error_frame")

_log = logging.getLogger(__name__)

_SHARED_FROM = 64 << 10
# Looking up a member of an enumeration costs more than comparing two numbers.
_RESULT, _SHARED = int(Kind.RESULT), int(Flag.SHARED)


class Gone(NotFoundError):
    """The application's handle or lease is not known: it has to open it again."""


class TooLarge(LimitError):
    """The answer does not fit into a frame, and there is no segment that it fits into."""

    def __init__(self, size: int) -> None:
        super().__init__(f"the answer has {size} bytes and does not fit", size_bytes=size)


def cancelled() -> DeadlineExceeded:
    """What a call gets that the application does not want any more."""
    return DeadlineExceeded("the call was cancelled")


class Answers:
    """Writes the answers of one connection.

    Args:
        write: Takes whole frames.
        segments: Of the connection.
    """

    __slots__ = ("_segments", "_write")

    def __init__(self, write: Callable[[bytes], None], segments: Segments) -> None:
        self._write = write
        self._segments = segments

    def result(self, id_: int, known: KnownVersion, outputs: Sequence[Any], into: int) -> None:
        """Answers a call with the outputs of ``known``, or with why they cannot be sent.

        Args:
            id_: Of the call.
            known: What answered.
            outputs: In the order of its signature.
            into: Number of the segment for them; 0 for none.
        """
        try:
            self._result(id_, known, outputs, into)
        except Exception as exc:
            self.error(id_, exc)

    def _result(self, id_: int, known: KnownVersion, outputs: Sequence[Any], into: int) -> None:
        packer = known.packer
        if not packer.plain:
            raw, parts = packer.pack(outputs)
            data = b"".join(parts)
            size = HEADER_BYTES + len(raw) + len(data)
            if size > MAX_FRAME_BYTES:
                raise LimitError(
                    f"an answer of {len(data)} bytes with text or lists in it: at most {MAX_FRAME_BYTES} fit"
                )
            self._write(HEADER.pack(size, _RESULT, 0, len(raw) >> 3, id_, known.number) + raw + data)
            return
        layout = packer.layout(outputs)
        raw, data_bytes = layout.raw, layout.size
        if into and data_bytes >= _SHARED_FROM:
            memory = self._segments.get(into)
            if data_bytes <= len(memory):
                layout.write(outputs, memory)
                size = HEADER_BYTES + len(raw)
                self._write(HEADER.pack(size, _RESULT, _SHARED, len(raw) >> 3, id_, known.number) + raw)
                return
        size = HEADER_BYTES + len(raw) + data_bytes
        if size > MAX_FRAME_BYTES:
            raise TooLarge(data_bytes)
        head = HEADER.pack(size, _RESULT, 0, len(raw) >> 3, id_, known.number)
        if len(outputs) == 1 and not data_bytes & 7:
            self._write(b"".join((head, raw, outputs[0].tobytes())))
        else:
            self._write(b"".join([head, raw, *parts_of(layout, outputs)]))

    def error(self, id_: int, error: BaseException) -> None:
        """Answers a call or a question with an error."""
        self._write(error_frame(id_, error))


def error_frame(id_: int, error: BaseException) -> bytes:
    """The ERROR frame for ``error``; what is not meant for applications goes to the log."""
    flags = Flag(0)
    if isinstance(error, Gone):
        flags = Flag.GONE
    elif isinstance(error, TooLarge):
        flags = Flag.TOO_LARGE
    if isinstance(error, ModelBoxError):
        body = error.to_dict()
    elif isinstance(error, ClientClosed):
        flags = Flag.GONE
        body = ServerBusy("the model is being taken out of service").to_dict()
    else:
        _log.error("a call over the socket failed", exc_info=error)
        kind = "usage" if isinstance(error, UsageError) else "internal"
        body = ModelBoxError(f"the sidecar failed ({kind} error): its log says why").to_dict()
    try:
        return json_frame(Kind.ERROR, body, id_, flags=flags)
    except (TypeError, ValueError):
        return json_frame(Kind.ERROR, {**body, "fields": {}}, id_, flags=flags)
