"""Reading an export into an empty database and a store of blobs: verified first, resumable anywhere, proved at the end.

Invariants: a blob is there before a row names it; rows and how far they are come in one transaction; the mark that
keeps servers away goes last, after everything was read again.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
from anyio import to_thread
from sqlalchemy import Connection, Table, func, insert, select, update

from modelbox.errors import ConfigError, IntegrityError, ServerBusy, StorageError, Unavailable
from modelbox.runtime.moving.blobs import ExportedBlobs, check_blobs, copy_blobs, iter_blobs
from modelbox.runtime.moving.lines import DamagedLine, kinds_of_columns, read_rows
from modelbox.runtime.moving.manifest import ExportManifest, TableFile
from modelbox.runtime.moving.tables import (
    CopiedTable,
    RowsSum,
    copied_tables,
    iter_table_lines,
    known_schema,
    set_last_id,
    shown_schema,
)
from modelbox.runtime.moving.verify import verify_tables
from modelbox.runtime.ports import BlobStore
from modelbox.runtime.store.clock import database_now_us
from modelbox.runtime.store.database import Database, MainDatabase
from modelbox.runtime.store.history import verify_chain
from modelbox.runtime.store.importing import begin_progress, end_progress, find_progress, note_progress
from modelbox.runtime.store.prepared import Prepared
from modelbox.runtime.store.schema import feed_head, replicas

__all__ = ("read_export",)

T = TypeVar("T")

_BATCH_ROWS = 2000
_BATCH_BYTES = 4 << 20
_PATIENCE_S = 60.0
_PAUSE_S = 0.5
_INSERTS = {
    copied.table.name: Prepared(insert(copied.table), [column.name for column in copied.table.c])
    for copied in copied_tables()
}
_HEAD = feed_head.name
"""Every database has a head from its beginning on; the export's takes its place at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """Lines of a file, and how many of it are in before and after them."""

    before: int
    after: int
    rows: Sequence[Mapping[str, Any]]


async def read_export(
    directory: Path, database: MainDatabase, blobs: BlobStore, *, say: Callable[[str], None]
) -> ExportManifest:
    """Fills an empty database and a store of blobs with an export.

    What was broken off goes on where it ended. The feed gets a new epoch, so that every client lists again.

    Args:
        directory: The export.
        database: Open, with the newest schema and no content; no server uses it.
        blobs: Where the files are to be.
        say: Told how far it is, for people.

    Raises:
        NotFoundError: The directory is no finished export.
        IntegrityError: It is damaged (nothing was changed), or the database does not give back what it was given.
        ConfigError: The export has another schema, or the database has content.
        ConflictError: Another import is under way there.
        LimitError: A disk is full; make room, then run it again.
        ServerBusy: The database is away; run it again.
        StorageError: Anything else.

    Cancellation: an unfinished import stays, and can go on.
    """
    manifest = await to_thread.run_sync(lambda: verify_tables(directory, say=say))
    tables = _tables_of(manifest)
    files = manifest.table("blobs")
    progress = await _begin(database, manifest, tables)
    if progress is not None:
        await copy_blobs(ExportedBlobs(directory), blobs, lambda: iter_blobs(directory, files), say=say)
        for part in _parts(database, tables):
            for copied, file in part.tables:
                if copied.table.name != _HEAD:
                    await _load(part, directory, copied.table, file, progress[part.name][file.name], say)
            await _write(part.database, part.set_last_ids)
        head = _head_of(directory, manifest)
        await _write(database, lambda conn: _set_head(conn, head))
        say("reading all of it again")
        await _verify(database, tables)
        await check_blobs(blobs, iter_blobs(directory, files))
    for part in reversed(_parts(database, tables)):
        await _write(part.database, part.end)
    return manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """What goes into one of the two databases."""

    name: str
    database: Database
    tables: Sequence[tuple[CopiedTable, TableFile]]

    def set_last_ids(self, conn: Connection) -> None:
        """Has the database give numbers behind those that were given."""
        for copied, file in self.tables:
            if file.last_id is not None:
                set_last_id(conn, copied.table, file.last_id)

    def begin(self, conn: Connection, export: str) -> None:
        """Marks it as one that is being filled."""
        begin_progress(conn, self.name, export, [file.name for _, file in self.tables])

    def end(self, conn: Connection) -> None:
        """Takes the mark away."""
        end_progress(conn, self.name)


def _parts(database: MainDatabase, tables: Sequence[tuple[CopiedTable, TableFile]]) -> tuple[_Part, _Part]:
    """Main, then metrics."""

    def part(name: str, where: Database) -> _Part:
        return _Part(name=name, database=where, tables=[one for one in tables if one[0].database == name])

    return part("main", database), part("metrics", database.metrics)


def _tables_of(manifest: ExportManifest) -> list[tuple[CopiedTable, TableFile]]:
    if manifest.schema != known_schema():
        raise ConfigError(
            f"the export has the schema {shown_schema(manifest.schema)}, this release knows"
            f" {shown_schema(known_schema())}: import it with the release of ModelBox that wrote it,"
            f" {manifest.release}; a newer server then upgrades the database when it starts"
        )
    files = {file.name: file for file in manifest.tables}
    tables = copied_tables()
    for copied in tables:
        file = files.pop(copied.table.name, None)
        if file is None or file.columns != kinds_of_columns(copied.table) or file.database != copied.database:
            raise ConfigError(
                f"the export's table {copied.table.name} is not that of this release: import it with the release of"
                f" ModelBox that wrote it, {manifest.release}"
            )
    if files:
        raise ConfigError(f"the export has tables that this release does not know: {', '.join(sorted(files))}")
    return [(copied, manifest.table(copied.table.name)) for copied in tables]


# -- beginning -------------------------------------------------------------------------------------------------------


async def _begin(
    database: MainDatabase, manifest: ExportManifest, tables: Sequence[tuple[CopiedTable, TableFile]]
) -> dict[str, dict[str, int]] | None:
    """How many lines of each file are in, by database; None if all are, and were read again.

    The metrics' mark comes first and goes first: the main one without it says that there is nothing left to do.
    """
    parts = main, metrics = _parts(database, tables)
    progress = {part.name: await part.database.read(partial(_find_progress, part, manifest)) for part in parts}
    if progress["main"] is not None:
        return None if progress["metrics"] is None else {name: found or {} for name, found in progress.items()}
    await database.read(_refuse_servers)
    for part in parts:
        if progress[part.name] is None:
            await part.database.read(partial(_refuse_content, tables=[copied.table for copied, _ in part.tables]))
    for part in (metrics, main):
        await _write(part.database, partial(part.begin, export=manifest.checksum))
    return {part.name: {file.name: 0 for _, file in part.tables} for part in parts}


def _find_progress(part: _Part, manifest: ExportManifest, conn: Connection) -> dict[str, int] | None:
    return find_progress(conn, part.name, manifest.checksum)


def _refuse_servers(conn: Connection) -> None:
    if conn.dialect.name == "sqlite":
        # One that runs has the directory's lock.
        return
    found = (
        conn.execute(select(replicas.c.name).where(replicas.c.until_us > database_now_us()).limit(3)).scalars().all()
    )
    if found:
        raise ConfigError(
            f"servers use this database ({', '.join(found)}): an import needs it for itself, stop them first"
        )


def _refuse_content(conn: Connection, tables: Sequence[Table]) -> None:
    found = []
    for table in tables:
        if table.name == _HEAD:
            rev = conn.execute(select(feed_head.c.rev)).scalar()
            found += [f"a history of {rev:,} revisions"] if rev else []
        elif conn.execute(select(*table.primary_key.columns).limit(1)).first() is not None:
            count = conn.execute(select(func.count()).select_from(table)).scalar_one()
            found.append(f"{count:,} rows in {table.name}")
    if found:
        raise ConfigError(
            f"the database is not empty, it has {', '.join(found)}: an import needs a database without content"
        )


# -- rows ------------------------------------------------------------------------------------------------------------


async def _load(
    part: _Part, directory: Path, table: Table, file: TableFile, done: int, say: Callable[[str], None]
) -> None:
    if done < file.lines:
        say(f"{table.name}: {file.rows:,} rows" + (f", going on behind line {done:,}" if done else ""))
    batches = _batches(directory, table, file, done)
    while (batch := await to_thread.run_sync(next, batches, None)) is not None:
        try:
            await _write(part.database, partial(_put, part=part.name, table=table, batch=batch))
        except StorageError as exc:
            raise StorageError(f"{file.file} lines {batch.before + 1} to {batch.after}: {exc}") from exc


def _batches(directory: Path, table: Table, file: TableFile, done: int) -> Iterator[_Batch]:
    rows: list[Mapping[str, Any]] = []
    before, size = done, 0
    number = 0
    try:
        with open(directory / file.file, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if number <= done:
                    continue
                rows += read_rows(table, file.columns, line)
                size += len(line)
                if len(rows) >= _BATCH_ROWS or size >= _BATCH_BYTES:
                    yield _Batch(before=before, after=number, rows=rows)
                    rows, before, size = [], number, 0
    except DamagedLine as exc:
        # It was whole a moment ago.
        raise IntegrityError(f"{file.file} line {number}: {exc}") from exc
    if number > before:
        yield _Batch(before=before, after=number, rows=rows)


def _put(conn: Connection, *, part: str, table: Table, batch: _Batch) -> None:
    if note_progress(conn, part, table.name, before=batch.before, after=batch.after):
        _INSERTS[table.name].run_many(conn, batch.rows)


async def _write(database: Database, fn: Callable[[Connection], T]) -> T:
    """Runs ``fn``, which may be repeated, until it is surely committed; waits for a database that is away."""
    until = anyio.current_time() + _PATIENCE_S
    while True:
        try:
            return await database.write(fn)
        except (ServerBusy, Unavailable):
            if anyio.current_time() >= until:
                raise
        await anyio.sleep(_PAUSE_S)


# -- the end ---------------------------------------------------------------------------------------------------------


def _head_of(directory: Path, manifest: ExportManifest) -> Mapping[str, Any]:
    file = manifest.table(_HEAD)
    with open(directory / file.file, "rb") as lines:
        (row,) = read_rows(feed_head, file.columns, lines.read())
    return row


def _set_head(conn: Connection, head: Mapping[str, Any]) -> None:
    conn.execute(update(feed_head).where(feed_head.c.id == 1).values({**head, "epoch": secrets.token_hex(16)}))


async def _verify(database: MainDatabase, tables: Sequence[tuple[CopiedTable, TableFile]]) -> None:
    """Reads every row again, and follows the feed's chain.

    Raises:
        IntegrityError: The database does not hold what the export does.
        StorageError: The chain does not fit.
    """
    for part in _parts(database, tables):
        for copied, file in part.tables:
            total = await part.database.read(partial(_sum_of, table=copied.table))
            if total.rows != file.rows or (total.hexdigest != file.rows_sum and file.name != _HEAD):
                raise IntegrityError(
                    f"the table {file.name} is not what was imported: it has {total.rows:,} rows, the export"
                    f" {file.rows:,}" + ("" if total.rows != file.rows else ", and some of them have other values")
                )
    await database.read(verify_chain)


def _sum_of(conn: Connection, table: Table) -> RowsSum:
    total = RowsSum()
    for rows, line in iter_table_lines(conn, table):
        total.add(rows, line)
    return total
