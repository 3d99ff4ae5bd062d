"""The manifest: what a version is made of, byte for byte, and the digest that names it.

Pure and strict: a manifest that constructs is safe to materialise as files below a directory. The digest is the SHA-256
of the canonical JSON (`Manifest.to_json`): UTF-8, keys sorted, no spaces, files sorted by path.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from modelbox.errors import InvalidError
from modelbox.refs import Digest, parse_digest, shown
from modelbox.signature import Signature, TensorSpec

__all__ = ("MAX_FILES", "Manifest", "ManifestFile", "check_path")

MAX_FILES = 10_000
MAX_FILE_BYTES = 50 << 30
MAX_TOTAL_BYTES = 200 << 30
_MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,126}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}")
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")


def check_path(path: str) -> str:
    """Returns ``path`` if it is a plain relative POSIX path that means the same on every file system.

    Raises:
        InvalidError: It is absolute, escapes, has empty, dot or over-long segments, backslashes, colons or control
            characters, or is not in Unicode's NFC form.
    """

    def refuse(why: str) -> InvalidError:
        return InvalidError(f"{shown(path)} is not a valid file path in a manifest: {why}")

    if not isinstance(path, str) or not path:
        raise refuse("expected a relative path such as 'model.onnx'")
    try:
        size = len(path.encode())
    except UnicodeEncodeError as exc:
        raise refuse("it is not valid Unicode") from exc
    if size > 1024:
        raise refuse("it is longer than 1024 bytes")
    if path.startswith("/"):
        raise refuse("it is absolute")
    if any(ch in path for ch in "\\:") or any(unicodedata.category(ch) in ("Cc", "Cf") for ch in path):
        raise refuse("backslashes, colons and control characters are not allowed")
    if unicodedata.normalize("NFC", path) != path:
        raise refuse("it is not in Unicode normal form C")
    for segment in path.split("/"):
        if segment in ("", ".", ".."):
            raise refuse("empty, '.' and '..' segments are not allowed")
        if len(segment.encode()) > 255:
            raise refuse("a segment is longer than 255 bytes")
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestFile:
    """One file of a version.

    Attributes:
        path: Relative POSIX path, see `check_path`.
        size_bytes: Exact length.
        digest: SHA-256 of the content.
        media_type: Such as ``application/octet-stream``.
    """

    path: str
    size_bytes: int
    digest: Digest
    media_type: str = "application/octet-stream"

    def __post_init__(self) -> None:
        check_path(self.path)
        parse_digest(self.digest)
        if isinstance(self.size_bytes, bool) or not isinstance(self.size_bytes, int) or self.size_bytes < 0:
            raise InvalidError(f"{shown(self.path)} has the size {shown(self.size_bytes)}: expected 0 or more bytes")
        if self.size_bytes > MAX_FILE_BYTES:
            raise InvalidError(
                f"{shown(self.path)} has {self.size_bytes} bytes, more than the {MAX_FILE_BYTES} allowed"
            )
        if not isinstance(self.media_type, str) or not _MEDIA_TYPE.fullmatch(self.media_type):
            raise InvalidError(f"{shown(self.path)} has the media type {shown(self.media_type)}: expected type/subtype")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Files, signature and framework of one version; immutable, named by its `digest`.

    Attributes:
        files: Sorted by path; no two paths that a case-insensitive file system takes for one, none inside another.
        framework: What opens it: ``onnx`` is served, everything else is stored.
        signature: Inputs and outputs, where the publisher knows them.
        entrypoint: Path of the file to open; needed only when several would do.
    """

    files: tuple[ManifestFile, ...]
    framework: str = "onnx"
    signature: Signature | None = None
    entrypoint: str | None = None

    def __post_init__(self) -> None:
        if not self.files:
            raise InvalidError("a manifest lists at least one file")
        if len(self.files) > MAX_FILES:
            raise InvalidError(f"a manifest lists at most {MAX_FILES} files, got {len(self.files)}")
        object.__setattr__(self, "files", tuple(sorted(self.files, key=lambda file: file.path)))
        if not isinstance(self.framework, str) or not _NAME.fullmatch(self.framework):
            raise InvalidError(f"{shown(self.framework)} is not a framework: expected a name such as 'onnx'")
        if self.size_bytes > MAX_TOTAL_BYTES:
            raise InvalidError(f"the files have {self.size_bytes} bytes, more than the {MAX_TOTAL_BYTES} allowed")
        folded: dict[str, str] = {}
        for file in self.files:
            key = file.path.casefold()
            if key in folded:
                raise InvalidError(f"{shown(folded[key])} and {shown(file.path)} are one path on some file systems")
            folded[key] = file.path
        for key, path in folded.items():
            while key := key.rpartition("/")[0]:
                if key in folded:
                    raise InvalidError(f"{shown(folded[key])} is a file and cannot be the directory of {shown(path)}")
        if self.entrypoint is not None and self.entrypoint not in folded.values():
            raise InvalidError(f"the entry point {shown(self.entrypoint)} is not among the files")

    @property
    def size_bytes(self) -> int:
        """Length of all files together."""
        return sum(file.size_bytes for file in self.files)

    @property
    def digest(self) -> Digest:
        """``sha256:…`` of the canonical JSON."""
        return Digest("sha256:" + hashlib.sha256(self.to_json()).hexdigest())

    def file(self, path: str) -> ManifestFile | None:
        """The file at ``path``, or None."""
        return next((file for file in self.files if file.path == path), None)

    def to_json(self) -> bytes:
        """The canonical JSON; equal manifests give equal bytes."""
        data: dict[str, object] = {
            "files": [
                {"digest": f.digest, "media_type": f.media_type, "path": f.path, "size_bytes": f.size_bytes}
                for f in self.files
            ],
            "framework": self.framework,
        }
        if self.signature is not None:
            data["signature"] = {
                side: [{"dtype": t.dtype, "name": t.name, "shape": list(t.shape)} for t in specs]
                for side, specs in (("inputs", self.signature.inputs), ("outputs", self.signature.outputs))
            }
        if self.entrypoint is not None:
            data["entrypoint"] = self.entrypoint
        return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    @classmethod
    def from_json(cls, data: bytes | str | Mapping[str, Any]) -> Manifest:
        """Reads what `to_json` wrote (or the same as a decoded mapping).

        Raises:
            InvalidError: It is not a manifest; nothing is taken over unchecked.
        """
        try:
            raw = data if isinstance(data, Mapping) else json.loads(data)
            signature = raw.get("signature")
            return cls(
                files=tuple(
                    ManifestFile(
                        path=f["path"],
                        size_bytes=f["size_bytes"],
                        digest=parse_digest(f["digest"]),
                        media_type=f.get("media_type", "application/octet-stream"),
                    )
                    for f in raw["files"]
                ),
                framework=raw.get("framework", "onnx"),
                signature=None if signature is None else _signature(signature),
                entrypoint=raw.get("entrypoint"),
            )
        except InvalidError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as exc:
            raise InvalidError(f"this is not a manifest: {type(exc).__name__} {shown(str(exc))}") from exc


def _signature(raw: Mapping[str, Any]) -> Signature:
    def specs(side: str) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(name=t["name"], dtype=t["dtype"], shape=tuple(cast("list[int | str]", t["shape"])))
            for t in raw[side]
        )

    return Signature(inputs=specs("inputs"), outputs=specs("outputs"))
