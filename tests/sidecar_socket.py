"""The sidecar's Unix socket without our client, for tests: frames are written and read by hand."""

from __future__ import annotations

import socket
from typing import Any

from modelbox._frames import CALL, CALL_BYTES, FrameReader, Kind, json_body, json_frame
from modelbox._tensors import pack_any
from tests.sidecar import SidecarProcess


class Raw:
    """A connection spoken by hand, frame by frame.

    Args:
        sidecar: Whose socket it is.
    """

    def __init__(self, sidecar: SidecarProcess) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(str(sidecar.socket_path))
        self._reader = FrameReader()
        self._frames: list[tuple[int, int, int, int, int, bytearray]] = []

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes, fd: int | None = None) -> None:
        if fd is None:
            self.sock.sendall(data)
        else:
            socket.send_fds(self.sock, [data], [fd])

    def next(self) -> tuple[int, int, int, int, int, bytearray]:
        while not self._frames:
            n = self.sock.recv_into(self._reader.space())
            if not n:
                raise EOFError
            self._frames += self._reader.feed(n)
        return self._frames.pop(0)

    def until(self, kind: Kind) -> tuple[int, int, int, int, int, bytearray]:
        while (frame := self.next())[0] != kind:
            pass
        return frame

    def hello(self) -> Raw:
        self.send(json_frame(Kind.HELLO, {"protocol": 1}))
        assert json_body(self.until(Kind.WELCOME)[5])["protocol"] == 1
        return self

    def open(self, ref: str) -> int:
        self.send(json_frame(Kind.OPEN, {"ref": ref}, 1))
        return self.until(Kind.OPENED)[4]


def infer(
    handle: int, values: dict[str, Any], id_: int = 2, *, segment: int = 0, lease: int = 0, timeout_ms: int = 0
) -> bytes:
    raw, parts = pack_any(values)
    data = b"" if segment else b"".join(parts)
    total = CALL_BYTES + len(raw) + len(data)
    return CALL.pack(total, Kind.INFER, 0, len(raw) >> 3, id_, handle, lease, timeout_ms, segment, 0) + raw + data


def error_of(raw: Raw) -> str:
    return str(json_body(raw.until(Kind.ERROR)[5])["code"])
