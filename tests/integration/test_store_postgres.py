"""What only PostgreSQL does, and its faults: real servers that are killed, locked, paused and set up wrongly."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import pytest
from anyio import to_thread
from sqlalchemy import Connection, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncTransaction

from modelbox.errors import ConfigError, LimitError, ServerBusy, StorageError, Unavailable
from modelbox.objects import ModelPatch
from modelbox.runtime.store import postgres as postgres_module
from modelbox.runtime.store.history import verify_chain
from modelbox.runtime.store.registry import SqlRegistryStore
from modelbox.runtime.store.schema import models, namespaces
from modelbox.runtime.store.shared import SharedDatabase
from tests.contract.metadata_stores import AT
from tests.contract.shared_databases import (
    Dialect,
    SharedDatabaseContract,
    as_coroutine,
    create,
    names,
    opened,
    wait_until,
)
from tests.faults.registry import fault
from tests.servers.postgres import PostgresServer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    """A server that tests may kill; each leaves it running."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def own_url(own_server: PostgresServer) -> str:
    if not own_server.running:
        own_server.start()
    return own_server.new_database(migrated=True)


@pytest.fixture
async def database(postgres_migrated_url: str) -> AsyncIterator[SharedDatabase]:
    async with opened(postgres_migrated_url, patience_s=0.5) as found:
        yield found


async def backends(server: PostgresServer, url: str, *, where: str = "true") -> int:
    """The connections of the server to a database, those that ``where`` lets through."""
    query = f"SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid() AND {where}"
    rows = await to_thread.run_sync(partial(server.fetch, query, url.rpartition("/")[2]))
    return int(rows[0][0])


async def terminate(server: PostgresServer, url: str, *, where: str = "true") -> int:
    """Ends connections from the server's side; returns how many."""
    query = (
        "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity"
        f" WHERE datname = $1 AND pid <> pg_backend_pid() AND {where}"
    )
    rows = await to_thread.run_sync(partial(server.fetch, query, url.rpartition("/")[2]))
    return int(rows[0][0])


# -- opening -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "instead", "said"),
    [
        ("password", "not-the-password", "password authentication failed"),
        ("modelbox:", "somebody:", "password authentication failed"),
        ("/test_", "/no_such_test_", "does not exist"),
    ],
)
async def test_settings_that_the_server_refuses(
    postgres_server: PostgresServer, postgres_url: str, part: str, instead: str, said: str
) -> None:
    wrong = postgres_url.replace(postgres_server.password if part == "password" else part, instead, 1)
    with pytest.raises(ConfigError, match=said) as caught:
        async with opened(wrong):
            pass
    assert "database_url" in str(caught.value)
    assert postgres_server.password not in repr(caught.value)
    assert "not-the-password" not in f"{caught.value!r} {caught.value.__cause__!r}"


async def test_a_database_that_is_away_at_start() -> None:
    with PostgresServer() as server:
        url = await to_thread.run_sync(server.new_database)
        await to_thread.run_sync(server.stop)
        with pytest.raises(ServerBusy, match=r"PostgreSQL does not answer .*: database_url leads to 127\.0\.0\.1:\d+$"):
            async with opened(url, connect_timeout_s=0.3):
                pass
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(to_thread.run_sync, server.start)
            async with opened(url, connect_timeout_s=100) as database:
                assert await create(database, "m") == 1


async def test_texts_are_compared_byte_by_byte(postgres_server: PostgresServer, postgres_migrated_url: str) -> None:
    # The database itself is of another collation; see `PostgresServer.new_database`.
    query = """
        SELECT t.relname, a.attname FROM pg_attribute a JOIN pg_class t ON t.oid = a.attrelid
        JOIN pg_collation c ON c.oid = a.attcollation
        WHERE t.relnamespace = 'public'::regnamespace AND t.relkind IN ('r', 'p') AND c.collname <> 'C'
          AND a.attnum > 0 AND a.attname <> 'version_num'
    """
    assert await to_thread.run_sync(partial(postgres_server.fetch, query, url=postgres_migrated_url)) == []


# -- transactions --------------------------------------------------------------------------------------------------


async def test_a_conflict_is_tried_again(database: SharedDatabase) -> None:
    runs: list[str] = []

    def conflicting(conn: Connection) -> str:
        runs.append("run")
        conn.execute(insert(namespaces).values(name=f"n{len(runs)}", created_at_us=0, mod_rev=1))
        if len(runs) < 3:
            state = ("40001", "40P01")[len(runs) - 1]
            conn.execute(text(f"DO $$ BEGIN RAISE EXCEPTION 'in the way' USING ERRCODE = '{state}'; END $$"))
        return "done"

    assert await database.write(conflicting) == "done"
    kept = await database.read(lambda conn: [*conn.execute(select(namespaces.c.name)).scalars()])
    assert kept == ["n3"]


async def test_a_deadlock_with_a_foreign_transaction(postgres_migrated_url: str) -> None:
    async with opened(postgres_migrated_url, patience_s=60) as database:
        await create(database, "m")
        foreign = await asyncpg.connect(postgres_migrated_url)
        # Whoever has waited for this long first is the one that goes: ours, after the server's second.
        await foreign.execute("SET deadlock_timeout = '20s'; BEGIN; UPDATE models SET owner = 'theirs'")
        tries: list[str] = []

        def change(conn: Connection) -> None:
            tries.append("try")
            conn.execute(update(models).values(owner="ours"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(database.write, change)
            await wait_until(lambda: as_coroutine(bool(tries)))
            await foreign.execute("UPDATE feed_head SET epoch = epoch")
            await foreign.execute("COMMIT")
        await foreign.close()
        assert len(tries) > 1
        assert await database.read(lambda conn: conn.execute(select(models.c.owner)).scalar()) == "ours"


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize(
    ("state", "error", "said"),
    [
        ("53100", LimitError, "make room"),
        ("53300", ServerBusy, "try again"),
        ("57014", ServerBusy, "took too long"),
        ("42501", ConfigError, "database_url"),
        ("XX001", StorageError, "PostgreSQL failed"),
    ],
)
async def test_what_the_server_says_is_told_apart_and_without_values(
    database: SharedDatabase, raw: bool, state: str, error: type[Exception], said: str
) -> None:
    def failing(conn: Connection) -> None:
        statement = f"DO $$ BEGIN RAISE EXCEPTION 'so it is' USING ERRCODE = '{state}', DETAIL = 'a secret'; END $$"
        if raw:
            # As `Prepared` does, past SQLAlchemy's own execution.
            conn.connection.cursor().execute(statement)
        conn.execute(text(statement))

    for attempt in (database.write, database.read, database.metrics.write):
        with pytest.raises(error, match=said) as caught:
            await attempt(failing)
        assert "secret" not in str(caught.value)
        assert "RAISE" not in str(caught.value)
    assert await create(database, "m") == 1


# -- locks and limits ----------------------------------------------------------------------------------------------


@fault(31)
async def test_a_lock_that_a_foreign_transaction_holds(database: SharedDatabase, postgres_migrated_url: str) -> None:
    await create(database, "before")
    foreign = await asyncpg.connect(postgres_migrated_url)
    await foreign.execute("BEGIN; SELECT * FROM feed_head FOR UPDATE")
    with anyio.fail_after(60), pytest.raises(ServerBusy) as caught:
        await create(database, "refused")
    assert caught.value.fields["retry_after_s"]
    assert await names(database) == ["before"]
    await foreign.execute("ROLLBACK")
    await foreign.close()
    assert await create(database, "after") == 2


@fault(31)
async def test_a_replica_that_stands_still_in_a_transaction_holds_nobody_up(postgres_migrated_url: str) -> None:
    script = f"""
import os, signal, sys
import anyio
from tests.integration import test_store_postgres as here
here.postgres_module._WRITE_SETTINGS["idle_in_transaction_session_timeout"] = "1s"
stops = [1]
def stop(conn):
    if stops and stops.pop():
        os.kill(os.getpid(), signal.SIGSTOP)
async def main():
    async with here.opened({postgres_migrated_url!r}) as database:
        await database.write(lambda conn: (stop(conn), conn.execute(here.select(1)))[1])
        print(await here.create(database, "stopped"))
anyio.run(main)
"""
    async with opened(postgres_migrated_url) as database:
        process = await anyio.open_process([sys.executable, "-c", script], cwd=ROOT, stderr=None)
        async with process:
            await wait_until(lambda: as_coroutine(_is_stopped(process.pid)))
            with anyio.fail_after(60):
                assert await create(database, "meanwhile") == 1
            os.kill(process.pid, signal.SIGCONT)
            assert process.stdout is not None
            assert (await process.stdout.receive()).decode().strip() == "2"
        assert await names(database) == ["meanwhile", "stopped"]


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


async def test_reads_wait_for_a_connection_and_then_give_up(postgres_migrated_url: str) -> None:
    began = anyio.Event()

    def slow(seconds: float) -> Callable[[Connection], Any]:
        def sleep(conn: Connection) -> None:
            conn.execute(select(1))
            began.set()
            conn.execute(text(f"SELECT pg_sleep({seconds})"))

        return sleep

    async with opened(postgres_migrated_url, connections=1) as database:
        pool: Any = database._reads.pool
        pool._timeout = 60
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(database.read, slow(0.1))
            tasks.start_soon(database.read, slow(0.01))
        began = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(database.read, slow(600))
            await began.wait()
            pool._timeout = 0.1
            with pytest.raises(ServerBusy, match="all connections to the database are in use"):
                await database.read(slow(0))
            tasks.cancel_scope.cancel()
        pool._timeout = 60
        await database.read(slow(0))


async def test_a_search_ends_in_the_server(
    database: SharedDatabase, postgres_server: PostgresServer, postgres_migrated_url: str
) -> None:
    def endless(conn: Connection) -> None:
        conn.execute(text("SELECT pg_sleep(600)"))

    asleep = partial(backends, postgres_server, postgres_migrated_url, where="query LIKE 'SELECT pg_sleep(600)%'")
    for _ in range(4):
        with anyio.fail_after(60), pytest.raises(TimeoutError):
            await database.search(endless, limit_s=0.1)
    active = partial(asleep, where="query LIKE '%pg_sleep(600)%' AND state = 'active'")

    async def none_runs() -> bool:
        return await active() == 0

    await wait_until(none_runs)
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(partial(database.search, endless, limit_s=60))

        async def all_run() -> bool:
            return await active() == 3

        await wait_until(all_run)
        tasks.cancel_scope.cancel()
    await wait_until(none_runs)
    assert await database.search(lambda conn: conn.execute(select(1)).scalar(), limit_s=60) == 1


@fault(32)
@pytest.mark.root
async def test_a_disk_that_is_full_and_has_room_again(own_server: PostgresServer, own_url: str) -> None:
    disk = own_server.directory / "disk"
    disk.mkdir()
    owner = f"uid={own_server.directory.stat().st_uid},mode=0700"
    done = await anyio.run_process(["mount", "-t", "tmpfs", "-o", f"size=1m,{owner}", "tmpfs", str(disk)], check=False)
    if done.returncode != 0:
        pytest.skip("this container may not mount a tmpfs")
    try:
        await to_thread.run_sync(own_server.execute, f"CREATE TABLESPACE tiny LOCATION '{disk}'")
        move = "ALTER TABLE feed_changes SET TABLESPACE tiny"
        await to_thread.run_sync(partial(own_server.execute, move, url=own_url))
        async with opened(own_url) as database:
            store = SqlRegistryStore(database)
            chance = random.Random(1)
            await create(database, "m")
            with pytest.raises(LimitError, match="make room"):
                for _ in range(1000):
                    # What cannot be compressed.
                    patch = ModelPatch(description=chance.randbytes(4000).hex())
                    await store.update_model("ns", "m", patch, actor="", at=AT)
            assert "full" in database.trouble
            changes = await database.read(verify_chain)
            assert 1 < changes < 1000
            assert (await store.get_model("ns", "m")).mod_rev == changes
            await anyio.run_process(["mount", "-o", f"remount,size=20m,{owner}", str(disk)])
            assert await create(database, "n") == changes + 1
            assert database.trouble == ""
            assert await database.read(verify_chain) == changes + 1
    finally:
        await to_thread.run_sync(own_server.drop_database, own_url)
        await to_thread.run_sync(own_server.execute, "DROP TABLESPACE IF EXISTS tiny")
        await anyio.run_process(["umount", "-l", str(disk)])


# -- connections that break ----------------------------------------------------------------------------------------


_SLOW_COMMIT = """
CREATE SEQUENCE commits;
CREATE FUNCTION be_slow() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN IF nextval('commits') = 1 THEN PERFORM pg_sleep(600); END IF; RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER slow AFTER UPDATE ON models DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION be_slow();
"""
"""The first commit of a change of a model does not come to its end."""


@pytest.mark.parametrize("in_feed", [True, False])
async def test_a_connection_that_ends_within_a_commit(
    database: SharedDatabase, postgres_server: PostgresServer, postgres_migrated_url: str, in_feed: bool
) -> None:
    await create(database, "m")
    await to_thread.run_sync(partial(postgres_server.execute, _SLOW_COMMIT, url=postgres_migrated_url))
    failures: list[Exception] = []

    async def change() -> None:
        try:
            if in_feed:
                await SqlRegistryStore(database).update_model("ns", "m", ModelPatch(owner="new"), actor="", at=AT)
            else:
                await database.write(lambda conn: conn.execute(update(models).values(owner="new")))
        except Exception as exc:
            failures.append(exc)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(change)
        await wait_until(partial(terminate, postgres_server, postgres_migrated_url, where="query LIKE 'COMMIT%'"))
    # What is in the feed was surely not stored, and so it is made again.
    assert [type(one) for one in failures] == ([] if in_feed else [Unavailable])
    owner = await database.read(lambda conn: conn.execute(select(models.c.owner)).scalar())
    assert owner == ("new" if in_feed else "")
    assert await create(database, "n") == (3 if in_feed else 2)
    assert await database.read(verify_chain) == (3 if in_feed else 2)


@pytest.mark.parametrize("others", [0, 2])
async def test_a_connection_that_ends_between_a_commit_and_its_answer(
    database: SharedDatabase, postgres_migrated_url: str, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    breaks = [True]
    commit = AsyncTransaction.commit
    async with opened(postgres_migrated_url) as other:

        async def commit_and_break(transaction: AsyncTransaction) -> None:
            await commit(transaction)
            if breaks and breaks.pop():
                for number in range(others):
                    await create(other, f"other{number}")
                raise ConnectionResetError("the answer was lost")

        monkeypatch.setattr(AsyncTransaction, "commit", commit_and_break)
        assert await create(database, "m") == 1
        assert await names(database) == ["m", *(f"other{number}" for number in range(others))]
        assert database.trouble == ""
        assert await database.read(verify_chain) == 1 + others


@fault(30)
async def test_news_of_other_replicas_come_at_once_and_again_after_a_break(
    database: SharedDatabase,
    postgres_server: PostgresServer,
    postgres_migrated_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(postgres_module, "_RECONNECT_S", 0.05)
    listening = partial(backends, postgres_server, postgres_migrated_url, where="query LIKE 'LISTEN%'")
    news = anyio.Event()
    database.on_commit(lambda: news.set())
    async with opened(postgres_migrated_url) as other:
        for number in range(2):

            async def both_listen() -> bool:
                return await listening() == 2

            await wait_until(both_listen)
            # What they hear when they begin to listen.
            await anyio.sleep(0.1)
            news = anyio.Event()
            await create(other, f"m{number}")
            with anyio.fail_after(60):
                await news.wait()
            assert await terminate(postgres_server, postgres_migrated_url, where="query LIKE 'LISTEN%'") == 2


async def test_a_schema_that_changes_below_prepared_statements(
    database: SharedDatabase, postgres_server: PostgresServer, postgres_migrated_url: str
) -> None:
    await create(database, "one")
    assert (await SqlRegistryStore(database).get_model("ns", "one")).name == "one"
    for number in range(3):
        add = f"ALTER TABLE models ADD COLUMN new{number} int; ALTER TABLE feed_head ADD COLUMN new{number} int"
        change = f"{add}; ALTER TABLE models ALTER COLUMN owner TYPE varchar({1000 + number})"
        await to_thread.run_sync(partial(postgres_server.execute, change, url=postgres_migrated_url))
        assert (await SqlRegistryStore(database).get_model("ns", "one")).name == "one"
        assert await create(database, f"m{number}") == number + 2


# -- a server that goes away ---------------------------------------------------------------------------------------


async def test_a_server_that_takes_no_changes(own_server: PostgresServer, own_url: str) -> None:
    async with opened(own_url, patience_s=0.3) as database:
        await create(database, "before")
        for on in (True, False):
            change = f"ALTER SYSTEM SET default_transaction_read_only = {on}"
            await to_thread.run_sync(own_server.execute, change)
            await to_thread.run_sync(own_server.execute, "SELECT pg_reload_conf()")
            if on:

                async def refused() -> bool:
                    try:
                        await create(database, "refused")
                    except ServerBusy as exc:
                        return "primary" in str(exc)
                    return False

                await wait_until(refused)
                assert "primary" in database.trouble
                assert "before" in await names(database)

        async def taken() -> bool:
            try:
                return await create(database, "after") > 0
            except ServerBusy:
                return False

        await wait_until(taken)
        assert database.trouble == ""


# -- what every shared database must do ------------------------------------------------------------------------------


class TestShared(SharedDatabaseContract):
    dialect = Dialect(
        name="PostgreSQL",
        module=postgres_module,
        sleep=lambda seconds: f"SELECT pg_sleep({seconds})",
        connection_id="SELECT pg_backend_pid()",
        broken="SELECT 1 / 0",
        broken_says="division by zero",
    )

    @pytest.fixture
    def server(self, postgres_server: PostgresServer) -> PostgresServer:
        return postgres_server

    @pytest.fixture
    def empty_url(self, postgres_url: str) -> str:
        return postgres_url

    @pytest.fixture
    def migrated_url(self, postgres_migrated_url: str) -> str:
        return postgres_migrated_url

    async def terminate(self, server: PostgresServer, url: str, *, sleeping: bool = False) -> int:
        return await terminate(server, url, where="query LIKE '%pg_sleep%'" if sleeping else "true")

    async def test_nor_with_one_that_is_told_to_leave_all_as_it_lies(
        self, own_server: PostgresServer, own_url: str
    ) -> None:
        await self.crash_and_go_on(own_server, own_url, partial(own_server.stop, signal.SIGQUIT))
