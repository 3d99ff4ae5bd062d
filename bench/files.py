"""Large files of random bytes: nothing on the way can compress or share them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

__all__ = ("make_file", "renew")

_BLOCK_BYTES = 16 << 20


def make_file(path: Path, size_bytes: int, *, seed: int) -> Path:
    """Writes random bytes to a new file."""
    rng = np.random.default_rng(seed)
    with open(path, "wb", buffering=0) as file:
        for start in range(0, size_bytes, _BLOCK_BYTES):
            file.write(rng.bytes(min(_BLOCK_BYTES, size_bytes - start)))
    return path


def renew(path: Path, number: int) -> None:
    """Changes a file's first bytes, so that it is another content to whoever goes by digests."""
    with open(path, "r+b", buffering=0) as file:
        file.write(number.to_bytes(8, "big"))
