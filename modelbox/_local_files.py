"""Local files on their way into a version or an artifact: which ones, under which paths, with which digests.

Owns the walk (`collect`) and the reading of sizes and digests (`measure`). Everything here blocks; callers use threads.
Refuses paths that a manifest could not hold, special files, and links that lead out of the directory given.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from modelbox.errors import InvalidError
from modelbox.manifest import MAX_FILES, check_path
from modelbox.refs import Digest, shown

__all__ = ("FilesArgument", "LocalFile", "Progress", "collect", "measure", "media_type")

PathArgument = str | os.PathLike[str]
FilesArgument = PathArgument | Mapping[str, PathArgument] | Iterable[PathArgument]
"""A file, a directory, a mapping of path in the version to local path, or a list of files and directories."""

Progress = Callable[[int, int], None]
"""Bytes done, bytes in all."""

_BLOCK_BYTES = 1 << 20
# Fixed, not the system's table: the media type is part of what a manifest's digest covers.
_MEDIA_TYPES = {
    ".csv": "text/csv",
    ".json": "application/json",
    ".md": "text/markdown",
    ".onnx": "application/x-onnx",
    ".txt": "text/plain",
    ".wav": "audio/wav",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalFile:
    """A file as it was when it was read.

    Attributes:
        path: Where it goes, see `modelbox.manifest.check_path`.
        local: Where it lies.
    """

    path: str
    local: Path
    size_bytes: int
    digest: Digest

    @property
    def media_type(self) -> str:
        """By its name."""
        return media_type(self.path)


def media_type(path: str) -> str:
    """The media type that goes with a file's name."""
    return _MEDIA_TYPES.get(os.path.splitext(path)[1].lower(), "application/octet-stream")


def collect(files: FilesArgument) -> list[tuple[str, Path]]:
    """Which local file goes where, sorted by path.

    Raises:
        InvalidError: A file is missing, no regular file, named twice, named as no manifest allows, or a link that leads
            out of the directory given; or there is none, or too many.
    """
    found: dict[str, Path] = {}

    def add(path: str, local: Path) -> None:
        check_path(path)
        if path in found:
            raise InvalidError(f"two files would be {shown(path)}: {found[path]} and {local}", path=path)
        if len(found) == MAX_FILES:
            raise InvalidError(f"there are more than {MAX_FILES} files")
        found[path] = local

    if isinstance(files, Mapping):
        for path, local in files.items():
            target = _absolute(local)
            if _mode(target) != "file":
                raise InvalidError(f"{target} is not a regular file", path=str(target))
            add(path, target)
    else:
        listed = [files] if isinstance(files, str | os.PathLike) else list(files)
        for local in listed:
            target = _absolute(local)
            if _mode(target) == "file":
                add(target.name, target)
            elif _mode(target) == "directory":
                for below in _walk(target):
                    add(below.relative_to(target).as_posix(), below)
            else:
                raise InvalidError(f"{target} is neither a regular file nor a directory", path=str(target))
    if not found:
        raise InvalidError("there are no files: name a file, or a directory with files in it")
    return sorted(found.items())


def measure(path: str, local: Path, on_bytes: Callable[[int], None] | None = None) -> LocalFile:
    """Reads a file once, for its size and digest.

    Args:
        path: Where it goes.
        local: Where it lies.
        on_bytes: Called with the number of bytes read since the last call.

    Raises:
        InvalidError: It cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    block = memoryview(bytearray(_BLOCK_BYTES))
    try:
        with local.open("rb", buffering=0) as stream:
            while count := stream.readinto(block):
                digest.update(block[:count])
                size += count
                if on_bytes is not None:
                    on_bytes(count)
    except OSError as exc:
        raise InvalidError(f"{local} cannot be read: {exc.strerror}", path=str(local)) from exc
    return LocalFile(path=path, local=local, size_bytes=size, digest=Digest(f"sha256:{digest.hexdigest()}"))


def _absolute(local: PathArgument) -> Path:
    text = os.fspath(local)
    if not isinstance(text, str) or not text or "\0" in text:
        raise InvalidError(f"{shown(text)} is not a path of a file")
    return Path(os.path.abspath(os.path.expanduser(text)))


def _mode(target: Path) -> str:
    try:
        mode = target.stat().st_mode
    except OSError as exc:
        raise InvalidError(f"{target} cannot be read: {exc.strerror}", path=str(target)) from exc
    if stat.S_ISREG(mode):
        return "file"
    return "directory" if stat.S_ISDIR(mode) else "other"


def _walk(directory: Path) -> Iterable[Path]:
    """Regular files below ``directory``; links inside are followed to files, never to directories or outside."""
    root = directory.resolve()

    def failed(exc: OSError) -> None:
        raise InvalidError(f"{exc.filename} cannot be read: {exc.strerror}", path=str(exc.filename)) from exc

    for parent, directories, names in os.walk(directory, onerror=failed):
        directories.sort()
        for name in directories:
            if os.path.islink(os.path.join(parent, name)):
                raise InvalidError(f"{os.path.join(parent, name)} is a link to a directory: name that one instead")
        for name in sorted(names):
            local = Path(parent, name)
            if local.is_symlink() and not _inside(local, root):
                raise InvalidError(f"{local} is a link that leads out of {directory}", path=str(local))
            if _mode(local) != "file":
                raise InvalidError(f"{local} is not a regular file", path=str(local))
            yield local


def _inside(local: Path, root: Path) -> bool:
    try:
        return local.resolve(strict=True).is_relative_to(root)
    except (OSError, RuntimeError) as exc:
        raise InvalidError(f"{local} is a link that leads nowhere", path=str(local)) from exc
