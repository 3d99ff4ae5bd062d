"""Every reader of a shared database sees the committed history, in order, and nothing else: see docs/adr/0012.

Two processes with four writers each, whose changes fail now and then, whose connections the database ends, and which
are killed; readers that follow the feed, and readers that compare what they see of it with what they see of the rows.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from anyio import to_thread
from sqlalchemy import Connection, func, select

from modelbox.errors import ServerBusy
from modelbox.runtime.store.database import Database
from modelbox.runtime.store.feed import SqlFeedStore
from modelbox.runtime.store.history import read_head, verify_chain
from modelbox.runtime.store.opening import open_database
from modelbox.runtime.store.schema import feed_changes, models
from tests.faults.registry import fault
from tests.servers.mariadb import MariadbServer

ROOT = Path(__file__).parents[2]
_REVISIONS = int(os.environ.get("MODELBOX_TEST_PREFIX_REVISIONS", "150"))
_PARTS = 3


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


class _Process:
    """A process of writers, and what it was told."""

    def __init__(self, url: str) -> None:
        self.acknowledged: list[int] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.prefix_writer", url], cwd=ROOT, stdout=subprocess.PIPE
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.acknowledged.append(int(line))

    def kill(self) -> list[int]:
        """Kills it; returns all that was acknowledged."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        return self.acknowledged


@pytest.fixture(params=["postgres", "mariadb"])
def place(request: pytest.FixtureRequest) -> tuple[str, Callable[[], None]]:
    """A database, and how to end one of its connections that write."""
    url: str = request.getfixturevalue(f"{request.param}_migrated_url")
    server = request.getfixturevalue(f"{request.param}_server")
    name = url.rpartition("/")[2]

    def end_postgres() -> None:
        query = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1"
            " AND application_name LIKE '%write' ORDER BY random() LIMIT 1"
        )
        server.fetch(query, name)

    def end_mariadb() -> None:
        query = (
            f"SELECT id FROM information_schema.processlist WHERE db = '{name}' AND info LIKE '%feed_head%FOR UPDATE%'"
            " ORDER BY rand() LIMIT 1"
        )
        for (number,) in server.fetch(query):
            # It may have ended by itself.
            server.execute(
                f"BEGIN NOT ATOMIC DECLARE CONTINUE HANDLER FOR 1094 BEGIN END; KILL CONNECTION {number}; END"
            )

    return url, end_postgres if request.param == "postgres" else end_mariadb


async def _follow(database: Database, seen: list[tuple[int, bytes]]) -> None:
    """What a server's tailer does."""
    store = SqlFeedStore(database)
    while True:
        batch = await store.read_after(seen[-1][0] if seen else 0, limit=7, max_bytes=1 << 20)
        seen.extend((revision.rev, revision.chain) for revision in batch.revisions)
        await anyio.sleep(random.random() / 50)


async def _compare(database: Database, odd: list[str]) -> None:
    """Each revision makes one model: as many as the head says are there, and the head's revision, too."""

    def look(conn: Connection) -> tuple[int, int, int]:
        head = read_head(conn)
        count = conn.execute(select(func.count()).select_from(models).where(models.c.mod_rev <= head.rev)).scalar_one()
        revs = select(func.count(func.distinct(feed_changes.c.rev))).where(feed_changes.c.rev <= head.rev)
        return head.rev, count, conn.execute(revs).scalar_one()

    while True:
        rev, count, revs = await database.read(look)
        if not rev == count == revs:
            odd.append(f"at {rev}: {count} models, {revs} revisions")
        await anyio.lowlevel.checkpoint()


@fault(21)
@pytest.mark.slow
async def test_every_snapshot_is_a_prefix_of_one_history(place: tuple[str, Callable[[], None]], tmp_path: Path) -> None:
    url, end_connection = place
    followers: list[list[tuple[int, bytes]]] = [[] for _ in range(3)]
    odd: list[str] = []
    acknowledged: list[int] = []
    processes: list[_Process] = []
    async with open_database(url, data_dir=tmp_path) as database:
        store = SqlFeedStore(database)
        try:
            async with anyio.create_task_group() as tasks:
                for seen in followers:
                    tasks.start_soon(_follow, database, seen)
                for _ in range(2):
                    tasks.start_soon(_compare, database, odd)
                processes = [_Process(url), _Process(url)]
                for part in range(1, _PARTS + 1):
                    with anyio.fail_after(90):
                        while (await store.head()).rev < _REVISIONS * part // _PARTS:
                            await anyio.sleep(0.1 * random.random())
                            if random.random() < 0.3:
                                await to_thread.run_sync(end_connection)
                    victim = processes.pop(random.randrange(2))
                    acknowledged += await to_thread.run_sync(victim.kill)
                    if part < _PARTS:
                        processes.append(_Process(url))
                acknowledged += await to_thread.run_sync(processes.pop().kill)
                # A killed process's last commit may be on its way still.
                while await _stored(database) > min(len(seen) for seen in followers):
                    await anyio.sleep(0.05)
                tasks.cancel_scope.cancel()
        finally:
            for process in processes:
                await to_thread.run_sync(process.kill)
        stored = await _stored(database)
        history = await database.read(
            lambda conn: conn.execute(select(feed_changes.c.rev, feed_changes.c.chain, feed_changes.c.idx)).all()
        )
        chains = sorted({(rev, bytes(chain)) for rev, chain, _ in history})
        assert [rev for rev, _ in chains] == list(range(1, stored + 1))
        assert followers == [chains] * 3
        assert odd == []
        assert len(set(acknowledged)) == len(acknowledged)
        assert set(acknowledged) <= set(range(1, stored + 1))
        assert await database.read(verify_chain) == stored >= _REVISIONS


async def _stored(database: Database) -> int:
    while True:
        try:
            # Behind the lock of whoever is still ending.
            return await database.write(lambda conn: read_head(conn).rev)
        except ServerBusy:
            await anyio.sleep(0.1)


_WRITE = """
CREATE PROCEDURE work(seconds int) BEGIN
  DECLARE until datetime(6) DEFAULT now(6) + INTERVAL seconds SECOND; DECLARE r bigint;
  WHILE sysdate(6) < until DO
    START TRANSACTION; SELECT rev INTO r FROM head WHERE id = 1 FOR UPDATE;
    INSERT INTO history VALUES (r + 1); UPDATE head SET rev = r + 1 WHERE id = 1; COMMIT;
  END WHILE;
END"""
_READ = """
CREATE PROCEDURE look(seconds int) BEGIN
  DECLARE until datetime(6) DEFAULT now(6) + INTERVAL seconds SECOND; DECLARE r, c, n bigint DEFAULT 0;
  WHILE sysdate(6) < until DO
    START TRANSACTION; SELECT rev INTO r FROM head WHERE id = 1; COMMIT;
    START TRANSACTION; SELECT count(*) INTO c FROM history WHERE rev <= r AND rev > r - 20; COMMIT;
    IF r > 20 AND c <> 20 THEN INSERT INTO odd VALUES (r, c); END IF;
    SET n = n + 1;
  END WHILE;
  INSERT INTO looked VALUES (n);
END"""


@pytest.mark.slow
async def test_on_mariadb_all_up_to_a_head_is_in_the_next_snapshot(
    mariadb_server: MariadbServer, mariadb_url: str
) -> None:
    """What `read_head` does, as fast as the server can: where both are read in one snapshot, some lack a revision."""
    tables = [
        "head (id int PRIMARY KEY, rev bigint)",
        "history (rev bigint PRIMARY KEY)",
        "odd (rev bigint, found bigint)",
        "looked (number bigint)",
    ]
    made = [f"CREATE TABLE {table} ENGINE=InnoDB" for table in tables]
    execute = partial(mariadb_server.execute, url=mariadb_url)
    await to_thread.run_sync(partial(execute, *made, "INSERT INTO head VALUES (1, 0)", _WRITE, _READ))
    async with anyio.create_task_group() as tasks:
        for call in ("CALL work(4)",) * 6 + ("CALL look(4)",) * 4:
            tasks.start_soon(partial(to_thread.run_sync, partial(execute, call)))
    fetch = partial(mariadb_server.fetch, url=mariadb_url)
    assert await to_thread.run_sync(partial(fetch, "SELECT * FROM odd")) == []
    ((number,),) = await to_thread.run_sync(partial(fetch, "SELECT sum(number) FROM looked"))
    assert number > 20
