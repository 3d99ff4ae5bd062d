"""Writing an export: the tables from one snapshot, then the blobs that they name, then the manifest."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from pathlib import Path

from anyio import to_thread
from sqlalchemy import Connection

from modelbox._serving.process import package_version
from modelbox.errors import ConfigError, LimitError, StorageError
from modelbox.runtime.blobs.filesystem import FilesystemBlobs
from modelbox.runtime.moving.blobs import copy_blobs, iter_blobs
from modelbox.runtime.moving.lines import kinds_of_columns
from modelbox.runtime.moving.manifest import (
    MANIFEST,
    BlobTotals,
    ExportManifest,
    FeedPlace,
    TableFile,
    sync_directory,
    write_manifest,
)
from modelbox.runtime.moving.tables import (
    CopiedTable,
    RowsSum,
    copied_tables,
    iter_table_lines,
    known_schema,
    last_id,
    shown_schema,
    stored_schema,
)
from modelbox.runtime.ports import BlobStore
from modelbox.runtime.store.history import read_head_within
from modelbox.runtime.store.snapshot import Snapshot

__all__ = ("write_export",)

_MARKER = "export.unfinished"
_FULL = frozenset([errno.ENOSPC, errno.EDQUOT, errno.EFBIG])


async def write_export(
    open_snapshot: Callable[[], AbstractAsyncContextManager[Snapshot]],
    blobs: BlobStore,
    directory: Path,
    *,
    say: Callable[[str], None],
) -> ExportManifest:
    """Writes everything that a server keeps into a directory; the server may run.

    One that was broken off goes on in the same directory: files that are there whole are not copied again.

    Args:
        open_snapshot: Opens the database; closed again before files are copied.
        blobs: Where the files are.
        directory: Made if need be; empty, or that of an export that was broken off.
        say: Told how far it is, for people.

    Raises:
        ConfigError: The directory has other content, or the database is of another release.
        LimitError: The disk is full.
        StorageError: The database or a disk failed, or files are missing.

    Cancellation: an unfinished export stays.
    """
    with _disk_errors(directory):
        await to_thread.run_sync(_prepare, directory)
    async with open_snapshot() as snapshot:
        with _disk_errors(directory):
            manifest = await snapshot.run(lambda main, metrics: _dump(main, metrics, snapshot.kind, directory, say))
    file = manifest.table("blobs")
    async with FilesystemBlobs(directory, reserve_bytes=0) as copies:
        await copy_blobs(blobs, copies, lambda: iter_blobs(directory, file), say=say)
    with _disk_errors(directory):
        return await to_thread.run_sync(_finish, directory, manifest)


@contextlib.contextmanager
def _disk_errors(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno in _FULL:
            raise LimitError(
                f"the disk of {directory} is full: make room, then run the same command again", what="disk"
            ) from exc
        raise StorageError(f"writing to {directory} failed: {exc.strerror}") from exc


def _prepare(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = {entry.name for entry in os.scandir(directory)}
    if MANIFEST in found:
        raise ConfigError(f"{directory} holds a finished export: choose another directory, or remove it")
    if found and _MARKER not in found:
        raise ConfigError(f"{directory} is not empty, and holds no unfinished export: choose another directory")
    (directory / _MARKER).touch(mode=0o600)
    (directory / "tables").mkdir(exist_ok=True, mode=0o700)


def _finish(directory: Path, manifest: ExportManifest) -> ExportManifest:
    # What the store of blobs needed while it was written to.
    for entry in list(os.scandir(directory)):
        if entry.is_dir(follow_symlinks=False) and entry.name not in ("blobs", "tables"):
            shutil.rmtree(entry.path, ignore_errors=True)
    for part in (directory / "tables", directory):
        sync_directory(part)
    written = write_manifest(directory, manifest)
    (directory / _MARKER).unlink(missing_ok=True)
    return written


def _dump(
    main: Connection, metrics: Connection, kind: str, directory: Path, say: Callable[[str], None]
) -> ExportManifest:
    schema, known = stored_schema(main, metrics), known_schema()
    if schema != known:
        raise ConfigError(
            f"the database has the schema {shown_schema(schema)}, this release knows {shown_schema(known)}: export with"
            " the release that the server runs, or start this one's server once, which upgrades the database"
        )
    head = read_head_within(main)
    totals = BlobTotals(count=0, size_bytes=0)
    files = []
    for copied in copied_tables():
        file = _write_table(main if copied.database == "main" else metrics, copied, directory)
        say(f"{copied.table.name}: {file.rows:,} rows, {file.size_bytes:,} bytes")
        files.append(file)
        if copied.table.name == "blobs":
            sizes = [size for _, size in iter_blobs(directory, file)]
            totals = BlobTotals(count=len(sizes), size_bytes=sum(sizes))
    return ExportManifest(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        release=package_version(),
        source=kind,
        schema=known,
        feed=FeedPlace(server_id=head.server_id, epoch=head.epoch, rev=head.rev, chain=head.chain.hex()),
        blobs=totals,
        tables=tuple(files),
    )


def _write_table(conn: Connection, copied: CopiedTable, directory: Path) -> TableFile:
    table = copied.table
    name = f"tables/{table.name}.jsonl"
    digest, total, size = hashlib.sha256(), RowsSum(), 0
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    with open(os.open(directory / name, flags, 0o600), "wb", buffering=1 << 20) as file:
        for rows, line in iter_table_lines(conn, table):
            file.write(line)
            digest.update(line)
            total.add(rows, line)
            size += len(line)
        file.flush()
        os.fsync(file.fileno())
    return TableFile(
        name=table.name,
        database=copied.database,
        file=name,
        rows=total.rows,
        lines=total.lines,
        size_bytes=size,
        sha256=digest.hexdigest(),
        rows_sum=total.hexdigest,
        last_id=last_id(conn, table),
        columns=kinds_of_columns(table),
    )
