"""Export and import: everything arrives, from a running server, after any break, and damage is found."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import anyio
import pytest
from anyio import to_thread
from sqlalchemy import Connection, func, insert, select

from modelbox.errors import (
    ConfigError,
    ConflictError,
    IntegrityError,
    LimitError,
    NotFoundError,
    ServerBusy,
    StorageError,
)
from modelbox.objects import NewModel
from modelbox.refs import Digest
from modelbox.runtime.blobs.filesystem import FilesystemBlobs
from modelbox.runtime.blobs.opening import S3Options, open_blobs
from modelbox.runtime.moving import export as export_module
from modelbox.runtime.moving import importing as import_module
from modelbox.runtime.moving.blobs import blob_path
from modelbox.runtime.moving.export import write_export
from modelbox.runtime.moving.importing import read_export
from modelbox.runtime.moving.manifest import MANIFEST, ExportManifest, read_manifest
from modelbox.runtime.moving.tables import copied_tables
from modelbox.runtime.moving.verify import verify_export
from modelbox.runtime.store import metric_schema, schema
from modelbox.runtime.store.database import Database, MainDatabase
from modelbox.runtime.store.importing import refuse_unfinished_import
from modelbox.runtime.store.opening import open_database
from modelbox.runtime.store.registry import SqlRegistryStore
from modelbox.runtime.store.snapshot import open_snapshot
from tests.faults.registry import fault
from tests.integration.server_core import digest_of, write_databases
from tests.moving_world import AT, contents, epoch_of, fill
from tests.server import ServerProcess
from tests.servers.postgres import PostgresServer
from tests.servers.s3 import S3Bucket

T = TypeVar("T")
Made = tuple[Path, Path, dict[str, Any]]


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

    async def read(self, directory: Path, *, database: Any = None) -> ExportManifest:
        """Imports into it."""
        return await read_export(directory, database or self.database, self.blobs, say=lambda _: None)


@asynccontextmanager
async def open_place(directory: Path, url: str = "") -> AsyncIterator[Place]:
    if not directory.exists():
        directory.mkdir(mode=0o700)
        write_databases(directory)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(url, data_dir=directory))
        blobs = await stack.enter_async_context(FilesystemBlobs(directory, reserve_bytes=0))
        yield Place(directory=directory, url=url, database=database, blobs=blobs)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A data directory with something of everything, an export of it, and its contents. Leave them as they are."""
    directory = tmp_path_factory.mktemp("made")
    found: dict[str, Any] = {}

    async def make() -> None:
        async with open_place(directory / "data") as place:
            await fill(place.database, place.blobs)
            found.update(await contents(place.database))
            await place.export(directory / "export")

    anyio.run(make)
    return directory / "data", directory / "export", found


def copy_of(export: Path, to: Path) -> Path:
    shutil.copytree(export, to)
    return to


def newest_number(conn: Connection) -> int:
    return int(conn.execute(select(func.max(schema.objects.c.id))).scalar_one())


async def make_model(place: Place, name: str) -> None:
    await SqlRegistryStore(place.database).create_model(NewModel(namespace="ns", name=name), actor="", at=AT)


# -- everything arrives ----------------------------------------------------------------------------------------------


async def test_everything_arrives_from_sqlite_in_sqlite(made: Made, tmp_path: Path) -> None:
    data, export, before = made
    assert [name for name, found in before.items() if name != "rev" and not found[0]] == []
    written = read_manifest(export)
    assert verify_export(export, say=lambda _: None) == written
    async with open_place(data) as source, open_place(tmp_path / "b") as target:
        assert await target.read(export) == written
        assert await contents(target.database) == before == await contents(source.database)
        assert await epoch_of(target.database) != await epoch_of(source.database)
        for digest in await target.database.read(
            lambda conn: conn.execute(select(schema.blobs.c.digest)).scalars().all()
        ):
            assert [part async for part in target.blobs.read(digest)] == [
                part async for part in source.blobs.read(digest)
            ]
        again = await target.export(tmp_path / "again")
        for table in written.tables:
            if table.name != "feed_head":
                assert again.table(table.name) == table
        # It is a database like any other now.
        await target.database.read(refuse_unfinished_import)
        await make_model(target, "next")


@pytest.mark.parametrize("kind", ["postgres_migrated_url", "mariadb_migrated_url"])
async def test_everything_arrives_elsewhere_and_comes_back(
    made: Made, tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    _, export, before = made
    async with open_place(tmp_path / "a", request.getfixturevalue(kind)) as there, open_place(tmp_path / "b") as back:
        await there.read(export)
        assert await contents(there.database) == before
        again = await there.export(tmp_path / "again")
        await make_model(there, "next")
        for table in read_manifest(export).tables:
            if table.name != "feed_head":
                assert again.table(table.name).rows_sum == table.rows_sum
                assert again.table(table.name).last_id == table.last_id
        await back.read(tmp_path / "again")
        assert await contents(back.database) == before


async def test_files_move_into_an_s3_store_and_back(
    made: Made, tmp_path: Path, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, export, before = made
    for key, value in s3_bucket.env.items():
        monkeypatch.setenv(key, value)
    options = S3Options(endpoint=s3_bucket.endpoint, region=s3_bucket.region, path_style=True)
    async with open_blobs(s3_bucket.url, data_dir=tmp_path, s3=options) as store:
        async with open_place(tmp_path / "a") as there:
            await read_export(export, there.database, store, say=lambda _: None)
            await write_export(
                partial(open_snapshot, "", data_dir=there.directory), store, tmp_path / "again", say=lambda _: None
            )
            with pytest.raises(StorageError, match="of the files that the database names are not where"):
                await there.export(tmp_path / "without")
    again = verify_export(tmp_path / "again", say=lambda _: None)
    assert again.blobs == read_manifest(export).blobs
    async with open_place(tmp_path / "b") as back:
        await back.read(tmp_path / "again")
        assert await contents(back.database) == before


async def test_numbers_are_not_given_again_after_a_move(made: Made, tmp_path: Path) -> None:
    data, export, _ = made
    numbers = []
    for place_dir in (copy_of(data, tmp_path / "a"), tmp_path / "b"):
        async with open_place(place_dir) as place:
            if place_dir.name == "b":
                await place.read(export)
            await make_model(place, "next")
            numbers.append(await place.database.read(newest_number))
    assert numbers[0] == numbers[1]


async def test_pages_of_any_size_hold_the_same(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, export, _ = made
    monkeypatch.setattr("modelbox.runtime.moving.tables._PAGE_ROWS", 3)
    monkeypatch.setattr("modelbox.runtime.moving.tables._PAGE_BYTES", 500)
    monkeypatch.setattr(
        export_module, "copied_tables", lambda: [one for one in copied_tables() if one.table.name != "metric_points"]
    )
    async with open_place(data) as place:
        small = await place.export(tmp_path / "small")
    for table in read_manifest(export).tables:
        if table.name != "metric_points":
            assert small.table(table.name) == table


# -- a running server ------------------------------------------------------------------------------------------------


async def test_the_copy_of_a_database_that_is_written_is_one_moment(tmp_path: Path) -> None:
    async with open_place(tmp_path / "a") as place:
        stop = anyio.Event()
        written = 0

        def add(number: int, conn: Connection) -> None:
            conn.execute(insert(metric_schema.metric_objects), {"uid": f"o{number}"})

        async def write() -> None:
            nonlocal written
            while not stop.is_set():
                await make_model(place, f"m{written}")
                await place.database.metrics.write(partial(add, written))
                written += 1

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            seen = []
            for number in range(4):
                before = written
                while written == before:
                    await anyio.sleep(0.001)
                seen.append(await place.export(tmp_path / f"export-{number}"))
            stop.set()
    for number, manifest in enumerate(seen):
        assert verify_export(tmp_path / f"export-{number}", say=lambda _: None) == manifest
        models, points = manifest.table("models").rows, manifest.table("metric_objects").rows
        assert points <= models <= points + 1
    assert len({manifest.feed.rev for manifest in seen}) == 4


# -- breaking off ----------------------------------------------------------------------------------------------------


class Broken(Exception):
    """As far as it got."""


class BreakingDatabase:
    """Fails at one of its writes, before it or after its commit."""

    def __init__(self, database: Database, left: list[int], *, after: bool) -> None:
        self._database = database
        self._left = left
        self._after = after

    @property
    def metrics(self) -> BreakingDatabase:
        main: Any = self._database
        return BreakingDatabase(main.metrics, self._left, after=self._after)

    async def read(self, fn: Callable[[Connection], T]) -> T:
        return await self._database.read(fn)

    async def write(self, fn: Callable[[Connection], T]) -> T:
        self._left[0] -= 1
        if self._left[0] == 0 and not self._after:
            raise Broken
        done = await self._database.write(fn)
        if self._left[0] == 0:
            raise Broken
        return done


@pytest.mark.parametrize("kind", ["sqlite", "postgres_migrated_url", "mariadb_migrated_url"])
async def test_an_import_goes_on_wherever_it_was_broken_off(
    made: Made,
    tmp_path: Path,
    kind: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, export, before = made
    monkeypatch.setattr(import_module, "_BATCH_ROWS", 40)
    url = "" if kind == "sqlite" else request.getfixturevalue(kind)
    chance = random.Random(7)
    breaks = 0
    async with open_place(tmp_path / "a", url) as place:
        while True:
            # At the first writes one by one, then further apart.
            left = [1 + breaks % 3 if breaks < 9 else chance.randrange(1, 12)]
            try:
                await place.read(export, database=BreakingDatabase(place.database, left, after=bool(breaks % 2)))
                break
            except Broken:
                breaks += 1
            if breaks > 3:
                with pytest.raises(ConfigError, match="was not finished"):
                    await place.database.read(refuse_unfinished_import)
        assert breaks > 10
        await place.database.read(refuse_unfinished_import)
        assert await contents(place.database) == before


async def test_no_server_starts_on_an_unfinished_import(made: Made, tmp_path: Path) -> None:
    async with open_place(tmp_path / "a") as place:
        with pytest.raises(Broken):
            await place.read(made[1], database=BreakingDatabase(place.database, [6], after=True))
    server = ServerProcess(tmp_path / "a")
    server.spawn()
    server.wait_for("an import into this database was not finished: run the same modelbox server import again")
    assert server.wait() == 2


async def test_an_unfinished_import_is_not_mixed_with_another(made: Made, tmp_path: Path) -> None:
    data, export, _ = made
    async with open_place(copy_of(data, tmp_path / "other")) as other:
        await make_model(other, "one-more")
        await other.export(tmp_path / "export")
    async with open_place(tmp_path / "a") as place:
        with pytest.raises(Broken):
            await place.read(export, database=BreakingDatabase(place.database, [6], after=True))
        with pytest.raises(ConflictError, match="another export"):
            await place.read(tmp_path / "export")
        await place.read(export)


async def test_an_export_goes_on_where_it_was_broken_off(made: Made, tmp_path: Path) -> None:
    data, export, _ = made

    large = max(await sizes_of(data), key=lambda one: one[1])

    class BreakingBlobs(FilesystemBlobs):
        offsets: ClassVar[list[int]] = []

        async def read(self, digest: Digest, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
            first = digest == large[0] and not self.offsets
            if digest == large[0]:
                self.offsets.append(offset)
            async for chunk in super().read(digest, offset=offset, length=length):
                yield chunk
                if first:
                    raise Broken

    async with BreakingBlobs(data, reserve_bytes=0) as breaking:
        snapshot = partial(open_snapshot, "", data_dir=data)
        with pytest.raises(Broken):
            await write_export(snapshot, breaking, tmp_path / "export", say=lambda _: None)
        with pytest.raises(NotFoundError, match="not finished"):
            read_manifest(tmp_path / "export")
        with pytest.raises(NotFoundError, match="not finished"):
            verify_export(tmp_path / "export", say=lambda _: None)
        await write_export(snapshot, breaking, tmp_path / "export", say=lambda _: None)
    assert verify_export(tmp_path / "export", say=lambda _: None).tables == read_manifest(export).tables
    # Where it ended, not where it began.
    assert breaking.offsets == [0, 1 << 20]
    assert sorted(entry.name for entry in os.scandir(tmp_path / "export")) == ["blobs", MANIFEST, "tables"]


async def sizes_of(data: Path) -> list[tuple[str, int]]:
    columns = select(schema.blobs.c.digest, schema.blobs.c.size_bytes)
    async with open_snapshot("", data_dir=data) as snapshot:
        return [(row[0], row[1]) for row in await snapshot.run(lambda main, _: main.execute(columns).all())]


def _command(*argv: str) -> subprocess.Popen[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("MODELBOX_")}
    return subprocess.Popen(
        [sys.executable, "-m", "modelbox", "server", *argv], stderr=subprocess.PIPE, text=True, env=env
    )


def _is_imported(database: Path) -> bool:
    """Whether there is content, and no mark of an import any more."""
    if not database.exists():
        return False
    with closing(sqlite3.connect(database)) as raw:
        tables = {row[0] for row in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "models" not in tables or "import_progress" in tables:
            return False
        return bool(raw.execute("SELECT count(*) FROM models").fetchone()[0])


async def test_processes_that_are_killed_at_any_moment_go_on(made: Made, tmp_path: Path) -> None:
    data, _, before = made
    chance = random.Random(11)

    def run(*argv: str, kills: int, lines: tuple[int, int], finished: Callable[[], bool]) -> None:
        for _ in range(kills):
            with _command(*argv) as process:
                assert process.stderr is not None
                # As far as some line that it prints, and a little further.
                for _, _line in zip(range(chance.randint(*lines)), process.stderr, strict=False):
                    pass
                time.sleep(chance.random() * 0.02)
                process.kill()
            # Where this process was slower than that one, it was killed after the last thing that it had to do.
            if process.returncode == 0 or finished():
                return
        with _command(*argv) as process:
            assert process.stderr is not None
            said = process.stderr.read()
            assert process.wait() == 0, said

    export, new = tmp_path / "export", tmp_path / "new"
    exporting = ("export", "--data-dir", str(data), str(export))
    await to_thread.run_sync(lambda: run(*exporting, kills=2, lines=(1, 35), finished=(export / MANIFEST).exists))
    verify_export(export, say=lambda _: None)
    importing = ("import", "--data-dir", str(new), str(export))
    await to_thread.run_sync(
        lambda: run(*importing, kills=4, lines=(36, 60), finished=lambda: _is_imported(new / "modelbox.db"))
    )
    async with open_place(new) as place:
        assert await contents(place.database) == before
        await place.database.read(refuse_unfinished_import)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
@pytest.mark.root
async def test_a_full_disk_is_told_and_left_to_be_gone_on_from(made: Made, tmp_path: Path) -> None:
    data, export, before = made
    for name, size in (("few", "100k"), ("more", "1m")):
        (tmp_path / name).mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(tmp_path / name)]
        if (await anyio.run_process(mount, check=False)).returncode:
            pytest.skip("tmpfs cannot be mounted here")
    try:
        async with open_place(data) as place:
            for name in ("few", "more"):
                with pytest.raises(LimitError, match=r"disk of .* is full|do not fit"):
                    await place.export(tmp_path / name / "export")
                with pytest.raises(NotFoundError, match="not finished"):
                    read_manifest(tmp_path / name / "export")
            await anyio.run_process(["mount", "-o", "remount,size=20m", str(tmp_path / "few")])
            await place.export(tmp_path / "few" / "export")
            assert verify_export(tmp_path / "few" / "export", say=lambda _: None).tables == read_manifest(export).tables
        shutil.rmtree(tmp_path / "few" / "export")
        (tmp_path / "files").mkdir()
        with open(tmp_path / "few" / "ballast", "wb") as ballast:
            ballast.truncate(0)
            target = tmp_path / "few" / "data"
            target.mkdir()
            write_databases(target)
            async with (
                open_database("", data_dir=target) as database,
                FilesystemBlobs(tmp_path / "files", reserve_bytes=0) as blobs,
            ):
                free = os.statvfs(target)
                ballast.write(bytes(free.f_bavail * free.f_frsize - 200_000))
                ballast.flush()
                with pytest.raises(LimitError, match="disk of the database is full"):
                    await read_export(export, database, blobs, say=lambda _: None)
                ballast.truncate(0)
                await read_export(export, database, blobs, say=lambda _: None)
                assert await contents(database) == before
    finally:
        for name in ("few", "more"):
            await anyio.run_process(["umount", "-l", str(tmp_path / name)], check=False)


# -- what is refused -------------------------------------------------------------------------------------------------


async def test_a_database_with_content_is_refused_and_its_content_named(made: Made, tmp_path: Path) -> None:
    _, export, _ = made
    async with open_place(tmp_path / "a") as place:
        await make_model(place, "m")
        with pytest.raises(ConfigError, match=r"not empty, it has .*a history of 1 revisions, 1 rows in namespaces"):
            await place.read(export)
        await place.database.read(refuse_unfinished_import)


@pytest.mark.parametrize("kind", ["postgres_migrated_url", "mariadb_migrated_url"])
async def test_a_database_with_servers_on_it_is_refused(
    made: Made, tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    def join(until_us: int, conn: Connection) -> None:
        numbers = dict.fromkeys(("started_at_us", "seen_at_us", "clock_ahead_us", "rev"), 0)
        texts = dict.fromkeys(("role", "state", "grpc_address", "http_address", "version"), "")
        row = {"uid": f"u{until_us}", "name": f"server-{until_us}", "until_us": until_us, **texts, **numbers}
        conn.execute(insert(schema.replicas), row)

    async with open_place(tmp_path / "a", request.getfixturevalue(kind)) as place:
        await place.database.write(partial(join, 7))
        await place.database.write(partial(join, 1 << 60))
        with pytest.raises(ConfigError, match=rf"servers use this database \(server-{1 << 60}\)"):
            await place.read(made[1])
        await place.database.read(refuse_unfinished_import)


@fault(70)
async def test_a_database_that_refuses_or_is_away_is_told_without_its_password(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    wrong = postgres_server.url("postgres", password="guessed-secret")
    with pytest.raises(ConfigError, match="check user, password and database") as refused:
        async with open_snapshot(wrong, data_dir=tmp_path):
            pass
    away = postgres_server.url("postgres", password="guessed-secret", port=1)
    with pytest.raises(ServerBusy, match="does not answer") as unanswered:
        async with open_snapshot(away, data_dir=tmp_path):
            pass
    for caught in (refused, unanswered):
        assert "guessed-secret" not in str(caught.value)
    with pytest.raises(ConfigError, match=f"no database in {tmp_path}"):
        async with open_snapshot("", data_dir=tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


async def test_an_export_is_not_written_over_something_else(made: Made, tmp_path: Path) -> None:
    data, export, _ = made
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").touch()
    async with open_place(data) as place:
        with pytest.raises(ConfigError, match="finished export"):
            await place.export(export)
        with pytest.raises(ConfigError, match="not empty"):
            await place.export(tmp_path / "other")


def _flip(path: Path, place: int) -> None:
    path.chmod(0o600)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def _cut(path: Path, place: int) -> None:
    path.write_bytes(path.read_bytes()[:place])


def _exchange(path: Path, _: int) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[1], lines[0], *lines[2:]]))


def _leave_out(path: Path, _: int) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


@pytest.mark.parametrize(
    ("table", "damage", "place", "expected"),
    [
        ("runs", _flip, 20, r"tables/runs\.jsonl line 1: its checksum is another"),
        ("metric_points", _flip, 3000, r"tables/metric_points\.jsonl line \d+: its checksum is another"),
        ("feed_changes", _flip, -5, r"tables/feed_changes\.jsonl line \d+: "),
        ("feed_changes", _cut, -20, r"tables/feed_changes\.jsonl line \d+: it is cut off"),
        ("attributes", _exchange, 0, r"tables/attributes\.jsonl: its SHA-256 is another"),
        ("attributes", _leave_out, 0, r"tables/attributes\.jsonl line \d+: the file has"),
        ("models", lambda path, _: path.unlink(), 0, r"tables/models\.jsonl is missing"),
    ],
)
async def test_damage_is_found_where_it_is_before_anything_changes(
    made: Made,
    tmp_path: Path,
    table: str,
    damage: Callable[[Path, int], None],
    place: int,
    expected: str,
) -> None:
    export = copy_of(made[1], tmp_path / "export")
    damage(export / "tables" / f"{table}.jsonl", place)
    with pytest.raises(IntegrityError, match=expected):
        verify_export(export, say=lambda _: None)
    async with open_place(tmp_path / "a") as target:
        with pytest.raises(IntegrityError, match=expected):
            await target.read(export)
        await target.database.read(refuse_unfinished_import)


async def test_a_file_that_is_damaged_or_missing_is_named(made: Made, tmp_path: Path) -> None:
    export = copy_of(made[1], tmp_path / "export")
    path = blob_path(digest_of(b"weights"))
    _flip(export / path, 0)
    with pytest.raises(IntegrityError, match=f"{path} is not what its name says"):
        verify_export(export, say=lambda _: None)
    async with open_place(tmp_path / "a") as target:
        with pytest.raises(IntegrityError, match=digest_of(b"weights")):
            await target.read(export)
        (export / path).unlink()
        with pytest.raises(IntegrityError, match=f"{path} is missing"):
            await target.read(export)
        # Mended, it goes on.
        shutil.copy(made[1] / path, export / path)
        await target.read(export)
        assert await contents(target.database) == made[2]


async def test_a_manifest_that_was_altered_is_refused(made: Made, tmp_path: Path) -> None:
    export = copy_of(made[1], tmp_path / "export")
    manifest = json.loads((export / MANIFEST).read_text())

    def write(**changes: Any) -> None:
        (export / MANIFEST).write_text(json.dumps({**manifest, **changes}))

    write(release="9.9.9")
    with pytest.raises(IntegrityError, match="its checksum is another"):
        read_manifest(export)
    write(format=2, release="9.9.9")
    with pytest.raises(IntegrityError, match=r"format 2.*9\.9\.9"):
        read_manifest(export)
    _cut(export / MANIFEST, 100)
    with pytest.raises(IntegrityError, match="damaged"):
        read_manifest(export)
    with pytest.raises(NotFoundError, match="no export"):
        read_manifest(tmp_path)


async def test_another_schema_is_refused_with_the_release_to_use(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, export, _ = made
    known = {"main": "9999", "metrics": "0001"}
    monkeypatch.setattr(import_module, "known_schema", lambda: known)
    monkeypatch.setattr(export_module, "known_schema", lambda: known)
    async with open_place(data) as place, open_place(tmp_path / "a") as target:
        with pytest.raises(ConfigError, match="import it with the release of ModelBox that wrote it"):
            await target.read(export)
        with pytest.raises(ConfigError, match="which upgrades the database"):
            await place.export(tmp_path / "export")


async def test_a_store_that_has_lost_a_file_is_told(made: Made, tmp_path: Path) -> None:
    data = copy_of(made[0], tmp_path / "data")
    (data / blob_path(digest_of(b"weights"))).unlink()
    async with open_place(data) as place:
        with pytest.raises(StorageError, match=f"1 of the files .*\n  {digest_of(b'weights')} is missing"):
            await place.export(tmp_path / "export")
