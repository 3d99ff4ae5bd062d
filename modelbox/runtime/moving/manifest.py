"""``manifest.json``: what an export is made of, and the proof that it is whole.

It is written last, by rename: a directory without it is no export. A checksum over its own content comes last in it.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from modelbox.errors import IntegrityError, NotFoundError, StorageError

__all__ = (
    "FORMAT",
    "MANIFEST",
    "BlobTotals",
    "ExportManifest",
    "FeedPlace",
    "TableFile",
    "checksum_of",
    "read_manifest",
    "sync_directory",
    "write_manifest",
)

FORMAT = 1
"""Of the files; what is read back must be of the same."""
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFile:
    """A table, and the file of its rows.

    Attributes:
        name: Of the table.
        database: "main", or "metrics" for those of `modelbox.runtime.store.metric_schema`.
        file: Path below the directory.
        rows: How many.
        lines: How many.
        size_bytes: Of the file.
        sha256: Of the file.
        rows_sum: Sum of the SHA-256s of all lines, modulo 2**128, in hexadecimal: the same in whatever order.
        last_id: The greatest number that the database gave to a row, though it may be deleted; None where it gives
            none.
        columns: The kind of each by its name, in the order of values in lines.
    """

    name: str
    database: str
    file: str
    rows: int
    lines: int
    size_bytes: int
    sha256: str
    rows_sum: str
    last_id: int | None
    columns: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedPlace:
    """Where the history of the source was. ``chain`` is in hexadecimal."""

    server_id: str
    epoch: str
    rev: int
    chain: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobTotals:
    """The blobs of the table ``blobs``, all of which are in the directory."""

    count: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportManifest:
    """An export.

    Attributes:
        created_at: ISO 8601, UTC.
        release: Of ModelBox, that wrote it.
        source: Kind of the database, for people.
        schema: Revisions of the schema by "main" and "metrics".
        feed: The head of the history.
        blobs: Of the directory.
        tables: In the order in which they can be read in.
        checksum: SHA-256 of all before it; empty until it is written.
    """

    created_at: str
    release: str
    source: str
    schema: dict[str, str]
    feed: FeedPlace
    blobs: BlobTotals
    tables: tuple[TableFile, ...]
    checksum: str = ""

    @property
    def rows(self) -> int:
        """Of all tables."""
        return sum(table.rows for table in self.tables)

    def table(self, name: str) -> TableFile:
        """The file of a table."""
        return next(table for table in self.tables if table.name == name)


def checksum_of(manifest: ExportManifest) -> str:
    """What its ``checksum`` must be."""
    return hashlib.sha256(_body(manifest)).hexdigest()


def _body(manifest: ExportManifest) -> bytes:
    content = {"format": FORMAT, **asdict(manifest)}
    del content["checksum"]
    return json.dumps(content, ensure_ascii=False, sort_keys=True).encode()


def write_manifest(directory: Path, manifest: ExportManifest) -> ExportManifest:
    """Makes a directory an export; returns the manifest with its checksum.

    Raises:
        OSError: The disk failed, or is full.
    """
    content = {"format": FORMAT, **asdict(manifest), "checksum": checksum_of(manifest)}
    part = directory / f"{MANIFEST}.part"
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(json.dumps(content, ensure_ascii=False, indent=1).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, directory / MANIFEST)
    sync_directory(directory)
    return _of_json(content)


def sync_directory(directory: Path) -> None:
    """Has names of a directory survive a loss of power."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_manifest(directory: Path) -> ExportManifest:
    """The manifest of an export.

    Raises:
        NotFoundError: The directory is no export, or one that was not finished.
        IntegrityError: It was altered, or is of another format.
    """
    path = directory / MANIFEST
    try:
        content = json.loads(path.read_bytes())
        manifest = _of_json(content)
        checksum = checksum_of(manifest)
    except (FileNotFoundError, NotADirectoryError) as exc:
        unfinished = (directory / "tables").is_dir()
        raise NotFoundError(
            f"{directory} is no export, there is no {MANIFEST} in it"
            + (": it was not finished, run the same modelbox server export again" if unfinished else "")
        ) from exc
    except OSError as exc:
        raise StorageError(f"{path} cannot be read: {exc.strerror}") from exc
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as exc:
        raise IntegrityError(f"{path} is damaged: it cannot be read as the manifest of an export") from exc
    if content.get("format") != FORMAT:
        raise IntegrityError(
            f"{path} is of the format {content.get('format')!r}, this release of ModelBox knows {FORMAT}: use the"
            f" release that wrote it ({manifest.release}), or a newer one"
        )
    if manifest.checksum != checksum:
        raise IntegrityError(f"{path} is damaged: its checksum is another")
    for table in manifest.tables:
        if table.file != f"tables/{table.name}.jsonl" or not table.name.isidentifier():
            raise IntegrityError(f"{path} names the file {table.file!r}, which no export has")
    return manifest


def _of_json(content: dict[str, Any]) -> ExportManifest:
    values = {key: value for key, value in content.items() if key != "format"}
    tables = tuple(TableFile(**table) for table in values.pop("tables"))
    feed, blobs = FeedPlace(**values.pop("feed")), BlobTotals(**values.pop("blobs"))
    manifest = ExportManifest(**values, feed=feed, blobs=blobs, tables=tables)
    for part in (manifest, feed, blobs, *tables):
        _check_types(part)
    return manifest


def _check_types(part: Any) -> None:
    """Values are of the types that their class says; those of classes of ours are looked at by themselves."""
    for name, hint in get_type_hints(type(part)).items():
        value = getattr(part, name)
        if get_origin(hint) is dict:
            sound = isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
        elif hint is int:
            sound = type(value) is int and value >= 0
        elif hint in (str, int | None):
            sound = isinstance(value, hint) and not isinstance(value, bool)
        else:
            sound = True
        if not sound:
            raise TypeError(f"{name} is no {hint}")
