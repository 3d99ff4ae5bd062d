"""Shared memory that applications bring along: mapped once, used by many calls.

Owns the mappings of one connection. A segment arrives as the descriptor of an anonymous file (``memfd``), so there is
no name to guess, to leave behind or to clean up: with the connection it is gone.

Invariants: a segment is sealed against shrinking before it is mapped, so that no access to it can fault. Tensors whose
elements an operator may use as indices are copied before the model sees them: the application may write to the memory
at any time, and an index that changes after the runtime has checked it reads somebody else's memory.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import Any

import numpy as np

from modelbox.errors import LimitError, ProtocolError

__all__ = ("Segments", "settled")

# fcntl names them from Python 3.9 on, where the C library did when it was built.
_F_GET_SEALS = getattr(fcntl, "F_GET_SEALS", 1034)
_SEALED = getattr(fcntl, "F_SEAL_SHRINK", 2)


class Segments:
    """The segments of one connection.

    Args:
        max_count: Most at a time.
        max_bytes: Most bytes of all together.
    """

    def __init__(self, *, max_count: int, max_bytes: int) -> None:
        self._maps: dict[int, mmap.mmap] = {}
        self._max_count = max_count
        self._max_bytes = max_bytes
        self.bytes = 0

    def add(self, number: int, size: int, fd: int) -> None:
        """Maps the descriptor, and closes it in any case.

        Raises:
            ProtocolError: It is not what the frame says, or not sealed.
            LimitError: There are too many already.
        """
        try:
            if not number or number in self._maps:
                raise ProtocolError(f"the segment number {number} is taken, or 0")
            if len(self._maps) >= self._max_count or self.bytes + size > self._max_bytes:
                raise LimitError(
                    f"no room for a segment of {size} bytes: a connection may have {self._max_count} segments "
                    f"and {self._max_bytes} bytes of them"
                )
            try:
                seals = fcntl.fcntl(fd, _F_GET_SEALS)
                actual = os.fstat(fd).st_size
                if not seals & _SEALED:
                    raise ProtocolError("a segment must be sealed against shrinking (F_SEAL_SHRINK)")
                if not 0 < size <= actual:
                    raise ProtocolError(f"a segment of {size} bytes came as a file of {actual}")
                self._maps[number] = mmap.mmap(fd, size)
            except (OSError, ValueError) as exc:
                raise ProtocolError(f"a segment that cannot be mapped: {type(exc).__name__}") from exc
            self.bytes += size
        finally:
            os.close(fd)

    def get(self, number: int) -> mmap.mmap:
        """The memory of a segment.

        Raises:
            ProtocolError: There is no such segment.
        """
        found = self._maps.get(number)
        if found is None:
            raise ProtocolError(f"there is no segment {number} on this connection")
        return found

    def drop(self, number: int) -> None:
        """Forgets a segment; calls that still use it keep its memory until they end."""
        found = self._maps.pop(number, None)
        if found is not None:
            self.bytes -= len(found)

    def clear(self) -> None:
        """Forgets all."""
        self._maps.clear()
        self.bytes = 0


def settled(inputs: dict[str, Any], *, everything: bool = False) -> dict[str, Any]:
    """Inputs from shared memory as a model may see them: what can be an index is copied.

    With ``everything`` all of them are, for answers that others get too: those must belong to what was looked at.
    """
    return {
        name: array.copy() if isinstance(array, np.ndarray) and (everything or array.dtype.kind in "iub") else array
        for name, array in inputs.items()
    }
