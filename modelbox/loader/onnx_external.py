"""What a tensor may say about data outside of its model file: a range of a regular file of the same version.

Owns that rule. Older runtimes read any file of the host through such a reference, newer ones follow hard links and
addresses in memory; none of them is asked before this was.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from modelbox.errors import InvalidError, ModelInvalid
from modelbox.manifest import Manifest, check_path
from modelbox.refs import shown

__all__ = ("ExternalData",)

_KEYS = ("checksum", "length", "location", "offset")
_NUMBER = re.compile(r"[0-9]{1,18}")
# onnxruntime takes a location with this in it for an address in its own memory.
_MEMORY_TAG = "_ORT_MEM_ADDR_"


class ExternalData:
    """Checks references of one model file, and remembers where they lead.

    Args:
        path: The model file.
        manifest: What its version is made of; without one, what lies beside it counts.
        entry: The manifest's path of the model file; by default the longest one that ``path`` ends with.

    Raises:
        ModelInvalid: The model file is not in the manifest.
    """

    def __init__(self, path: Path, manifest: Manifest | None, entry: str | None) -> None:
        self._directory = path.parent
        self._manifest = manifest
        if manifest is None:
            self._above = PurePosixPath()
        else:
            self._above = PurePosixPath(_entry(path, manifest, entry)).parent
        self.files: set[str] = set()

    def check(self, tensor: str, pairs: Sequence[tuple[str, str]], expected_bytes: int | None) -> None:
        """Refuses a reference that is not to a range of a file of the version.

        Args:
            tensor: Its name, for the error.
            pairs: Keys and values of the reference, as they stand in the file.
            expected_bytes: What the tensor's type and dimensions ask for; None if that is not known.

        Raises:
            ModelInvalid: What is wrong with it.
        """
        entries = dict(pairs)
        if len(entries) < len(pairs):
            raise _refuse(tensor, "it says one thing twice")
        for key in entries:
            if key not in _KEYS:
                raise _refuse(tensor, f"the key {shown(key)} is none of {', '.join(_KEYS)}")
        name, size = self._file(tensor, entries.get("location", ""))
        offset = _number(tensor, entries, "offset") or 0
        length = _number(tensor, entries, "length")
        if expected_bytes is not None:
            if length is not None and length != expected_bytes:
                raise _refuse(tensor, f"it has {length} bytes where type and shape ask for {expected_bytes}")
            length = expected_bytes
        if offset + (length or 0) > size:
            raise _refuse(tensor, f"it wants bytes {offset} to {offset + (length or 0)} of {shown(name)}, of {size}")
        self.files.add(name)

    def _file(self, tensor: str, location: str) -> tuple[str, int]:
        """The referenced file's path in the version, and its size."""
        if not location:
            raise _refuse(tensor, "it names no file")
        if _MEMORY_TAG in location:
            raise _refuse(tensor, f"{shown(location)} is an address in memory")
        try:
            check_path(location)
        except InvalidError as exc:
            raise _refuse(tensor, str(exc)) from exc
        name = str(self._above / location)
        declared = None
        if self._manifest is not None:
            listed = self._manifest.file(name)
            if listed is None:
                raise _refuse(tensor, f"{shown(name)} is not a file of this version")
            declared = listed.size_bytes
        segments = location.split("/")
        for depth in range(1, len(segments)):
            self._lstat(tensor, name, self._directory.joinpath(*segments[:depth]))
        status = self._lstat(tensor, name, self._directory / location)
        if not stat.S_ISREG(status.st_mode):
            raise _refuse(tensor, f"{shown(name)} is not a regular file")
        if declared is not None and status.st_size != declared:
            raise _refuse(tensor, f"{shown(name)} has {status.st_size} bytes, its manifest declares {declared}")
        return name, status.st_size

    def _lstat(self, tensor: str, name: str, path: Path) -> os.stat_result:
        try:
            status = os.lstat(path)
        except OSError as exc:
            raise _refuse(tensor, f"{shown(name)} cannot be read: {exc.strerror}") from exc
        if stat.S_ISLNK(status.st_mode):
            raise _refuse(tensor, f"{shown(name)} leads through a symbolic link")
        return status


def _entry(path: Path, manifest: Manifest, entry: str | None) -> str:
    if entry is None:
        here = path.as_posix()
        found = [file.path for file in manifest.files if here.endswith(f"/{file.path}")]
        entry = max(found, key=len, default=None)
    if entry is None or manifest.file(entry) is None:
        raise ModelInvalid(f"{path} is not a file of {manifest.digest}", stage="verify", path=str(path))
    return entry


def _number(tensor: str, entries: dict[str, str], key: str) -> int | None:
    value = entries.get(key)
    if value is None:
        return None
    if not _NUMBER.fullmatch(value):
        raise _refuse(tensor, f"its {key} is {shown(value)}: expected a number of bytes")
    return int(value)


def _refuse(tensor: str, why: str) -> ModelInvalid:
    return ModelInvalid(f"the data of tensor {shown(tensor)} is outside of the model, and {why}", stage="verify")
