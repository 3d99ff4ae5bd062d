"""Searches on SQLite end when their time is over or their caller is gone, and nobody else is hit or kept waiting."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from anyio import to_thread
from sqlalchemy import Connection

from modelbox.errors import NotFoundError, ServerBusy, StorageError
from modelbox.runtime.store.sqlite import SqliteDatabase
from tests.integration.server_core import migrated_database

FOR_EVER = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
SECOND_S = 60.0
"""What none of this takes by far, and all of it would without an end."""


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    (tmp_path / "modelbox.db").write_bytes(migrated_database())
    async with SqliteDatabase(tmp_path) as opened:
        yield opened


def hard(conn: Connection) -> int:
    return int(conn.exec_driver_sql(FOR_EVER).scalar_one())


def easy(conn: Connection) -> int:
    return int(conn.exec_driver_sql("SELECT count(*) + 1 FROM feed_head").scalar_one())


async def test_a_search_ends_inside_of_its_statement(database: SqliteDatabase) -> None:
    with anyio.fail_after(SECOND_S):
        for _ in range(4):
            with pytest.raises(TimeoutError, match=r"ended after 0\.05 s"):
                await database.search(hard, limit_s=0.05)
        assert await database.search(easy, limit_s=SECOND_S) == 2


async def test_a_search_without_its_caller_ends(database: SqliteDatabase) -> None:
    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(lambda: database.search(hard, limit_s=600))
        await anyio.sleep(0.05)
        tasks.cancel_scope.cancel()
    with anyio.fail_after(SECOND_S):
        assert await database.search(easy, limit_s=SECOND_S) == 2


async def test_reads_and_scans_do_not_wait_for_searches(database: SqliteDatabase) -> None:
    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(lambda: database.search(hard, limit_s=600))
        await anyio.sleep(0.05)
        with anyio.fail_after(SECOND_S):
            for _ in range(20):
                assert await database.read(easy) == 2
            assert await database.scan(easy) == 2
            assert await database.write(easy) == 2
            # Every place is taken, so this one is not even begun.
            with pytest.raises(ServerBusy):
                await database.search(easy, limit_s=0.05)
        tasks.cancel_scope.cancel()


async def test_an_interrupt_between_statements_is_not_lost(database: SqliteDatabase) -> None:
    def late(conn: Connection) -> int:
        time.sleep(0.1)
        return hard(conn)

    with anyio.fail_after(SECOND_S):
        with pytest.raises(TimeoutError):
            await database.search(late, limit_s=0.02)
        with anyio.move_on_after(0.02):
            await database.search(late, limit_s=600)
        assert await database.search(easy, limit_s=SECOND_S) == 2


async def test_no_search_is_hit_by_the_end_of_another(database: SqliteDatabase) -> None:
    """Searches end in every possible moment, on two connections, among others that must not notice."""
    chance = random.Random(7)
    found = 0

    def some(conn: Connection) -> int:
        return sum(easy(conn) for _ in range(20))

    async def stopped() -> None:
        with anyio.move_on_after(chance.random() * 0.004):
            await database.search(chance.choice([some, hard]), limit_s=600)

    async def kept() -> None:
        nonlocal found
        assert await database.search(some, limit_s=100) == 40
        found += 1

    with anyio.fail_after(100):
        async with anyio.create_task_group() as tasks:
            for _ in range(300):
                tasks.start_soon(chance.choice([stopped, kept]))
                await anyio.sleep(0.001)
    assert found > 100


async def test_a_connection_that_does_not_come_to_rest_is_replaced(database: SqliteDatabase) -> None:
    cursors = []

    def holding(conn: Connection) -> int:
        raw = conn.connection.dbapi_connection
        assert raw is not None
        cursor = raw.cursor()
        cursors.append(cursor)
        cursor.execute(FOR_EVER.replace("count(*)", "i"))
        cursor.fetchone()
        return hard(conn)

    with anyio.fail_after(SECOND_S):
        for _ in range(4):
            with pytest.raises(TimeoutError):
                await database.search(holding, limit_s=0.5)
        assert [await database.search(easy, limit_s=SECOND_S) for _ in range(4)] == [2] * 4
    assert len(cursors) == 4


async def test_what_a_search_raises_is_told(database: SqliteDatabase) -> None:
    def missing(conn: Connection) -> None:
        raise NotFoundError("not here")

    with pytest.raises(NotFoundError, match="not here"):
        await database.search(missing, limit_s=SECOND_S)
    with pytest.raises(StorageError, match="no such table"):
        await database.search(lambda conn: conn.exec_driver_sql("SELECT 1 FROM nowhere"), limit_s=SECOND_S)
    with pytest.raises(StorageError, match="readonly"):
        await database.search(lambda conn: conn.exec_driver_sql("DELETE FROM feed_head"), limit_s=SECOND_S)


async def test_a_database_closes_under_a_search(tmp_path: Path) -> None:
    (tmp_path / "modelbox.db").write_bytes(migrated_database())
    with anyio.fail_after(SECOND_S):
        async with anyio.create_task_group() as tasks:
            async with SqliteDatabase(tmp_path) as database:

                async def search() -> None:
                    with pytest.raises(TimeoutError):
                        await database.search(hard, limit_s=600)

                tasks.start_soon(search)
                await anyio.sleep(0.05)
        with pytest.raises(ServerBusy, match="closed"):
            await database.search(easy, limit_s=1)
    # Nothing of it has the files open any more.
    assert await to_thread.run_sync(lambda: not list(tmp_path.glob("*-wal")))
