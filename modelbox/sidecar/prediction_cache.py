"""Answers that were given before, by version and inputs.

Off by default: it pays where the same inputs come again and a run costs more than a hash of them. Right for every model
that gives the same outputs for the same inputs; a model that draws random numbers must not be served with it.

Invariants: an entry belongs to one digest, so a new version never answers with what an old one gave. Arrays that come
out cannot be written to. All entries together stay below the bound; the one that was not used for longest goes first.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np

from modelbox.loader.runner import Prediction

__all__ = ("CacheKey", "CachedPrediction", "PredictionCache", "input_key")

_ENTRY_BYTES = 512
"""What an entry costs beside its arrays."""


CacheKey = tuple[str, bytes]
"""The digest of a version, and `input_key` of inputs to it."""


class CachedPrediction(Prediction):
    """An answer that was given before."""

    __slots__ = ()


def input_key(digest: str, inputs: Mapping[str, Any]) -> bytes | None:
    """A key that is equal only for equal inputs to the same version; None for inputs that have none."""
    h = hashlib.blake2b(digest.encode(), digest_size=24)
    for name in sorted(inputs):
        value = inputs[name]
        if type(value) is not np.ndarray:
            return None
        h.update(f"\0{len(name)} {name} {value.dtype.str} {value.shape} ".encode())
        if value.dtype.kind == "O":
            for item in value.flat:
                if type(item) not in (str, bytes):
                    return None
                data = item.encode("utf-8", "surrogatepass") if type(item) is str else item
                h.update(b"%d%c" % (len(data), 115 if type(item) is str else 98))
                h.update(data)
        else:
            h.update(np.ascontiguousarray(value).data)
    return h.digest()


class PredictionCache:
    """A bounded table of answers.

    Args:
        max_bytes: Of all entries.

    Attributes:
        hits: Calls that were answered from it.
        misses: Calls that were not.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, tuple[CachedPrediction, int]] = OrderedDict()
        self.size_bytes = 0
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> CachedPrediction | None:
        """The answer under ``key``."""
        entry = self._entries.get(key)
        if entry is None:
            self.misses += 1
            return None
        self._entries.move_to_end(key)
        self.hits += 1
        return entry[0]

    def put(self, key: bytes, prediction: Prediction) -> None:
        """Keeps a copy of an answer, unless it is too large or no set of arrays."""
        kept = CachedPrediction()
        kept.version = prediction.version
        size = _ENTRY_BYTES
        for name, value in prediction.items():
            if type(value) is not np.ndarray:
                return
            size += value.nbytes
            if value.dtype.kind == "O":
                size += sum(len(str(item)) + 56 for item in value.flat)
            if size > self._max_bytes // 4:
                return
            # Outputs of a joined run are views of one array, which would be kept as a whole.
            kept[name] = copy = value.copy()
            copy.flags.writeable = False
        old = self._entries.pop(key, None)
        if old is not None:
            self.size_bytes -= old[1]
        self._entries[key] = (kept, size)
        self.size_bytes += size
        while self.size_bytes > self._max_bytes:
            self.size_bytes -= self._entries.popitem(last=False)[1][1]
