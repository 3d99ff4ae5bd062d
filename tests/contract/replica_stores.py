"""What every database under leases and membership must do. Subclass the suites and give the fixture ``database``."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import anyio
import pytest
from sqlalchemy import Connection, select, update

from modelbox.errors import ConflictError
from modelbox.runtime.replica_ports import Beat, Lease
from modelbox.runtime.store.clock import database_now_us
from modelbox.runtime.store.database import Database
from modelbox.runtime.store.leases import SqlLeases, check_lease
from modelbox.runtime.store.members import SqlMemberStore
from modelbox.runtime.store.schema import leases, replicas
from tests.faults.registry import fault

BEAT = Beat(
    id="one",
    name="a",
    role="all",
    state="ready",
    grpc_address="10.0.0.1:8085",
    http_address="10.0.0.1:8080",
    version="1.2.3",
    started_at=datetime(2026, 5, 3, 12, tzinfo=UTC),
    clock_ahead_s=-0.25,
    rev=7,
)


async def end(database: Database, name: str) -> None:
    """Lets a lease end, as if its time were over."""
    values = {"renewed_at_us": leases.c.renewed_at_us - 10**9, "until_us": leases.c.renewed_at_us}
    await database.write(lambda conn: conn.execute(update(leases).where(leases.c.name == name).values(values)))


async def holder_of(database: Database, name: str) -> str:
    return await database.read(
        lambda conn: str(conn.execute(select(leases.c.holder).where(leases.c.name == name)).scalar_one())
    )


class LeaseContract:
    """`LeaseStore`, and its check within transactions."""

    async def test_one_of_two_gets_it(self, database: Database) -> None:
        store = SqlLeases(database)
        first = await store.acquire("sweep", "one", lease_s=60)
        assert first == Lease(name="sweep", holder="one", token=1)
        assert await store.acquire("sweep", "two", lease_s=60) is None
        assert await store.acquire("other", "two", lease_s=60) == Lease(name="other", holder="two", token=1)
        assert await store.renew(first, lease_s=60)
        await store.check(first)

    async def test_of_many_that_ask_at_once_one_gets_it(self, database: Database) -> None:
        store, got = SqlLeases(database), []

        async def ask(number: int) -> None:
            if lease := await store.acquire("sweep", f"replica{number}", lease_s=60):
                got.append(lease.holder)

        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(ask, number)
        assert got == [await holder_of(database, "sweep")]

    async def test_one_that_ended_goes_to_who_asks_and_its_old_holder_finds_out(self, database: Database) -> None:
        store = SqlLeases(database)
        old = await store.acquire("sweep", "one", lease_s=60)
        assert old is not None
        await end(database, "sweep")
        # Nobody took it meanwhile.
        assert await store.renew(old, lease_s=60)
        assert await store.acquire("sweep", "two", lease_s=60) is None
        await end(database, "sweep")
        new = await store.acquire("sweep", "two", lease_s=60)
        assert new == Lease(name="sweep", holder="two", token=2)
        assert not await store.renew(old, lease_s=60)
        with pytest.raises(ConflictError, match="another replica does sweep now"):
            await store.check(old)
        await store.release(old)
        assert await store.acquire("sweep", "three", lease_s=60) is None

    async def test_what_the_old_holder_does_late_is_rolled_back(self, database: Database) -> None:
        store = SqlLeases(database)
        old = await store.acquire("sweep", "one", lease_s=60)
        assert old is not None
        await end(database, "sweep")
        assert await store.acquire("sweep", "two", lease_s=60) is not None

        def late(conn: Connection) -> None:
            conn.execute(update(leases).values(holder="spoiled"))
            check_lease(conn, old)

        with pytest.raises(ConflictError):
            await database.write(late)
        assert await holder_of(database, "sweep") == "two"

    async def test_one_that_is_given_back_is_free_at_once(self, database: Database) -> None:
        store = SqlLeases(database)
        first = await store.acquire("sweep", "one", lease_s=60)
        assert first is not None
        await store.release(first)
        assert await store.acquire("sweep", "two", lease_s=60) == Lease(name="sweep", holder="two", token=2)
        with pytest.raises(ConflictError):
            await store.check(first)

    async def test_its_own_holder_gets_it_anew(self, database: Database) -> None:
        """Whose answer was lost asks again, and must not wait for itself."""
        store = SqlLeases(database)
        assert await store.acquire("sweep", "one", lease_s=60) is not None
        assert await store.acquire("sweep", "one", lease_s=60) == Lease(name="sweep", holder="one", token=2)

    @fault(35)
    async def test_a_clock_that_was_set_back_does_not_make_it_last(self, database: Database) -> None:
        store = SqlLeases(database)
        assert await store.acquire("sweep", "one", lease_s=60) is not None
        ahead = {"renewed_at_us": leases.c.renewed_at_us + 3600 * 10**6, "until_us": leases.c.until_us + 3600 * 10**6}
        await database.write(lambda conn: conn.execute(update(leases).values(ahead)))
        assert await store.acquire("sweep", "two", lease_s=60) is not None


class MemberContract:
    """`MemberStore`."""

    async def test_the_database_has_a_clock_of_its_own(self, database: Database) -> None:
        def now(conn: Connection) -> int:
            return int(conn.execute(select(database_now_us())).scalar_one())

        first = await database.write(now)
        assert isinstance(first, int)
        assert abs(datetime.fromtimestamp(first / 1e6, UTC) - datetime.now(UTC)) < timedelta(minutes=1)
        assert await database.read(now) >= first

    async def test_who_says_so_is_a_member(self, database: Database) -> None:
        store = SqlMemberStore(database)
        seen = await store.renew(BEAT, lease_s=60, forget_s=60)
        await store.renew(replace(BEAT, id="two", name="b", role="blobs"), lease_s=60, forget_s=60)
        await SqlLeases(database).acquire("sweep", "one", lease_s=60)
        first, second = await store.list_members()
        assert (first.id, first.name, first.alive, first.leases) == ("one", "a", True, ("sweep",))
        assert (first.grpc_address, first.http_address, first.version) == ("10.0.0.1:8085", "10.0.0.1:8080", "1.2.3")
        assert (first.started_at, first.last_seen_at) == (BEAT.started_at, seen)
        assert (first.clock_ahead_s, first.rev, first.role, first.state) == (-0.25, 7, "all", "ready")
        assert (second.id, second.role, second.leases) == ("two", "blobs", ())

    async def test_a_beat_replaces_the_one_before(self, database: Database) -> None:
        store = SqlMemberStore(database)
        await store.renew(BEAT, lease_s=60, forget_s=60)
        await store.renew(replace(BEAT, state="draining", rev=9), lease_s=60, forget_s=60)
        (member,) = await store.list_members()
        assert (member.state, member.rev) == ("draining", 9)

    async def test_who_is_silent_is_lost_and_then_forgotten(self, database: Database) -> None:
        store = SqlMemberStore(database)
        await store.renew(BEAT, lease_s=60, forget_s=60)
        await database.write(lambda conn: conn.execute(update(replicas).values(until_us=replicas.c.seen_at_us - 1)))
        (member,) = await store.list_members()
        assert not member.alive
        await store.renew(replace(BEAT, id="two"), lease_s=60, forget_s=60)
        assert len(await store.list_members()) == 2
        await database.write(
            lambda conn: conn.execute(update(replicas).where(replicas.c.uid == "one").values(until_us=1))
        )
        await store.renew(replace(BEAT, id="two"), lease_s=60, forget_s=60)
        assert [member.id for member in await store.list_members()] == ["two"]

    async def test_who_leaves_gives_back_its_leases(self, database: Database) -> None:
        store, leased = SqlMemberStore(database), SqlLeases(database)
        await store.renew(BEAT, lease_s=60, forget_s=60)
        await leased.acquire("sweep", "one", lease_s=60)
        await leased.acquire("compact", "two", lease_s=60)
        await store.leave("one")
        assert await store.list_members() == []
        assert await leased.acquire("sweep", "three", lease_s=60) is not None
        assert await leased.acquire("compact", "three", lease_s=60) is None

    async def test_a_database_of_one_server_is_cleared(self, database: Database) -> None:
        store, leased = SqlMemberStore(database), SqlLeases(database)
        await store.renew(BEAT, lease_s=60, forget_s=60)
        await leased.acquire("sweep", "one", lease_s=60)
        await store.clear()
        assert await store.list_members() == []
        assert await leased.acquire("sweep", "two", lease_s=60) == Lease(name="sweep", holder="two", token=2)
