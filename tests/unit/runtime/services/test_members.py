"""Membership: what a server says of itself, and what it notices of clocks and of trouble."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

import anyio
import pytest

from modelbox.errors import ServerBusy
from modelbox.objects import Member
from modelbox.runtime.replica_ports import Beat
from modelbox.runtime.services.members import MemberService

NOW = datetime(2026, 5, 3, 12, tzinfo=UTC)


class Store:
    """Members in memory, by a clock that tests set."""

    def __init__(self) -> None:
        self.beats: dict[str, Beat] = {}
        self.now = NOW
        self.away = False
        self.cleared = 0
        self.beat = anyio.Event()

    async def renew(self, beat: Beat, *, lease_s: float, forget_s: float) -> datetime:
        if self.away:
            raise ServerBusy("away")
        self.beats[beat.id] = beat
        self.beat.set()
        self.beat = anyio.Event()
        return self.now

    async def leave(self, member_id: str) -> None:
        if self.away:
            raise ServerBusy("away")
        del self.beats[member_id]

    async def clear(self) -> None:
        self.cleared += 1

    async def list_members(self) -> Sequence[Member]:
        return [Member(**asdict(beat), last_seen_at=self.now, alive=True) for beat in self.beats.values()]


def service(store: Store, **changes: object) -> MemberService:
    options: dict[str, object] = {
        "name": "a",
        "role": "all",
        "grpc_address": "10.0.0.1:1",
        "http_address": "10.0.0.1:2",
        "version": "1",
        "rev": lambda: 7,
        "lease_s": 0.3,
        "clock": lambda: NOW,
    }
    return MemberService(store, **(options | changes))  # type: ignore[arg-type]


async def test_it_joins_beats_drains_and_leaves() -> None:
    store = Store()
    async with service(store) as members:
        (beat,) = store.beats.values()
        assert (beat.name, beat.state, beat.rev) == ("a", "ready", 7)
        with anyio.fail_after(60):
            await store.beat.wait()
        await members.drain()
        assert store.beats[members.id].state == "draining"
        assert [member.name for member in await members.list_members()] == ["a"]
    assert store.beats == {}
    assert store.cleared == 0


async def test_alone_it_clears_what_others_left() -> None:
    store = Store()
    async with service(store, alone=True):
        assert store.cleared == 1


async def test_it_starts_and_stops_while_the_store_is_away() -> None:
    store = Store()
    store.away = True
    async with service(store):
        assert store.beats == {}
        store.away = False
        with anyio.fail_after(60):
            await store.beat.wait()
        store.away = True


async def test_trouble_is_told_and_that_it_is_over() -> None:
    store, told = Store(), list[str]()
    trouble = ["the database is away"]
    async with service(store, trouble=lambda: trouble[0], on_trouble=told.append) as members:
        assert store.beats[members.id].state == "degraded"
        await _until(lambda: told[-1:] == ["the database is away"])
        trouble[0] = ""
        await _until(lambda: told[-1:] == [""])
        await _until(lambda: store.beats[members.id].state == "ready")


async def test_trouble_is_told_before_the_beat_that_waits_for_the_database() -> None:
    class Hanging(Store):
        async def renew(self, beat: Beat, *, lease_s: float, forget_s: float) -> datetime:
            if trouble[0]:
                await anyio.sleep_forever()
            return await super().renew(beat, lease_s=lease_s, forget_s=forget_s)

    told, trouble = list[str](), [""]
    async with service(Hanging(), trouble=lambda: trouble[0], on_trouble=told.append):
        trouble[0] = "the database is away"
        await _until(lambda: told[-1:] == ["the database is away"])
        trouble[0] = ""


@pytest.mark.parametrize(("ahead", "warned"), [(0.0, False), (0.9, False), (90.0, True), (-90.0, True)])
async def test_clocks_that_disagree_are_noticed(ahead: float, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    store = Store()
    store.now = NOW - timedelta(seconds=ahead)
    async with service(store) as members:
        for _ in range(2):
            with anyio.fail_after(60):
                await store.beat.wait()
        assert store.beats[members.id].clock_ahead_s == pytest.approx(ahead, abs=0.3)
        assert abs(members.now() - store.now) < timedelta(seconds=1)
    assert caplog.text.count("off the database's") == int(warned)


async def test_only_who_has_bytes_and_is_ready_is_named() -> None:
    store = Store()
    async with service(store, role="control", name="control") as control:
        assert control.http_with_bytes() == ""
        async with service(store, role="blobs", http_address="10.0.0.2:2") as files:
            await _until(lambda: control.http_with_bytes() == "10.0.0.2:2")
            await files.drain()
            await _until(lambda: control.http_with_bytes() == "")


async def _until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(60):
        while not holds():
            await anyio.sleep(0.01)
