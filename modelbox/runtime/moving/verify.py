"""Proving that an export is whole: every line of every file, every file of the blobs, and the feed's chain.

Changes nothing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from sqlalchemy import Table

from modelbox.errors import IntegrityError
from modelbox.feed import next_chain
from modelbox.refs import Digest
from modelbox.runtime.blobs.filesystem import CHUNK_BYTES
from modelbox.runtime.moving.blobs import blob_path, iter_blobs, size_of_blob
from modelbox.runtime.moving.lines import DamagedLine, count_rows, read_rows
from modelbox.runtime.moving.manifest import ExportManifest, TableFile, read_manifest
from modelbox.runtime.moving.tables import RowsSum
from modelbox.runtime.store.chain import change_body
from modelbox.runtime.store.schema import feed_changes, feed_head

__all__ = ("verify_export", "verify_tables")

_SHOWN = 20


def verify_export(directory: Path, *, say: Callable[[str], None]) -> ExportManifest:
    """Reads all of an export, and returns what it is.

    Args:
        directory: The export.
        say: Told how far it is.

    Raises:
        NotFoundError: It is no export, or not a finished one.
        IntegrityError: It is damaged; says where, up to twenty places.
    """
    manifest = read_manifest(directory)
    problems = list(_table_problems(directory, manifest, say)) or list(_feed_problems(directory, manifest))
    if not problems:
        # Only a list of blobs that is right says which there must be.
        say(f"files: {manifest.blobs.count:,}, {manifest.blobs.size_bytes:,} bytes")
        problems = list(_blob_problems(directory, manifest))
    _refuse(directory, problems)
    return manifest


def verify_tables(directory: Path, *, say: Callable[[str], None]) -> ExportManifest:
    """The same without the bytes of blobs, which are hashed when they are copied; they must be there, of their size."""
    manifest = read_manifest(directory)
    problems = list(_table_problems(directory, manifest, say))
    if not problems:
        for digest, size in iter_blobs(directory, manifest.table("blobs")):
            problems += _size_problem(directory, digest, size)
    _refuse(directory, problems)
    return manifest


def _refuse(directory: Path, problems: list[str]) -> None:
    if problems:
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        listed = "".join(f"\n  {problem}" for problem in problems[:_SHOWN])
        raise IntegrityError(f"the export {directory} is damaged:{listed}{more}", problems=problems[:_SHOWN])


# -- tables ----------------------------------------------------------------------------------------------------------


def _table_problems(directory: Path, manifest: ExportManifest, say: Callable[[str], None]) -> Iterator[str]:
    for table in manifest.tables:
        say(f"{table.file}: {table.rows:,} rows, {table.size_bytes:,} bytes")
        try:
            yield from _file_problems(directory, table)
        except FileNotFoundError:
            yield f"{table.file} is missing"
        except OSError as exc:
            yield f"{table.file} cannot be read: {exc.strerror}"


def _file_problems(directory: Path, file: TableFile) -> Iterator[str]:
    digest, total, damaged = hashlib.sha256(), RowsSum(), False
    with open(os.open(directory / file.file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb") as lines:
        for number, line in enumerate(lines, 1):
            digest.update(line)
            try:
                total.add(count_rows(file.name, line), line)
            except DamagedLine as exc:
                damaged = True
                yield f"{file.file} line {number}: {exc}"
    if damaged:
        return
    if (total.lines, total.rows) != (file.lines, file.rows):
        yield (
            f"{file.file} line {min(total.lines, file.lines) + 1}: the file has {total.lines:,} lines with"
            f" {total.rows:,} rows instead of {file.lines:,} with {file.rows:,}"
        )
    elif digest.hexdigest() != file.sha256:
        yield f"{file.file}: its SHA-256 is another, though each line is whole: lines were exchanged"


def _feed_problems(directory: Path, manifest: ExportManifest) -> Iterator[str]:
    """Follows the chain from where the history begins to its head."""
    head_file, changes = manifest.table("feed_head"), manifest.table("feed_changes")
    ((_, head),) = _iter_rows(directory, head_file, feed_head)
    place = ("compact_rev", "compact_chain") if head["audit_rev"] is None else ("audit_rev", "audit_chain")
    rev, chain = (head[name] for name in place)
    for found, numbered in groupby(_iter_rows(directory, changes, feed_changes), key=lambda one: one[1]["rev"]):
        rows = list(numbered)
        where = f"{changes.file} line {rows[0][0]}"
        if found != rev + 1:
            yield f"{where}: revision {found} follows {rev}"
            return
        rev, chain = found, next_chain(chain, found, [change_body(row) for _, row in rows])
        if any(row["chain"] != chain for _, row in rows):
            yield f"{where}: revision {rev} does not fit those before it"
            return
    if (rev, chain) != (head["rev"], head["chain"]) or (rev, chain.hex()) != (manifest.feed.rev, manifest.feed.chain):
        yield f"{changes.file} line {changes.lines}: the history ends at {rev}, its head is at {head['rev']}"


def _iter_rows(directory: Path, file: TableFile, table: Table) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(directory / file.file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            for row in read_rows(table, file.columns, line):
                yield number, row


# -- blobs -----------------------------------------------------------------------------------------------------------


def _size_problem(directory: Path, digest: Digest, size: int) -> list[str]:
    found = size_of_blob(directory, digest)
    if found == size:
        return []
    return [f"{blob_path(digest)} " + ("is missing" if found is None else f"has {found:,} bytes instead of {size:,}")]


def _blob_problems(directory: Path, manifest: ExportManifest) -> Iterator[str]:
    count = 0
    for digest, size in iter_blobs(directory, manifest.table("blobs")):
        count += 1
        if problems := _size_problem(directory, digest, size):
            yield from problems
            continue
        path = blob_path(digest)
        actual = hashlib.sha256()
        try:
            with open(os.open(directory / path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb", buffering=0) as file:
                while block := file.read(CHUNK_BYTES):
                    actual.update(block)
        except OSError as exc:
            yield f"{path} cannot be read: {exc.strerror}"
            continue
        if f"sha256:{actual.hexdigest()}" != digest:
            yield f"{path} is not what its name says: its bytes have the SHA-256 {actual.hexdigest()}"
    if count != manifest.blobs.count:
        yield f"the manifest tells of {manifest.blobs.count} files, the tables of {count}"
