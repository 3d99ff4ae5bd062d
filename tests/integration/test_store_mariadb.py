"""What only MySQL does, and its faults: real servers that are killed, locked, paused and set up wrongly."""

from __future__ import annotations

import asyncio
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

from modelbox.errors import ConfigError, LimitError, NotFoundError, ServerBusy, Unavailable
from modelbox.objects import ModelPatch, NewModel
from modelbox.runtime.store import mysql as mysql_module
from modelbox.runtime.store.feed import SqlFeedStore
from modelbox.runtime.store.history import next_rev, verify_chain
from modelbox.runtime.store.mysql import MySQLBackend
from modelbox.runtime.store.opening import parse_database_url
from modelbox.runtime.store.registry import SqlRegistryStore
from modelbox.runtime.store.schema import models, namespaces
from modelbox.runtime.store.shared import SharedDatabase
from tests.contract.metadata_stores import AT
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


@asynccontextmanager
async def opened(url: str, **given: Any) -> AsyncIterator[SharedDatabase]:
    async with SharedDatabase(parse_database_url(url), MySQLBackend(), **given) as database:
        yield database


@pytest.fixture
async def database(mariadb_migrated_url: str) -> AsyncIterator[SharedDatabase]:
    async with opened(mariadb_migrated_url, patience_s=0.5) as found:
        yield found


async def create(database: SharedDatabase, name: str) -> int:
    """Makes a model; returns its revision."""
    made = await SqlRegistryStore(database).create_model(NewModel(namespace="ns", name=name), actor="ann", at=AT)
    return made.item.mod_rev


async def names(database: SharedDatabase) -> list[str]:
    """Of all models, in the order in which they were made."""
    return await database.read(lambda conn: [*conn.execute(select(models.c.name).order_by(models.c.mod_rev)).scalars()])


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


async def wait_until(holds: Callable[[], Any]) -> None:
    """Asks again and again until ``holds``, a coroutine function, answers something true."""
    with anyio.fail_after(20):
        while not await holds():
            await anyio.sleep(0.02)


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
            async with opened(url, connect_timeout_s=30) as database:
                assert await create(database, "m") == 1


async def test_two_servers_that_begin_with_an_empty_database_at_once(mariadb_url: str) -> None:
    heads: list[str] = []

    async def begin(number: int) -> None:
        async with opened(mariadb_url) as database:
            heads.append((await SqlFeedStore(database).head()).server_id)
            await create(database, f"m{number}")

    async with anyio.create_task_group() as tasks:
        for number in range(3):
            tasks.start_soon(begin, number)
    assert len(heads) == 3
    assert len(set(heads)) == 1
    async with opened(mariadb_url) as database:
        assert await database.read(verify_chain) == 3


# -- transactions --------------------------------------------------------------------------------------------------


async def test_a_failed_function_leaves_its_neighbours_alone(database: SharedDatabase) -> None:
    results: list[int] = []

    async def make(number: int) -> None:
        results.append(await create(database, f"m{number}"))

    async def fail(number: int) -> None:
        def broken(conn: Connection) -> None:
            next_rev(conn)
            if number % 2:
                conn.execute(text("INSERT INTO namespaces (id) VALUES (NULL)"))
            raise RuntimeError("half done")

        with pytest.raises(Exception, match=r"half done|default value"):
            await database.write(broken)
        with pytest.raises(NotFoundError):
            await SqlRegistryStore(database).update_model("ns", f"x{number}", ModelPatch(owner="x"), actor="", at=AT)

    async with anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(make, number)
            tasks.start_soon(fail, number)
    assert sorted(results) == list(range(1, 11))
    assert await database.read(verify_chain) == 10


async def test_reads_see_one_snapshot_and_change_nothing(database: SharedDatabase) -> None:
    await create(database, "one")

    def twice(conn: Connection) -> tuple[int, int]:
        count = select(func.count()).select_from(models)
        first = conn.execute(count).scalar_one()
        # Another replica's commit in between.
        conn.execute(text("SELECT SLEEP(0.2)"))
        return first, conn.execute(count).scalar_one()

    found: list[tuple[int, int]] = []
    async with anyio.create_task_group() as tasks:

        async def read() -> None:
            found.append(await database.read(twice))

        tasks.start_soon(read)
        await anyio.sleep(0.05)
        await create(database, "two")
    assert found in ([(1, 1)], [(2, 2)])
    with pytest.raises(ServerBusy, match="takes no changes"):
        await database.read(lambda conn: conn.execute(update(models).values(owner="x")))


async def test_a_deadlock_with_a_foreign_transaction(
    database: SharedDatabase, mariadb_server: MariadbServer, mariadb_migrated_url: str
) -> None:
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
        await wait_until(lambda: _as_coroutine(bool(tries)))
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


async def _as_coroutine(value: bool) -> bool:
    return value


# -- locks and limits ----------------------------------------------------------------------------------------------


async def test_a_lock_that_a_foreign_transaction_holds(
    database: SharedDatabase, mariadb_server: MariadbServer, mariadb_migrated_url: str
) -> None:
    await create(database, "before")
    async with foreign(mariadb_server, mariadb_migrated_url) as theirs:
        await theirs("SELECT * FROM feed_head FOR UPDATE")
        with anyio.fail_after(15), pytest.raises(ServerBusy) as caught:
            await create(database, "refused")
        assert caught.value.fields["retry_after_s"]
        assert await names(database) == ["before"]
        await theirs("ROLLBACK")
        assert await create(database, "after") == 2


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

    running = "SELECT count(*) FROM information_schema.processlist WHERE info LIKE 'SELECT SLEEP(600)%'"
    for _ in range(4):
        with anyio.fail_after(10), pytest.raises(TimeoutError):
            await database.search(endless, limit_s=0.1)
    assert await to_thread.run_sync(mariadb_server.fetch, running) == [(0,)]
    assert await database.search(lambda conn: conn.execute(select(1)).scalar(), limit_s=5) == 1


async def test_reads_wait_for_a_connection_and_then_give_up(mariadb_migrated_url: str) -> None:
    async with opened(mariadb_migrated_url, connections=1) as database:
        database._reads.pool._timeout = 0.3  # type: ignore[attr-defined]

        def slow(seconds: float) -> Callable[[Connection], Any]:
            return lambda conn: conn.execute(text(f"SELECT SLEEP({seconds})")).scalar()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(database.read, slow(0.1))
            tasks.start_soon(database.read, slow(0.01))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(database.read, slow(1.0))
            await anyio.sleep(0.1)
            with pytest.raises(ServerBusy, match="all connections to the database are in use"):
                await database.read(slow(0))
        await database.read(slow(0))


# -- connections that break ----------------------------------------------------------------------------------------


async def test_connections_that_the_server_ends(
    database: SharedDatabase, mariadb_server: MariadbServer, mariadb_migrated_url: str
) -> None:
    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(database.read, lambda conn: conn.execute(text("SELECT SLEEP(0.1)")).scalar())
    for number in range(3):
        assert await terminate(mariadb_server, mariadb_migrated_url) > 0
        # Idle ones are found to be dead when they are wanted, and nobody hears of it.
        assert await names(database) == [f"m{done}" for done in range(number)]
        assert await create(database, f"m{number}") == number + 1
    assert database.trouble == ""


async def test_a_connection_that_ends_within_a_change_is_replaced_and_the_change_made_once(
    database: SharedDatabase, mariadb_server: MariadbServer, mariadb_migrated_url: str
) -> None:
    tries: list[int] = []

    def change(conn: Connection) -> None:
        tries.append(conn.execute(text("SELECT connection_id()")).scalar_one())
        conn.execute(insert(namespaces).values(name=f"n{len(tries)}", created_at_us=0, mod_rev=1))
        if len(tries) == 1:
            conn.execute(text("SELECT SLEEP(600)"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(database.write, change)
        await wait_until(partial(terminate, mariadb_server, mariadb_migrated_url, where="info LIKE '%SLEEP(600)%'"))
    assert len(set(tries)) == len(tries) == 2
    assert await database.read(lambda conn: [*conn.execute(select(namespaces.c.name)).scalars()]) == ["n2"]


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


async def test_no_acknowledged_change_is_lost_with_a_server_that_crashes(
    own_server: MariadbServer, own_url: str
) -> None:
    acknowledged: dict[str, int] = {}
    failed: list[BaseException] = []
    read_failures: list[BaseException] = []
    stop = anyio.Event()
    async with opened(own_url, patience_s=20) as database:

        async def write(number: int) -> None:
            turn = 0
            while not stop.is_set():
                turn += 1
                try:
                    acknowledged[f"m{number}.{turn}"] = await create(database, f"m{number}.{turn}")
                except (ServerBusy, Unavailable) as exc:
                    failed.append(exc)

        async def read() -> None:
            while not stop.is_set():
                try:
                    await database.read(lambda conn: conn.execute(select(1)).scalar())
                except ServerBusy as exc:
                    read_failures.append(exc)
                await anyio.sleep(0.01)

        async def more() -> None:
            before = len(acknowledged)
            await wait_until(lambda: _as_coroutine(len(acknowledged) > before + 30))

        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(write, number)
            tasks.start_soon(read)
            for _ in range(2):
                await more()
                await to_thread.run_sync(own_server.kill)
                await anyio.sleep(0.2)
                assert database.trouble or read_failures
                await to_thread.run_sync(own_server.start)
            await more()
            stop.set()
        stored = await database.read(lambda conn: dict(conn.execute(select(models.c.name, models.c.mod_rev)).all()))
        assert acknowledged.items() <= stored.items()
        # Those in doubt alone may be there beside them: at most a group for each crash.
        assert len(stored) - len(acknowledged) <= len([one for one in failed if isinstance(one, Unavailable)])
        assert await database.read(verify_chain) == len(stored)
        assert database.trouble == ""


async def test_a_server_that_stays_away_is_said_to(own_server: MariadbServer, own_url: str) -> None:
    async with opened(own_url, patience_s=0.3) as database:
        assert await create(database, "m") == 1
        assert database.trouble == ""
        await to_thread.run_sync(own_server.kill)
        refused: list[str] = []

        async def change(number: int) -> None:
            with pytest.raises(ServerBusy, match="MySQL does not answer"):
                await create(database, f"n{number}")
            refused.append("change")

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                for number in range(5):
                    tasks.start_soon(change, number)
            # Nothing waits for ever, however often it is asked.
            await change(9)
            with pytest.raises(ServerBusy, match="MySQL does not answer"):
                await names(database)
        assert len(refused) == 6
        assert "does not answer" in database.trouble
        assert own_server.password not in database.trouble
        await to_thread.run_sync(own_server.start)

        assert await create(database, "n") == 2
        assert await names(database) == ["m", "n"]
        assert database.trouble == ""


async def test_a_server_that_does_not_answer_holds_nobody_for_ever(
    own_server: MariadbServer, own_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mysql_module, "_COMMAND_S", {**mysql_module._COMMAND_S, "write": 0.5, "read": 0.5})
    monkeypatch.setattr(mysql_module, "_CONNECT_S", 0.5)
    async with opened(own_url, patience_s=0.3) as database:
        assert await create(database, "m") == 1
        own_server.pause()
        try:
            with anyio.fail_after(15):
                with pytest.raises((ServerBusy, Unavailable)):
                    await create(database, "n")
                with pytest.raises(ServerBusy):
                    await names(database)
        finally:
            own_server.resume()

        async def taken() -> bool:
            try:
                return await create(database, "after") > 0
            except (ServerBusy, Unavailable):
                return False

        await wait_until(taken)
        assert "m" in await names(database)
        assert await database.read(verify_chain) == len(await names(database))


async def test_closing_while_the_server_is_away(own_server: MariadbServer, own_url: str) -> None:
    try:
        with anyio.fail_after(20):
            async with opened(own_url, patience_s=0.3) as database:
                await create(database, "m")
                await names(database)
                await to_thread.run_sync(own_server.kill)
    finally:
        await to_thread.run_sync(own_server.start)
    assert asyncio.all_tasks() == {asyncio.current_task()} or all(
        task.get_name() not in ("database news", "write to the database") for task in asyncio.all_tasks()
    )
