"""Memory for large answers: copied out of the segment that the sidecar wrote to, kept as long as somebody uses it.

Fresh memory for each answer would cost several times what the copy does, because the kernel clears it page by page. So
a piece whose arrays are gone is used for a later answer.

Invariants: a piece is used again only when no array, view or buffer refers to it any more. It is private memory: what a
forked child has of it stays what it was. What is kept for later answers is bounded; what is lent is the application's.
"""

from __future__ import annotations

import ctypes
import mmap
import weakref
from collections import deque
from typing import Any

__all__ = ("AnswerMemory",)

_KEPT_BYTES = 32 << 20
_SMALLEST_BYTES = 64 << 10


class AnswerMemory:
    """Pieces of memory for the answers of one connection.

    Concurrency: belongs to the thread of its connection; arrays may be dropped on any thread.
    """

    __slots__ = ("_free", "_free_bytes", "_lent", "_returned")

    def __init__(self) -> None:
        self._free: dict[int, list[mmap.mmap]] = {}
        self._free_bytes = 0
        self._lent: dict[int, tuple[weakref.ref[Any], mmap.mmap]] = {}
        self._returned: deque[weakref.ref[Any]] = deque()

    @property
    def free_bytes(self) -> int:
        """What is kept for later answers, as far as it is known to be free."""
        return self._free_bytes

    def lend(self, size: int) -> Any:
        """At least ``size`` bytes, as a buffer that numpy keeps alive and that ends with the last array on it."""
        self._collect()
        wanted = max(1 << (size - 1).bit_length(), _SMALLEST_BYTES)
        free = self._free.get(wanted)
        if free:
            memory = free.pop()
            self._free_bytes -= wanted
        else:
            memory = mmap.mmap(-1, wanted, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # numpy looks through a memoryview, to what is behind it; a ctypes array it keeps.
        lent = (ctypes.c_char * wanted).from_buffer(memory)
        # The callback may run on any thread, in the middle of anything.
        ref = weakref.ref(lent, self._returned.append)
        self._lent[id(ref)] = (ref, memory)
        return lent

    def _collect(self) -> None:
        while self._returned:
            _, memory = self._lent.pop(id(self._returned.popleft()))
            if self._free_bytes + len(memory) <= _KEPT_BYTES:
                self._free.setdefault(len(memory), []).append(memory)
                self._free_bytes += len(memory)
