"""The server's core, real and whole: SQLite, a directory of blobs, and the services over them."""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import create_engine

from modelbox.manifest import Manifest, ManifestFile
from modelbox.objects import Created, ModelVersion, NewVersion
from modelbox.refs import Digest
from modelbox.runtime.blobs.filesystem import FilesystemBlobs
from modelbox.runtime.services.artifacts import ArtifactService, Upload
from modelbox.runtime.services.feed import FeedService
from modelbox.runtime.services.fleet import FleetService
from modelbox.runtime.services.registry import RegistryService
from modelbox.runtime.store.artifacts import SqlArtifactStore
from modelbox.runtime.store.feed import SqlFeedStore
from modelbox.runtime.store.fleet import SqlFleetStore
from modelbox.runtime.store.migrate import MAIN, METRICS, Migrations, migrate
from modelbox.runtime.store.registry import SqlRegistryStore
from modelbox.runtime.store.sqlite import SqliteDatabase


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = datetime(2026, 5, 3, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **parts: float) -> None:
        self.now += timedelta(**parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """Everything that an adapter would be given."""

    directory: Path
    database: SqliteDatabase
    blobs: FilesystemBlobs
    feed_store: SqlFeedStore
    registry: RegistryService
    artifacts: ArtifactService
    fleet: FleetService
    clock: Clock

    async def upload(self, data: bytes, *, namespace: str = "ns") -> Upload:
        """Uploads bytes whole."""
        begun = await self.artifacts.begin_upload(namespace, digest_of(data), len(data))
        if begun.complete:
            return begun
        return await self.artifacts.write_upload(begun.id, begun.offset, chunks(data[begun.offset :]))

    async def publish(
        self, *contents: bytes, namespace: str = "ns", model: str = "m", aliases: Sequence[str] = ()
    ) -> Created[ModelVersion]:
        """Uploads and publishes a version of these files."""
        for data in contents:
            await self.upload(data, namespace=namespace)
        new = NewVersion(namespace=namespace, model=model, manifest=manifest(*contents), aliases=tuple(aliases))
        return await self.registry.publish_version(new, actor="ann")


@functools.cache
def _migrated(migrations: Migrations) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "new.db")
        engine = create_engine(f"sqlite:///{path}", isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            migrate(connection, migrations)
        engine.dispose()
        return path.read_bytes()


def migrated_database() -> bytes:
    """A database file with an up-to-date schema and nothing in it: running migrations is what takes time."""
    return _migrated(MAIN)


def write_databases(directory: Path) -> None:
    """Puts such files into a data directory, the metrics' too."""
    (directory / "modelbox.db").write_bytes(migrated_database())
    (directory / "metrics.db").write_bytes(_migrated(METRICS))


@asynccontextmanager
async def open_core(directory: Path) -> AsyncIterator[Core]:
    """Opens the core in a directory."""
    clock = Clock()
    if not directory.exists():
        directory.mkdir(mode=0o700)
        write_databases(directory)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(SqliteDatabase(directory))
        blobs = await stack.enter_async_context(FilesystemBlobs(directory, reserve_bytes=0))
        yield Core(
            directory=directory,
            database=database,
            blobs=blobs,
            feed_store=SqlFeedStore(database),
            registry=RegistryService(SqlRegistryStore(database), blobs, clock=clock),
            artifacts=ArtifactService(SqlArtifactStore(database), blobs, clock=clock),
            fleet=FleetService(SqlFleetStore(database), clock=clock),
            clock=clock,
        )


@asynccontextmanager
async def open_feed(
    core: Core, *, bookmark_interval_s: float = 60.0, max_changes: int = 10_000, keep_revs: int = 0
) -> AsyncIterator[FeedService]:
    """Runs the feed over the core."""
    feed = FeedService(
        core.feed_store,
        bookmark_interval_s=bookmark_interval_s,
        max_changes=max_changes,
        keep_revs=keep_revs,
        clock=core.clock,
    )
    async with feed:
        yield feed


def digest_of(data: bytes) -> Digest:
    """The digest of bytes."""
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def manifest(*contents: bytes) -> Manifest:
    """A manifest of these files."""
    return Manifest(
        files=tuple(
            ManifestFile(path=f"file{i}.bin", size_bytes=len(data), digest=digest_of(data))
            for i, data in enumerate(contents)
        )
    )


async def chunks(
    data: bytes, *, size: int = 65_536, before: Callable[[int], None] = lambda _: None
) -> AsyncIterator[bytes]:
    """The bytes in chunks; ``before`` is called with each one's offset."""
    for start in range(0, len(data), size):
        before(start)
        yield data[start : start + size]
