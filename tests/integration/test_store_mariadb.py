"""What only MySQL does, and its faults: real servers that are killed, locked, paused and set up wrongly."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import asyncmy
import pytest
from anyio import to_thread
from sqlalchemy import Connection, func, insert, make_url, select, text, update

from modelbox.errors import ConfigError, LimitError, ServerBusy
from modelbox.runtime.store import mysql as mysql_module
from modelbox.runtime.store.schema import models, namespaces
from modelbox.runtime.store.shared import SharedDatabase
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
from tests.servers.mariadb import MariadbServer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def own_server() -> Iterator[MariadbServer]:
    """A server that tests may kill; each leaves it running."""
    with MariadbServer() as server:
        yield server


@pytest.fixture
def own_url(own_server: MariadbServer) -> str:
    if not own_server.running:
        own_server.start()
    return own_server.new_database(migrated=True)


@pytest.fixture
async def database(mariadb_migrated_url: str) -> AsyncIterator[SharedDatabase]:
    async with opened(mariadb_migrated_url, patience_s=0.5) as found:
        yield found


async def terminate(server: MariadbServer, url: str, *, where: str = "true") -> int:
    """Ends connections from the server's side; returns how many."""
    query = (
        "SELECT id FROM information_schema.processlist"
        f" WHERE db = '{url.rpartition('/')[2]}' AND id <> connection_id() AND {where}"
    )
    ended = 0
    for (number,) in await to_thread.run_sync(partial(server.fetch, query)):
        with contextlib.suppress(asyncmy.errors.OperationalError):
            await to_thread.run_sync(server.execute, f"KILL CONNECTION {number}")
            ended += 1
    return ended


@asynccontextmanager
async def foreign(server: MariadbServer, url: str) -> AsyncIterator[Callable[[str], Awaitable[Any]]]:
    """Somebody else's connection, in a transaction."""
    address = make_url(url)
    connection = await asyncmy.connect(
        unix_socket=str(server.directory / "s"), user=address.username, password=address.password, db=address.database
    )

    async def run(statement: str) -> None:
        async with connection.cursor() as cursor:
            await cursor.execute(statement)

    try:
        yield run
    finally:
        connection.close()


# -- opening -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "instead", "said"),
    [
        ("password", "not-the-password", "Access denied"),
        ("modelbox:", "somebody:", "Access denied"),
        ("/test_", "/no_such_test_", "Unknown database"),
    ],
)
async def test_settings_that_the_server_refuses(
    mariadb_server: MariadbServer, mariadb_url: str, part: str, instead: str, said: str
) -> None:
    wrong = mariadb_url.replace(quote(mariadb_server.password, safe="") if part == "password" else part, instead, 1)
    with pytest.raises(ConfigError, match=said) as caught:
        async with opened(wrong):
            pass
    assert "database_url" in str(caught.value)
    assert mariadb_server.password not in repr(caught.value)
    assert "not-the-password" not in f"{caught.value!r} {caught.value.__cause__!r}"


async def test_a_database_that_is_away_at_start() -> None:
    with MariadbServer() as server:
        url = await to_thread.run_sync(server.new_database)
        await to_thread.run_sync(server.stop)
        with pytest.raises(ServerBusy, match="MySQL does not answer"):
            async with opened(url, connect_timeout_s=0.3):
                pass
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(to_thread.run_sync, server.start)
            async with opened(url, connect_timeout_s=100) as database:
                assert await create(database, "m") == 1


# -- transactions --------------------------------------------------------------------------------------------------


async def test_a_deadlock_with_a_foreign_transaction(mariadb_server: MariadbServer, mariadb_migrated_url: str) -> None:
    async with opened(mariadb_migrated_url, patience_s=60) as database:
        await create(database, "m")
        tries: list[str] = []

        def change(conn: Connection) -> None:
            tries.append("try")
            conn.execute(update(models).values(owner="ours"))

        async with foreign(mariadb_server, mariadb_migrated_url) as theirs, anyio.create_task_group() as tasks:
            # The one that has changed less is ended.
            for number in range(50):
                await theirs(f"INSERT INTO namespaces (name, created_at_us, mod_rev) VALUES ('n{number}', 0, 1)")
            await theirs("UPDATE models SET owner = 'theirs'")
            tasks.start_soon(database.write, change)
            await wait_until(lambda: as_coroutine(bool(tries)))
            await theirs("UPDATE feed_head SET epoch = concat(epoch, '')")
            await theirs("COMMIT")
        assert len(tries) > 1
        assert await database.read(lambda conn: conn.execute(select(models.c.owner)).scalar()) == "ours"


async def test_names_are_compared_byte_by_byte_whatever_the_server_likes(database: SharedDatabase) -> None:
    def make(conn: Connection) -> None:
        for name in ("a", "A", "\u00e1", "a ", "a\u0301", "\U0001f600", "\U0001f601"):
            conn.execute(insert(namespaces).values(name=name, created_at_us=0, mod_rev=1))

    def look(conn: Connection) -> list[str]:
        return [*conn.execute(select(namespaces.c.name).order_by(namespaces.c.name)).scalars()]

    await database.write(make)
    found = await database.read(look)
    assert found == sorted(found, key=str.encode)
    assert len(found) == 7
    one = select(func.count()).where(namespaces.c.name == "a")
    assert await database.read(lambda conn: conn.execute(one).scalar()) == 1


# -- locks and limits ----------------------------------------------------------------------------------------------


@fault(31)
async def test_a_lock_that_a_foreign_transaction_holds(
    database: SharedDatabase, mariadb_server: MariadbServer, mariadb_migrated_url: str
) -> None:
    await create(database, "before")
    async with foreign(mariadb_server, mariadb_migrated_url) as theirs:
        await theirs("SELECT * FROM feed_head FOR UPDATE")
        with anyio.fail_after(60), pytest.raises(ServerBusy) as caught:
            await create(database, "refused")
        assert caught.value.fields["retry_after_s"]
        assert await names(database) == ["before"]
        await theirs("ROLLBACK")
        assert await create(database, "after") == 2


@fault(31)
async def test_a_replica_that_stands_still_in_a_transaction_is_cut_off(
    database: SharedDatabase, mariadb_migrated_url: str
) -> None:
    query = text("SELECT @@session.idle_write_transaction_timeout")
    assert await database.write(lambda conn: conn.execute(query).scalar()) == 5
    assert await database.read(lambda conn: conn.execute(query).scalar()) == 0

    def stand_still(conn: Connection) -> None:
        if first := not tries:
            conn.execute(text("SET SESSION idle_write_transaction_timeout = 1"))
        tries.append("try")
        conn.execute(insert(namespaces).values(name="n", created_at_us=0, mod_rev=1))
        if first:
            # What a stopped process does: nothing at all, on its event loop.
            time.sleep(2.5)
            conn.execute(text("SELECT 1"))

    tries: list[str] = []
    await database.write(stand_still)
    assert len(tries) == 2
    assert await create(database, "m") == 1


async def test_a_search_ends_in_the_server(
    database: SharedDatabase, mariadb_server: MariadbServer, mariadb_migrated_url: str
) -> None:
    def endless(conn: Connection) -> None:
        conn.execute(text("SELECT SLEEP(600)"))

    name = mariadb_migrated_url.rpartition("/")[2]
    query = (
        f"SELECT count(*) FROM information_schema.processlist WHERE db = '{name}' AND info LIKE 'SELECT SLEEP(600)%'"
    )

    async def none_runs() -> bool:
        return await to_thread.run_sync(mariadb_server.fetch, query) == [(0,)]

    for _ in range(4):
        with anyio.fail_after(60), pytest.raises(TimeoutError):
            await database.search(endless, limit_s=0.1)
    await wait_until(none_runs)
    assert await database.search(lambda conn: conn.execute(select(1)).scalar(), limit_s=60) == 1


async def test_reads_wait_for_a_connection_and_then_give_up(mariadb_migrated_url: str) -> None:
    began = anyio.Event()

    def slow(seconds: float) -> Callable[[Connection], Any]:
        def sleep(conn: Connection) -> None:
            conn.execute(select(1))
            began.set()
            conn.execute(text(f"SELECT SLEEP({seconds})"))

        return sleep

    async with opened(mariadb_migrated_url, connections=1) as database:
        pool: Any = database._reads.pool
        pool._timeout = 60
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(database.read, slow(0.1))
            tasks.start_soon(database.read, slow(0.01))
        began = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(database.read, slow(30))
            await began.wait()
            pool._timeout = 0.1
            with pytest.raises(ServerBusy, match="all connections to the database are in use"):
                await database.read(slow(0))
            tasks.cancel_scope.cancel()
        pool._timeout = 60
        await database.read(slow(0))


# -- connections that break ----------------------------------------------------------------------------------------


# -- a server that goes away ---------------------------------------------------------------------------------------


async def test_a_server_that_takes_no_changes(own_server: MariadbServer) -> None:
    url = await to_thread.run_sync(partial(own_server.new_database, migrated=True))
    own_server.execute(
        "CREATE OR REPLACE USER one IDENTIFIED BY 'one'",
        "GRANT ALL ON *.* TO one",
        "REVOKE SUPER, READ_ONLY ADMIN ON *.* FROM one",
    )
    url = own_server.url(url.rpartition("/")[2], user="one", password="one")
    async with opened(url, patience_s=0.3) as database:
        await create(database, "before")
        await to_thread.run_sync(own_server.execute, "SET GLOBAL read_only = 1")
        with pytest.raises(ServerBusy, match="primary"):
            await create(database, "refused")
        assert "primary" in database.trouble
        assert await names(database) == ["before"]
        await to_thread.run_sync(own_server.execute, "SET GLOBAL read_only = 0")
        assert await create(database, "after") == 2
        assert database.trouble == ""


@fault(32)
@pytest.mark.parametrize("number", [1021, 1114])
async def test_a_disk_that_is_full(database: SharedDatabase, number: int) -> None:
    # A MariaDB whose disk is really full says this, or crashes.
    full = f"BEGIN NOT ATOMIC SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {number}; END"

    def grow(conn: Connection) -> None:
        conn.execute(insert(namespaces).values(name="n", created_at_us=0, mod_rev=1))
        conn.exec_driver_sql(full)

    with pytest.raises(LimitError, match="disk of the database is full"):
        await database.write(grow)
    assert "disk" in database.trouble
    assert await create(database, "m") == 1
    assert database.trouble == ""
    assert await database.read(lambda conn: [*conn.execute(select(namespaces.c.name)).scalars()]) == ["ns"]


# -- what every shared database must do ------------------------------------------------------------------------------


class TestShared(SharedDatabaseContract):
    dialect = Dialect(
        name="MySQL",
        module=mysql_module,
        sleep=lambda seconds: f"SELECT SLEEP({seconds})",
        connection_id="SELECT connection_id()",
        broken="INSERT INTO namespaces (id) VALUES (NULL)",
        broken_says="default value",
    )

    @pytest.fixture
    def server(self, mariadb_server: MariadbServer) -> MariadbServer:
        return mariadb_server

    @pytest.fixture
    def empty_url(self, mariadb_url: str) -> str:
        return mariadb_url

    @pytest.fixture
    def migrated_url(self, mariadb_migrated_url: str) -> str:
        return mariadb_migrated_url

    async def terminate(self, server: MariadbServer, url: str, *, sleeping: bool = False) -> int:
        return await terminate(server, url, where="info LIKE '%SLEEP(600)%'" if sleeping else "true")
