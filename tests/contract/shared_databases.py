"""What every database that servers share must do, and its faults: real servers that are killed, paused and cut off.

Subclass the suite, name the kind of database, and give the fixtures ``server`` (not to be killed) with ``empty_url``,
``migrated_url`` and ``database`` on it, and ``own_server`` (which each test leaves running) with ``own_url``.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, ClassVar, Protocol

import anyio
import pytest
from anyio import to_thread
from sqlalchemy import Connection, func, insert, select, text, update

from modelbox.errors import NotFoundError, ServerBusy, Unavailable
from modelbox.objects import ModelPatch, NewModel
from modelbox.runtime.store.feed import SqlFeedStore
from modelbox.runtime.store.history import next_rev, verify_chain
from modelbox.runtime.store.opening import backend_of, parse_database_url
from modelbox.runtime.store.registry import SqlRegistryStore
from modelbox.runtime.store.schema import models, namespaces
from modelbox.runtime.store.shared import SharedDatabase
from tests.faults.registry import fault

from .metadata_stores import AT

__all__ = ("Dialect", "Server", "SharedDatabaseContract", "as_coroutine", "create", "names", "opened", "wait_until")


class Server(Protocol):
    """A server of a database that tests run."""

    password: str

    def start(self) -> None: ...

    def kill(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """A kind of database.

    Attributes:
        name: As in errors.
        module: Where its limits of time are.
        sleep: A statement that takes so many seconds.
        connection_id: A statement that gives the number of its connection.
        broken: A statement that fails.
        broken_says: What it fails with, as a pattern.
    """

    name: str
    module: ModuleType
    sleep: Callable[[float], str]
    connection_id: str
    broken: str
    broken_says: str


@asynccontextmanager
async def opened(url: str, **given: Any) -> AsyncIterator[SharedDatabase]:
    """A database, with settings of its own."""
    address = parse_database_url(url)
    async with SharedDatabase(address, backend_of(address), **given) as database:
        yield database


async def create(database: SharedDatabase, name: str) -> int:
    """Makes a model; returns its revision."""
    made = await SqlRegistryStore(database).create_model(NewModel(namespace="ns", name=name), actor="ann", at=AT)
    return made.item.mod_rev


async def names(database: SharedDatabase) -> list[str]:
    """Of all models, in the order in which they were made."""
    return await database.read(lambda conn: [*conn.execute(select(models.c.name).order_by(models.c.mod_rev)).scalars()])


async def wait_until(holds: Callable[[], Any]) -> None:
    """Asks again and again until ``holds``, a coroutine function, answers something true."""
    with anyio.fail_after(60):
        while not await holds():
            await anyio.sleep(0.02)


async def as_coroutine(value: bool) -> bool:
    """For `wait_until`."""
    return value


class SharedDatabaseContract:
    """`modelbox.runtime.store.shared.SharedDatabase`."""

    dialect: ClassVar[Dialect]

    @abstractmethod
    async def terminate(self, server: Any, url: str, *, sleeping: bool = False) -> int:
        """Ends connections to a database from the server's side, or only those that `Dialect.sleep`; how many."""

    async def test_two_servers_that_begin_with_an_empty_database_at_once(self, empty_url: str) -> None:
        heads: list[str] = []

        async def begin(number: int) -> None:
            async with opened(empty_url) as database:
                heads.append((await SqlFeedStore(database).head()).server_id)
                await create(database, f"m{number}")

        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(begin, number)
        assert len(heads) == 3
        assert len(set(heads)) == 1
        async with opened(empty_url) as database:
            assert await database.read(verify_chain) == 3

    async def test_a_failed_function_leaves_its_neighbours_alone(self, database: SharedDatabase) -> None:
        results: list[int] = []

        async def make(number: int) -> None:
            results.append(await create(database, f"m{number}"))

        async def fail(number: int) -> None:
            def broken(conn: Connection) -> None:
                next_rev(conn)
                if number % 2:
                    conn.execute(text(self.dialect.broken))
                raise RuntimeError("half done")

            with pytest.raises(Exception, match=f"half done|{self.dialect.broken_says}"):
                await database.write(broken)
            with pytest.raises(NotFoundError):
                await SqlRegistryStore(database).update_model(
                    "ns", f"x{number}", ModelPatch(owner="x"), actor="", at=AT
                )

        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(make, number)
                tasks.start_soon(fail, number)
        assert sorted(results) == list(range(1, 11))
        assert await database.read(verify_chain) == 10

    async def test_reads_see_one_snapshot_and_change_nothing(self, database: SharedDatabase) -> None:
        await create(database, "one")

        def twice(conn: Connection) -> tuple[int, int]:
            count = select(func.count()).select_from(models)
            first = conn.execute(count).scalar_one()
            # Another replica's commit in between.
            conn.execute(text(self.dialect.sleep(0.2)))
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

    async def test_connections_that_the_server_ends(
        self, database: SharedDatabase, server: Server, migrated_url: str
    ) -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(database.read, lambda conn: conn.execute(text(self.dialect.sleep(0.1))).scalar())
        for number in range(3):
            assert await self.terminate(server, migrated_url) > 0
            # Idle ones are found to be dead when they are wanted, and nobody hears of it.
            assert await names(database) == [f"m{done}" for done in range(number)]
            assert await create(database, f"m{number}") == number + 1
        assert database.trouble == ""

    async def test_a_connection_that_ends_within_a_change_is_replaced_and_the_change_made_once(
        self, database: SharedDatabase, server: Server, migrated_url: str
    ) -> None:
        tries: list[int] = []

        def change(conn: Connection) -> None:
            tries.append(conn.execute(text(self.dialect.connection_id)).scalar_one())
            conn.execute(insert(namespaces).values(name=f"n{len(tries)}", created_at_us=0, mod_rev=1))
            if len(tries) == 1:
                conn.execute(text(self.dialect.sleep(600)))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(database.write, change)
            await wait_until(partial(self.terminate, server, migrated_url, sleeping=True))
        assert len(set(tries)) == len(tries) == 2
        assert await database.read(lambda conn: [*conn.execute(select(namespaces.c.name)).scalars()]) == ["n2"]

    async def crash_and_go_on(self, own_server: Server, own_url: str, ends: Callable[[], None]) -> None:
        """Eight writers go on through crashes; nothing that was acknowledged is lost."""
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
                await wait_until(lambda: as_coroutine(len(acknowledged) > before + 30))

            async with anyio.create_task_group() as tasks:
                for number in range(8):
                    tasks.start_soon(write, number)
                tasks.start_soon(read)
                for _ in range(2):
                    await more()
                    read_failures.clear()
                    await to_thread.run_sync(ends)
                    await wait_until(lambda: as_coroutine(bool(database.trouble or read_failures)))
                    await to_thread.run_sync(own_server.start)
                await more()
                stop.set()
            stored = await database.read(lambda conn: dict(conn.execute(select(models.c.name, models.c.mod_rev)).all()))
            assert acknowledged.items() <= stored.items()
            # Those in doubt alone may be there beside them: at most a group for each crash.
            assert len(stored) - len(acknowledged) <= len([one for one in failed if isinstance(one, Unavailable)])
            assert await database.read(verify_chain) == len(stored)
            assert database.trouble == ""

    @fault(22)
    async def test_no_acknowledged_change_is_lost_with_a_server_that_is_killed(
        self, own_server: Server, own_url: str
    ) -> None:
        await self.crash_and_go_on(own_server, own_url, own_server.kill)

    async def test_a_server_that_stays_away_is_said_to(self, own_server: Server, own_url: str) -> None:
        async with opened(own_url, patience_s=0.3) as database:
            assert await create(database, "m") == 1
            assert database.trouble == ""
            await to_thread.run_sync(own_server.kill)
            refused: list[str] = []

            async def change(number: int) -> None:
                with pytest.raises(ServerBusy, match=f"{self.dialect.name} does not answer"):
                    await create(database, f"n{number}")
                refused.append("change")

            with anyio.fail_after(60):
                async with anyio.create_task_group() as tasks:
                    for number in range(5):
                        tasks.start_soon(change, number)
                # Nothing waits for ever, however often it is asked.
                await change(9)
                with pytest.raises(ServerBusy, match=f"{self.dialect.name} does not answer"):
                    await names(database)
            assert len(refused) == 6
            assert "does not answer" in database.trouble
            assert own_server.password not in database.trouble
            await to_thread.run_sync(own_server.start)

            assert await create(database, "n") == 2
            assert await names(database) == ["m", "n"]
            assert database.trouble == ""

    async def test_a_server_that_does_not_answer_holds_nobody_for_ever(
        self, own_server: Server, own_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module = self.dialect.module
        async with opened(own_url) as patient, AsyncExitStack() as stack:
            assert await create(patient, "m") == 1
            monkeypatch.setattr(module, "_COMMAND_S", {**module._COMMAND_S, "write": 0.5, "read": 0.5})
            monkeypatch.setattr(module, "_CONNECT_S", 0.5)
            database = await stack.enter_async_context(opened(own_url, patience_s=0.3))

            async def taken(name: str) -> bool:
                try:
                    return await create(database, name) > 0
                except (ServerBusy, Unavailable):
                    return False

            # A busy machine may take longer than that for a change, but not for each.
            await wait_until(partial(taken, "before"))
            own_server.pause()
            try:
                with anyio.fail_after(60):
                    with pytest.raises((ServerBusy, Unavailable)):
                        await create(database, "n")
                    with pytest.raises(ServerBusy):
                        await names(database)
            finally:
                own_server.resume()
            await wait_until(partial(taken, "after"))
            found = await names(patient)
            assert {"m", "before", "after"} <= set(found)
            assert await patient.read(verify_chain) == len(found)

    async def test_closing_while_the_server_is_away(self, own_server: Server, own_url: str) -> None:
        try:
            with anyio.fail_after(60):
                async with opened(own_url, patience_s=0.3) as database:
                    await create(database, "m")
                    await names(database)
                    await to_thread.run_sync(own_server.kill)
        finally:
            await to_thread.run_sync(own_server.start)
        assert asyncio.all_tasks() == {asyncio.current_task()} or all(
            task.get_name() not in ("database news", "write to the database") for task in asyncio.all_tasks()
        )
