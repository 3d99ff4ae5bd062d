"""Shared memory for large tensors: made once, lent to one call after the other.

Owns the segments of one connection to the sidecar. They are anonymous files, sealed in their size; their descriptors
go to the sidecar with the frame that announces them, and nothing of them is visible in a file system.

Invariants: a segment is lent to one call until the sidecar has answered that call, even if nobody waits for it any
more. What is kept for later calls is bounded.
"""

from __future__ import annotations

import fcntl
import mmap
import os

from modelbox._frame_socket import FrameSocket
from modelbox._frames import HEADER, HEADER_BYTES, Kind, small_frame

__all__ = ("SHARED_FROM", "Segment", "SegmentPool")

SHARED_FROM = 64 << 10
"""Bytes of tensors from which shared memory is faster than the socket."""

_KEPT_BYTES = 64 << 20
_F_ADD_SEALS = getattr(fcntl, "F_ADD_SEALS", 1033)
_SEALS = 1 | 2 | 4  # against more seals, shrinking and growing


class Segment:
    """A piece of shared memory.

    Attributes:
        number: Its name on the connection.
        memory: Mapped in this process.
    """

    __slots__ = ("memory", "number", "size")

    def __init__(self, number: int, memory: mmap.mmap, size: int) -> None:
        self.number = number
        self.memory = memory
        self.size = size


class SegmentPool:
    """The segments of one connection.

    Args:
        socket: Takes the frames that announce them.
        max_count: Most that the sidecar allows.
        max_bytes: Most bytes of all together.
    """

    def __init__(self, socket: FrameSocket, *, max_count: int, max_bytes: int) -> None:
        self._socket = socket
        self._max_count = max_count if hasattr(os, "memfd_create") else 0
        self._max_bytes = max_bytes
        self._free: dict[int, list[Segment]] = {}
        self._free_bytes = 0
        self._numbers: set[int] = set()
        self._bytes = 0
        self._next = 0

    def take(self, size: int) -> Segment | None:
        """A segment of at least ``size`` bytes; None where there is no room for one more."""
        wanted = max(1 << (size - 1).bit_length(), SHARED_FROM)
        free = self._free.get(wanted)
        if free:
            self._free_bytes -= wanted
            return free.pop()
        if len(self._numbers) >= self._max_count or self._bytes + wanted > self._max_bytes:
            self._shrink(0)
            if len(self._numbers) >= self._max_count or self._bytes + wanted > self._max_bytes:
                return None
        return self._make(wanted)

    def give(self, segment: Segment) -> None:
        """Takes a segment back."""
        self._free.setdefault(segment.size, []).append(segment)
        self._free_bytes += segment.size
        if self._free_bytes > _KEPT_BYTES:
            self._shrink(_KEPT_BYTES)

    def clear(self) -> None:
        """Forgets all; those that are lent go when their calls do."""
        self._free.clear()
        self._numbers.clear()
        self._free_bytes = self._bytes = self._max_count = 0

    def _make(self, size: int) -> Segment | None:
        try:
            fd = os.memfd_create("modelbox", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError:
            return None
        try:
            try:
                os.ftruncate(fd, size)
                fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS)
                memory = mmap.mmap(fd, size)
            except OSError:
                return None
            while True:
                self._next = self._next % 0xFFFF + 1
                if self._next not in self._numbers:
                    break
            self._numbers.add(self._next)
            self._bytes += size
            frame = HEADER.pack(HEADER_BYTES + 8, Kind.SEGMENT, 0, 0, 0, self._next) + size.to_bytes(8, "little")
            self._socket.write_fd(frame, fd)
            return Segment(self._next, memory, size)
        finally:
            os.close(fd)

    def _shrink(self, keep: int) -> None:
        """Gives up free segments, the largest first, until no more than ``keep`` bytes of them are left."""
        for size in sorted(self._free, reverse=True):
            free = self._free[size]
            while free and self._free_bytes > keep:
                segment = free.pop()
                self._free_bytes -= size
                self._bytes -= size
                self._numbers.discard(segment.number)
                self._socket.write(small_frame(Kind.UNSEGMENT, target=segment.number))
