"""Local files as a component of a dataset version: where they lie, how large they are, and their digest.

Reads every byte and keeps none. The digest of a directory covers the names, sizes and contents of all files below it,
so that the same data in the same files are the same component wherever and whenever they are recorded.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from modelbox._local_files import measure
from modelbox.errors import InvalidError
from modelbox.tracking import DatasetComponent

__all__ = ("local_component",)


def local_component(
    path: str | os.PathLike[str], *, rows: int | None = None, on_bytes: Callable[[int], None] | None = None
) -> DatasetComponent:
    """A file, or a directory with everything below it, as a component of type ``path``; blocks while it reads.

    ::

        await client.create_dataset_version("langtech/voices", [local_component("/data/voices")])

    Args:
        path: Absolute, or relative to the working directory; recorded as an absolute path.
        rows: How many records there are, if that is known.
        on_bytes: Called with the number of bytes read since the last call.

    Raises:
        InvalidError: There is nothing, or something that cannot be read.
    """
    target = Path(os.path.abspath(os.fspath(path)))
    if target.is_file():
        file = measure(target.name, target, on_bytes)
        digest, size = str(file.digest), file.size_bytes
    elif target.is_dir():
        whole, size = hashlib.sha256(), 0
        for below in sorted(_files(target), key=lambda file: file.relative_to(target).as_posix()):
            file = measure(below.name, below, on_bytes)
            name = below.relative_to(target).as_posix().encode(errors="surrogateescape")
            # A name may hold anything but NUL.
            whole.update(b"%s\0%d %s\n" % (name, file.size_bytes, file.digest.encode()))
            size += file.size_bytes
        digest = f"sha256:{whole.hexdigest()}"
    else:
        raise InvalidError(f"{target} is neither a regular file nor a directory", path=str(target))
    return DatasetComponent(type="path", location=str(target), digest=digest, size_bytes=size, rows=rows)


def _files(directory: Path) -> Iterator[Path]:
    """Regular files below; links to files count as files, links to directories are not followed."""

    def fail(error: OSError) -> None:
        raise InvalidError(f"{error.filename} cannot be read: {error.strerror}", path=str(error.filename)) from error

    for root, _, names in os.walk(directory, onerror=fail):
        for name in names:
            file = Path(root, name)
            if file.is_file():
                yield file
