"""Headers of HTTP/2 for those who read and write frames themselves: the table shared with h2, literals for answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from hpack import Decoder

__all__ = ("HeaderDecoder", "literal")

Meaning = TypeVar("Meaning")

_KNOWN_BLOCKS = 64
_SIZE_UPDATES = frozenset(bytes((first,)) for first in range(0x20, 0x40))
"""How blocks begin that change the size of the table."""


class HeaderDecoder(Decoder, Generic[Meaning]):
    """A decoder that can be asked in advance, and knows blocks that it has seen.

    A block means the same as long as no other block has changed the table of headers: so long, what it means is kept.

    Args:
        read: What headers mean; None, or ValueError, for those that are nobody's here.
        max_bytes: Of one list of headers.
    """

    def __init__(self, read: Callable[[list[tuple[str, str]]], Meaning | None], max_bytes: int) -> None:
        super().__init__(max_bytes)
        self._read = read
        self._known: dict[bytes, Meaning] = {}
        self._ahead: Any = None

    def look(self, block: bytes) -> Meaning | None:
        """What the block means; None if nothing: then the next `decode`, of the same block, answers from memory.

        Raises:
            HPACKError: It does not decode; then nothing after it will.
        """
        head = self._known.get(block)
        if head is not None:
            return head
        entries = self.header_table.dynamic_entries
        # Additions come first; of equal ones, a new one is another object.
        count, newest = len(entries), entries[0] if entries else None
        headers = super().decode(block, raw=True)
        changed = len(entries) != count or (entries[0] if entries else None) is not newest or block[:1] in _SIZE_UPDATES
        if changed:
            self._known.clear()
        try:
            head = self._read([(name.decode(), value.decode()) for name, value in headers])
        except ValueError:
            head = None
        if head is None:
            self._ahead = headers
        elif not changed and len(self._known) < _KNOWN_BLOCKS:
            self._known[block] = head
        return head

    def decode(self, data: bytes, raw: bool = False) -> Any:
        """For h2."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            return ahead
        # Whatever this adds to the table, known blocks may mean something else afterwards.
        self._known.clear()
        return super().decode(data, raw)


def _length(size: int) -> bytes:
    """A length as HPACK writes it, with a prefix of seven bits."""
    if size < 127:
        return bytes((size,))
    out = bytearray((127,))
    size -= 127
    while size >= 128:
        out.append(size & 127 | 128)
        size >>= 7
    out.append(size)
    return bytes(out)


def literal(name: str, value: str) -> bytes:
    """A header that no table remembers."""
    return b"\0" + _length(len(name)) + name.encode() + _length(len(value.encode())) + value.encode()
