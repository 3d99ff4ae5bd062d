"""Work that one of the replicas does: whoever holds the lease, and only as long as it is held."""

from __future__ import annotations

import anyio
import pytest

from modelbox.errors import ServerBusy
from modelbox.runtime.replica_ports import Lease
from modelbox.runtime.services.housekeeping import Housekeeping

LEASE_S = 0.3


class Leases:
    """Leases in memory, which can be away, or given to others."""

    def __init__(self) -> None:
        self.holder = ""
        self.token = 0
        self.away = False
        self.released = 0
        self.refused = 0

    def _check(self) -> None:
        if self.away:
            raise ServerBusy("away")

    async def acquire(self, name: str, holder: str, *, lease_s: float) -> Lease | None:
        self._check()
        if self.holder not in ("", holder):
            self.refused += 1
            return None
        self.holder = holder
        self.token += 1
        return Lease(name=name, holder=holder, token=self.token)

    async def renew(self, lease: Lease, *, lease_s: float) -> bool:
        self._check()
        return (self.holder, self.token) == (lease.holder, lease.token)

    async def release(self, lease: Lease) -> None:
        self._check()
        self.released += 1
        if await self.renew(lease, lease_s=0):
            self.holder = ""

    async def check(self, lease: Lease) -> None:
        raise AssertionError


class Work:
    """Counts who is at work."""

    def __init__(self) -> None:
        self.now = 0
        self.most = 0
        self.begun: list[Lease] = []
        self.changed = anyio.Event()

    async def __call__(self, lease: Lease) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        self.begun.append(lease)
        self._tell()
        try:
            await anyio.sleep_forever()
        finally:
            self.now -= 1
            self._tell()

    def _tell(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()

    async def until(self, now: int, begun: int) -> None:
        with anyio.fail_after(60):
            while self.now != now or len(self.begun) < begun:
                await self.changed.wait()


@pytest.fixture
def leases() -> Leases:
    return Leases()


async def test_one_of_two_works_and_the_other_takes_over(leases: Leases) -> None:
    work = Work()
    async with anyio.create_task_group() as tasks:
        first = anyio.CancelScope()

        async def replica(name: str, scope: anyio.CancelScope, lease_s: float) -> None:
            with scope:
                await Housekeeping(leases, name, lease_s=lease_s).run("sweep", work)

        # One that it does not lose when the machine stands still; the other asks often.
        tasks.start_soon(replica, "one", first, 600.0)
        await work.until(1, 1)
        tasks.start_soon(replica, "two", anyio.CancelScope(), LEASE_S)
        while leases.refused < 3:
            await anyio.sleep(0.01)
        assert [lease.holder for lease in work.begun] == ["one"]
        # It gives the lease back when it stops.
        first.cancel()
        await work.until(1, 2)
        assert [lease.holder for lease in work.begun] == ["one", "two"]
        assert work.most == 1
        tasks.cancel_scope.cancel()
    assert leases.holder == ""


async def test_who_lost_the_lease_stops(leases: Leases) -> None:
    work = Work()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Housekeeping(leases, "one", lease_s=LEASE_S).run, "sweep", work)
        await work.until(1, 1)
        leases.holder, leases.token = "two", leases.token + 1
        await work.until(0, 1)
        assert leases.holder == "two"
        leases.holder = ""
        await work.until(1, 2)
        tasks.cancel_scope.cancel()


async def test_who_cannot_renew_stops_before_others_may_begin(leases: Leases) -> None:
    work = Work()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Housekeeping(leases, "one", lease_s=LEASE_S).run, "sweep", work)
        await work.until(1, 1)
        leases.away = True
        await work.until(0, 1)
        leases.away = False
        await work.until(1, 2)
        tasks.cancel_scope.cancel()


async def test_work_that_fails_begins_again(leases: Leases) -> None:
    tries = 0
    again = anyio.Event()

    async def work(lease: Lease) -> None:
        nonlocal tries
        tries += 1
        if tries == 2:
            again.set()
        raise ServerBusy("not now")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Housekeeping(leases, "one", lease_s=LEASE_S).run, "sweep", work)
        with anyio.fail_after(60):
            await again.wait()
        tasks.cancel_scope.cancel()
    assert leases.released == 2
