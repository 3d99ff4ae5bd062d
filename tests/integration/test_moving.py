"""Export and import: everything arrives, from a running server, after any break, and damage is found."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from modelbox.runtime.blobs.filesystem import FilesystemBlobs
from modelbox.runtime.moving.export import write_export
from modelbox.runtime.moving.importing import read_export
from modelbox.runtime.moving.manifest import ExportManifest
from modelbox.runtime.moving.verify import verify_export
from modelbox.runtime.store.database import MainDatabase
from modelbox.runtime.store.opening import open_database
from modelbox.runtime.store.snapshot import open_snapshot
from tests.integration.server_core import write_databases
from tests.moving_world import contents, epoch_of, fill


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A database and a store."""

    directory: Path
    url: str
    database: MainDatabase
    blobs: FilesystemBlobs

    async def export(self, directory: Path) -> ExportManifest:
        """Exports it while it is open."""
        return await write_export(
            lambda: open_snapshot(self.url, data_dir=self.directory), self.blobs, directory, say=lambda _: None
        )

    async def read(self, directory: Path) -> ExportManifest:
        """Imports into it."""
        return await read_export(directory, self.database, self.blobs, say=lambda _: None)


@asynccontextmanager
async def open_place(directory: Path, url: str = "") -> AsyncIterator[Place]:
    if not directory.exists():
        directory.mkdir()
        write_databases(directory)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(url, data_dir=directory))
        blobs = await stack.enter_async_context(FilesystemBlobs(directory, reserve_bytes=0))
        yield Place(directory=directory, url=url, database=database, blobs=blobs)


async def test_everything_arrives_from_sqlite_in_sqlite(tmp_path: Path) -> None:
    async with open_place(tmp_path / "a") as source, open_place(tmp_path / "b") as target:
        await fill(source.database, source.blobs)
        before = await contents(source.database)
        assert [name for name, found in before.items() if name != "rev" and not found[0]] == []
        written = await source.export(tmp_path / "export")
        assert verify_export(tmp_path / "export", say=lambda _: None) == written
        assert await target.read(tmp_path / "export") == written
        assert await contents(target.database) == before == await contents(source.database)
        assert await epoch_of(target.database) != await epoch_of(source.database)
        again = await target.export(tmp_path / "again")
        assert [table.rows_sum for table in again.tables if table.name != "feed_head"] == [
            table.rows_sum for table in written.tables if table.name != "feed_head"
        ]
