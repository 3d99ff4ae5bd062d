"""What only SQLite does: its lock, its writer, its faults, and crashes at any moment."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from sqlalchemy import Connection, create_engine, inspect, select, text

from modelbox.errors import ConfigError, LimitError, NotFoundError, ServerBusy, StorageError
from modelbox.objects import ModelPatch, NewModel
from modelbox.runtime.store import migrate as migrate_module
from modelbox.runtime.store.history import next_rev, verify_chain
from modelbox.runtime.store.migrate import HEAD, migrate
from modelbox.runtime.store.schema import feed_head, metadata
from modelbox.runtime.store.sqlite import SqliteDatabase
from tests.faults.registry import fault

from .server_core import Core, open_core

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[Core]:
    async with open_core(tmp_path / "data") as opened:
        yield opened


# -- schema --------------------------------------------------------------------------------------------------------


def _described(connection: Connection) -> dict[str, object]:
    """Everything that the inspector says of every table."""
    inspector = inspect(connection)
    described: dict[str, object] = {}
    for table in inspector.get_table_names():
        if table == "alembic_version":
            continue
        described[table] = {
            "columns": [(c["name"], str(c["type"]), c["nullable"], c["default"]) for c in inspector.get_columns(table)],
            "pk": inspector.get_pk_constraint(table),
            "fks": sorted(map(str, inspector.get_foreign_keys(table))),
            "unique": sorted(map(str, inspector.get_unique_constraints(table))),
            "indexes": sorted(map(str, inspector.get_indexes(table))),
        }
    return described


def test_migrations_make_the_schema() -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    migrated, declared = create_engine("sqlite://"), create_engine("sqlite://")
    with migrated.connect() as left, declared.connect() as right:
        left = left.execution_options(isolation_level="AUTOCOMMIT")
        assert migrate(left)
        assert not migrate(left)
        metadata.create_all(right)
        assert compare_metadata(MigrationContext.configure(left), metadata) == []
        assert _described(left) == _described(right)
        assert left.execute(text("SELECT version_num FROM alembic_version")).scalar() == HEAD
    migrated.dispose()
    declared.dispose()


def test_the_head_is_the_last_migration() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(migrate_module.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


async def test_a_database_of_a_newer_release_is_left_alone(tmp_path: Path) -> None:
    async with SqliteDatabase(tmp_path):
        pass
    with sqlite3.connect(tmp_path / "modelbox.db") as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.close()
    with pytest.raises(ConfigError, match="9999"):
        async with SqliteDatabase(tmp_path):
            pass
    with sqlite3.connect(tmp_path / "modelbox.db") as raw:
        assert raw.execute("SELECT version_num FROM alembic_version").fetchall() == [("9999",)]
    raw.close()


async def test_opening_again_is_the_same_installation_without_alembic(tmp_path: Path) -> None:
    async with open_core(tmp_path) as core:
        first = await core.feed_store.head()
    script = f"""
import sys, anyio
from pathlib import Path
from modelbox.runtime.store.sqlite import SqliteDatabase
from modelbox.runtime.store.feed import SqlFeedStore
async def main():
    async with SqliteDatabase(Path({str(tmp_path)!r})) as database:
        print((await SqlFeedStore(database).head()).server_id, "alembic" in sys.modules)
anyio.run(main)
"""
    done = await anyio.run_process([sys.executable, "-c", script], cwd=ROOT)
    assert done.stdout.decode().split() == [first.server_id, "False"]


# -- one process ---------------------------------------------------------------------------------------------------


async def test_a_second_process_is_refused_by_name(core: Core) -> None:
    script = f"""
import anyio
from pathlib import Path
from modelbox.errors import ConfigError
from modelbox.runtime.store.sqlite import SqliteDatabase
async def main():
    try:
        async with SqliteDatabase(Path({str(core.directory)!r})):
            print("opened")
    except ConfigError as exc:
        print(exc)
anyio.run(main)
"""
    done = await anyio.run_process([sys.executable, "-c", script], cwd=ROOT)
    said = done.stdout.decode()
    assert f"process {os.getpid()}" in said
    assert str(core.directory) in said
    await core.registry.create_model(NewModel(namespace="ns", name="m"), actor="")


async def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="file"):
        async with SqliteDatabase(tmp_path / "file" / "data"):
            pass


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "modelbox.db").write_bytes(random.Random(1).randbytes(8192))
    with pytest.raises(StorageError):
        async with SqliteDatabase(tmp_path):
            pass
    # The lock was given back.
    (tmp_path / "modelbox.db").unlink()
    async with SqliteDatabase(tmp_path):
        pass


async def test_data_are_private(core: Core) -> None:
    assert core.directory.stat().st_mode & 0o077 == 0
    assert (core.directory / "modelbox.db").stat().st_mode & 0o077 == 0


# -- transactions --------------------------------------------------------------------------------------------------


def _rev(conn: Connection) -> int:
    return int(conn.execute(select(feed_head.c.rev)).scalar_one())


async def test_a_failed_function_leaves_its_neighbours_alone(core: Core) -> None:
    """Functions of one group share the commit, but never a failure."""
    gate = threading.Event()
    results: list[int] = []

    async def create(number: int) -> None:
        created = await core.registry.create_model(NewModel(namespace="ns", name=f"m{number}"), actor="")
        results.append(created.item.mod_rev)

    async def fail(number: int) -> None:
        def broken(conn: Connection) -> None:
            next_rev(conn)
            raise RuntimeError("half done")

        with pytest.raises(RuntimeError, match="half done"):
            await core.database.write(broken)
        with pytest.raises(NotFoundError):
            await core.registry.update_model("ns", f"nix{number}", ModelPatch(owner="x"), actor="")

    async with anyio.create_task_group() as tasks:
        # Holds the writer until the others wait for it, so that they become one group.
        tasks.start_soon(core.database.write, lambda conn: gate.wait(60))
        for number in range(10):
            tasks.start_soon(create, number)
            tasks.start_soon(fail, number)
        await anyio.wait_all_tasks_blocked()
        gate.set()
    assert sorted(results) == list(range(1, 11))
    assert await core.database.read(verify_chain) == 10


async def test_a_bug_in_a_function_reaches_its_caller_only(core: Core) -> None:
    def broken(conn: Connection) -> None:
        next_rev(conn)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await core.database.write(broken)
    with pytest.raises(ZeroDivisionError):
        await core.database.read(lambda conn: 1 / 0)
    assert await core.database.read(_rev) == 0


async def test_reads_cannot_write(core: Core) -> None:
    with pytest.raises(StorageError, match="readonly"):
        await core.database.read(lambda conn: next_rev(conn))


async def test_a_cancelled_write_that_has_not_begun_does_not_run(core: Core) -> None:
    gate, ran = threading.Event(), []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(core.database.write, lambda conn: gate.wait(60))
        await anyio.wait_all_tasks_blocked()
        with anyio.move_on_after(0.05):
            await core.database.write(lambda conn: ran.append(1))
        gate.set()
    assert await core.database.write(_rev) == 0
    assert ran == []


async def test_a_write_is_visible_to_every_later_read(core: Core) -> None:
    for number in range(200):
        created = await core.registry.create_model(NewModel(namespace="ns", name=f"m{number}"), actor="")
        assert await core.database.read(_rev) == created.item.mod_rev


async def test_a_closed_database_says_so(tmp_path: Path) -> None:
    async with SqliteDatabase(tmp_path) as database:
        pass
    with pytest.raises(ServerBusy):
        await database.read(_rev)


async def test_commits_are_told_on_the_loop(core: Core) -> None:
    told: list[int] = []
    core.database.on_commit(lambda: told.append(threading.get_ident()))
    await core.registry.create_model(NewModel(namespace="ns", name="m"), actor="")
    await anyio.wait_all_tasks_blocked()
    assert told == [threading.get_ident()]


# -- faults --------------------------------------------------------------------------------------------------------


@fault(31)
@pytest.mark.slow
async def test_a_foreign_lock_makes_writers_wait_then_tell(core: Core) -> None:
    await core.registry.create_model(NewModel(namespace="ns", name="m"), actor="")
    foreign = sqlite3.connect(core.directory / "modelbox.db", isolation_level=None)
    foreign.execute("BEGIN IMMEDIATE")
    with pytest.raises(ServerBusy) as caught:
        await core.registry.create_model(NewModel(namespace="ns", name="n"), actor="")
    assert caught.value.fields["retry_after_s"] == 1.0
    assert (await core.registry.get_model("ns", "m")).name == "m"
    foreign.execute("ROLLBACK")
    foreign.close()
    await core.registry.create_model(NewModel(namespace="ns", name="n"), actor="")


@fault(32)
@pytest.mark.root
async def test_a_full_disk_refuses_writes_and_recovers(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    mounted = await anyio.run_process(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(volume)], check=False)
    if mounted.returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        async with open_core(volume / "data") as core:
            acked = 0
            with pytest.raises(LimitError, match="full"):
                for number in range(10_000):
                    new = NewModel(namespace="ns", name=f"m{number}", description="d" * 10_000)
                    acked = (await core.registry.create_model(new, actor="")).item.mod_rev
            assert acked > 5
            # Reads go on, nothing that was acknowledged is lost, and nothing else has appeared.
            assert len((await core.registry.list_models(page_size=1000)).items) == acked
            assert await core.database.read(verify_chain) == acked
            assert core.database.failure is None
            await anyio.run_process(["mount", "-o", "remount,size=32m", str(volume)])
            created = await core.registry.create_model(NewModel(namespace="ns", name="again"), actor="")
            assert created.item.mod_rev == acked + 1
    finally:
        await anyio.run_process(["umount", str(volume)])


@fault(33)
async def test_an_io_error_stops_the_writer_for_good(tmp_path: Path) -> None:
    """A file size limit makes SQLite's writes fail with an I/O error; it is a process's, so a process of its own."""
    script = f"""
import anyio, resource, signal
from pathlib import Path
from modelbox.errors import StorageError
from modelbox.objects import NewModel
from tests.integration.server_core import open_core
async def main():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    async with open_core(Path({str(tmp_path / "data")!r})) as core:
        await core.registry.create_model(NewModel(namespace="ns", name="m"), actor="")
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        for turn in range(3):
            try:
                await core.registry.create_model(NewModel(namespace="ns", name=f"n{{turn}}"), actor="")
                print("acknowledged")
            except StorageError as exc:
                print("refused")
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        with anyio.fail_after(60):
            print("failed:", await core.database.wait_failed() is core.database.failure)
        print((await core.registry.get_model("ns", "m")).name)
anyio.run(main)
"""
    done = await anyio.run_process([sys.executable, "-c", script], cwd=ROOT)
    assert done.stdout.decode().split() == ["refused", "refused", "refused", "failed:", "True", "m"]
    async with open_core(tmp_path / "data") as core:
        assert await core.database.read(verify_chain) == 1


@fault(23)
@pytest.mark.slow
async def test_killed_at_any_moment_no_acknowledged_change_is_lost(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    async with open_core(directory) as core:
        await core.publish(b"one")
        await core.publish(b"two")
    seeded = random.Random(20)
    acked = 0
    for _ in range(6):
        process = await anyio.open_process(
            [sys.executable, "-m", "tests.integration.store_writer", str(directory)], cwd=ROOT, stderr=None
        )
        assert process.stdout is not None
        said = b""
        wanted = seeded.randint(1, 400)
        with anyio.fail_after(60):
            async for data in process.stdout:
                said += data
                if said.count(b"\n") >= wanted:
                    process.send_signal(signal.SIGKILL)
                    break
            async for data in process.stdout:
                said += data
            await process.wait()
        await process.aclose()
        heard = [int(line) for line in said.decode().split("\n")[:-1]]
        assert len(heard) == len(set(heard)) >= wanted
        assert min(heard) > acked
        acked = max(heard)
        async with open_core(directory) as core:
            head = await core.feed_store.head()
            assert head.rev >= acked
            await core.database.read(verify_chain)
            stored = await core.feed_store.read_after(0, limit=100_000, max_bytes=1 << 30)
            revs = [revision.rev for revision in stored.revisions]
            assert revs == list(range(1, head.rev + 1))
            assert await core.database.read(lambda conn: conn.execute(text("PRAGMA integrity_check")).scalar()) == "ok"
            acked = head.rev
