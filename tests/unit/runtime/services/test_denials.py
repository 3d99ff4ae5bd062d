"""What callers were refused: summed up, bounded, and never in anybody's way."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import anyio
from anyio.lowlevel import checkpoint

from modelbox.access import Caller
from modelbox.errors import StorageError
from modelbox.runtime.audit_ports import DeniedCalls, FoundEntries
from modelbox.runtime.services.denials import AUTHENTICATION, Denials

START = datetime(2026, 5, 3, 12, tzinfo=UTC)
EVE = Caller(name="eve", token_id="kid", address="192.0.2.1")


class Written:
    """A store that keeps what it is given, or fails."""

    def __init__(self, *, fails: bool = False) -> None:
        self.revisions: list[tuple[DeniedCalls, ...]] = []
        self._fails = fails
        self.asked = anyio.Event()

    async def find(self, *_: object, **__: object) -> FoundEntries:
        raise NotImplementedError

    async def add_denials(self, denials: Sequence[DeniedCalls], *, at: datetime) -> None:
        self.asked.set()
        await checkpoint()
        if self._fails:
            raise StorageError("the database is away")
        self.revisions.append(tuple(denials))


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


def note(denials: Denials, caller: Caller = EVE, *, name: str = "ns/m", request_id: str = "") -> None:
    denials.note(
        caller,
        method="RegistryService/DeleteModel",
        permission="admin",
        namespace="ns",
        object=name,
        request_id=request_id,
    )


async def test_refusals_that_are_alike_are_one_entry() -> None:
    store, clock = Written(), Clock()
    denials = Denials(store, clock=clock)
    for number in range(1000):
        clock.now = START + timedelta(milliseconds=number)
        note(denials, request_id=f"call-{number}")
    note(denials, Caller(name="bob"), name="ns/other")
    assert await denials.flush() == 2
    ((first, second),) = store.revisions
    assert (first.actor, first.origin.token_id, first.origin.address) == ("eve", "kid", "192.0.2.1")
    assert (first.namespace, first.origin.request_id) == ("ns", "call-0")
    denial = first.denial
    assert (denial.method, denial.permission, denial.object) == ("RegistryService/DeleteModel", "admin", "ns/m")
    assert (denial.count, denial.others) == (1000, 0)
    assert (denial.first_at, denial.last_at) == (START, START + timedelta(milliseconds=999))
    assert (second.actor, second.denial.object, second.denial.count) == ("bob", "ns/other", 1)
    assert await denials.flush() == 0
    assert len(store.revisions) == 1


async def test_a_flood_grows_history_slowly_and_is_counted_all_the_same() -> None:
    store = Written()
    denials = Denials(store, burst=10, clock=Clock())
    entries = 0
    for minute in range(20):
        for number in range(3000):
            note(denials, name=f"ns/m{minute}-{number}")
        entries += await denials.flush()
    # A sum each time, the burst, and then one more for each interval.
    assert entries == 20 + 10 + 19
    everything = [one.denial for revision in store.revisions for one in revision]
    assert sum(one.count for one in everything) == 20 * 3000
    sums = [one for one in everything if one.others]
    assert len(sums) == 20
    assert all(one.method == one.permission == one.object == "" for one in sums)
    # Quiet minutes fill the budget again.
    for _ in range(50):
        await denials.flush()
    for number in range(12):
        note(denials, name=f"ns/again{number}")
    assert await denials.flush() == 11


async def test_what_a_caller_makes_up_is_taken_as_text_that_every_database_holds() -> None:
    store = Written()
    denials = Denials(store, clock=Clock())
    nobody = Caller(name="", address="192.0.2.1")
    made_up = "a\x00b\ud800\n" + "x" * 10_000
    denials.note(nobody, method="GET /x", permission=AUTHENTICATION, namespace="../etc", object=made_up)
    await denials.flush()
    ((found,),) = store.revisions
    assert found.namespace == ""
    assert found.denial.object == "a?b??" + "x" * 250
    found.denial.object.encode()


async def test_a_database_that_is_away_costs_the_sums_and_nothing_else() -> None:
    store = Written(fails=True)
    denials = Denials(store, interval_s=0.001, clock=Clock())
    note(denials)
    async with denials.running():
        await store.asked.wait()
        note(denials)
    assert store.revisions == []


async def test_the_end_writes_what_is_left() -> None:
    store = Written()
    denials = Denials(store, interval_s=3600.0, clock=Clock())
    async with denials.running():
        note(denials)
    assert [one.denial.count for revision in store.revisions for one in revision] == [1]
