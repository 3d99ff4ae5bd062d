"""The informer against a feed that does what it should, and against one that does not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import NoReturn

import anyio
import pytest

from modelbox.errors import ModelBoxError, NotAuthenticated, NotFoundError, Unavailable
from modelbox.feed import ResyncReason
from modelbox.loader.watch import Informer, InformerSettings
from modelbox.objects import Resolved
from modelbox.refs import ModelRef
from tests.faults.registry import fault
from tests.feed_source import FeedSource

REF = ModelRef.parse("ns/model@prod")
QUICK = InformerSettings(backoff_base_s=0.01, backoff_max_s=0.02, denied_pause_s=0.02, relist_s=3600)


class Holder:
    """A subscriber that keeps what it is told."""

    def __init__(self, ref: ModelRef = REF) -> None:
        self.ref = ref
        self.offers: list[Resolved] = []
        self.resets: list[bool] = []
        self.lost: list[NotFoundError] = []
        self.doubts: list[ModelBoxError] = []
        self._news = anyio.Event()

    def offer(self, resolved: Resolved, *, reset: bool = False) -> None:
        self.offers.append(resolved)
        self.resets.append(reset)
        self._news.set()

    def missing(self, error: NotFoundError) -> None:
        self.lost.append(error)
        self._news.set()

    def refused(self, error: ModelBoxError) -> None:
        self.doubts.append(error)
        self._news.set()

    @property
    def version(self) -> int:
        return self.offers[-1].version.version if self.offers else 0

    async def until_version(self, version: int) -> None:
        with anyio.fail_after(60):
            while self.version != version:
                self._news = anyio.Event()
                await self._news.wait()

    async def until_lost(self) -> None:
        with anyio.fail_after(60):
            while not self.lost:
                self._news = anyio.Event()
                await self._news.wait()


@pytest.fixture
def source() -> FeedSource:
    source = FeedSource()
    for number in (1, 2, 3):
        source.add({"model.onnx": b"%d" % number}, version=number)
    source.move("prod", source.versions["ns/model@1"])
    return source


@asynccontextmanager
async def informed(
    source: FeedSource, *holders: Holder, settings: InformerSettings = QUICK, token: str | None = ""
) -> AsyncIterator[tuple[Informer, list[bool]]]:
    contact: list[bool] = []
    informer = Informer(source, settings=settings, on_contact=contact.append)
    for holder in holders:
        informer.add(holder, source.token if token == "" else token)
    async with anyio.create_task_group() as tg:
        tg.start_soon(informer.run)
        try:
            yield informer, contact
        finally:
            tg.cancel_scope.cancel()


async def test_delivers_a_move(source: FeedSource) -> None:
    holder = Holder()
    async with informed(source, holder):
        source.move("prod", source.versions["ns/model@2"])
        await holder.until_version(2)
    assert holder.offers[-1].mod_rev == 2


async def test_resolves_only_what_a_change_touches(source: FeedSource) -> None:
    source.move("staging", source.versions["ns/model@1"])
    prod, staging = Holder(), Holder(ModelRef.parse("ns/model@staging"))
    async with informed(source, prod, staging):
        source.move("staging", source.versions["ns/model@3"])
        await staging.until_version(3)
        await anyio.wait_all_tasks_blocked()
    assert source.resolves == ["ns/model@staging"]
    assert prod.offers == []


async def test_a_fleet_may_take_its_time(source: FeedSource, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[float] = []
    its_time = anyio.Event()
    sleep = anyio.sleep

    def draw(low: float, high: float) -> float:
        drawn.append(high)
        return high

    async def pause(seconds: float) -> None:
        await (its_time.wait() if seconds == 1234.5 else sleep(seconds))

    monkeypatch.setattr("random.uniform", draw)
    monkeypatch.setattr("anyio.sleep", pause)
    async with informed(source, holder := Holder(), settings=replace(QUICK, jitter_s=1234.5)):
        source.move("prod", source.versions["ns/model@2"])
        await anyio.wait_all_tasks_blocked()
        assert holder.offers == []
        assert drawn.count(1234.5) == 1
        source.move("prod", source.versions["ns/model@3"])
        await anyio.wait_all_tasks_blocked()
        its_time.set()
        await holder.until_version(3)
    assert source.resolves == ["ns/model@prod"], "one look for both moves"


async def test_what_cannot_be_resolved_later_is_listed_again(
    source: FeedSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = Holder()
    resolve = source.resolve
    failed: list[ModelRef] = []

    async def fails_once(ref: ModelRef) -> Resolved:
        if not failed:
            failed.append(ref)
            raise Unavailable("not now")
        return await resolve(ref)

    monkeypatch.setattr(source, "resolve", fails_once)
    async with informed(source, holder, settings=replace(QUICK, jitter_s=0.01)):
        source.move("prod", source.versions["ns/model@2"])
        await holder.until_version(2)
    assert failed == [REF]


async def test_delivers_an_edit_of_the_version(source: FeedSource) -> None:
    holder = Holder()
    async with informed(source, holder):
        source.edit(source.versions["ns/model@1"], batching=True)
        await holder.until_version(1)
    assert holder.offers[-1].version.metadata == {"batching": True}


async def test_lists_first_what_has_no_known_state(source: FeedSource) -> None:
    holder = Holder()
    async with informed(source, holder, token=None):
        await holder.until_version(1)


async def test_resumes_after_a_break_where_it_was(source: FeedSource) -> None:
    holder = Holder()
    async with informed(source, holder) as (_, contact):
        source.move("prod", source.versions["ns/model@2"])
        await holder.until_version(2)
        cursor = source.token
        source.disconnect()
        source.move("prod", source.versions["ns/model@3"])
        await holder.until_version(3)
    assert source.watches[-1] == cursor
    assert False in contact
    assert contact[-1] is True


@fault(19)
async def test_a_lost_revision_is_noticed_and_made_up_for(source: FeedSource) -> None:
    holder = Holder()
    async with informed(source, holder):
        await anyio.wait_all_tasks_blocked()
        source.skip.add(2)
        source.move("prod", source.versions["ns/model@2"])  # lost on the way
        source.move("staging", source.versions["ns/model@1"])  # shows the gap
        await holder.until_version(2)
    assert len(source.watches) >= 2


@fault(18)
async def test_a_repeated_revision_ends_in_the_right_state(source: FeedSource) -> None:
    holder = Holder()
    async with informed(source, holder):
        await anyio.wait_all_tasks_blocked()
        source.repeat.add(2)
        source.move("prod", source.versions["ns/model@2"])
        await holder.until_version(2)
        source.move("prod", source.versions["ns/model@3"])
        await holder.until_version(3)


@fault(26, 27)
@pytest.mark.parametrize("reason", list(ResyncReason))
async def test_a_resync_lists_again(source: FeedSource, reason: ResyncReason) -> None:
    holder = Holder()
    source.resync = reason
    async with informed(source, holder):
        await holder.until_version(1)
        source.move("prod", source.versions["ns/model@2"])
        await holder.until_version(2)
    assert holder.resets[0] is (reason in (ResyncReason.DIVERGED, ResyncReason.FUTURE))


async def test_a_deleted_alias_is_reported_and_followed_again(source: FeedSource) -> None:
    holder = Holder()
    async with informed(source, holder):
        source.drop("prod")
        await holder.until_lost()
        source.move("prod", source.versions["ns/model@3"])
        await holder.until_version(3)


async def test_waits_for_a_server_that_is_down(source: FeedSource) -> None:
    holder = Holder()
    source.faults.down = True
    async with informed(source, holder, token=None) as (_, contact):
        with anyio.fail_after(60):
            while not contact:
                await anyio.sleep(0.005)
        await anyio.sleep(0.1)
        assert holder.offers == []
        assert contact == [False] * len(contact) != []
        source.faults.down = False
        await holder.until_version(1)


async def test_a_reference_that_does_not_exist_yet_is_found_later(source: FeedSource) -> None:
    holder = Holder(ModelRef.parse("ns/model@later"))
    async with informed(source, holder, token=None):
        await holder.until_lost()
        await anyio.wait_all_tasks_blocked()
        source.move("later", source.versions["ns/model@2"])
        await holder.until_version(2)


async def test_added_while_running_and_removed(source: FeedSource) -> None:
    first, second = Holder(), Holder(ModelRef.parse("ns/model@staging"))
    source.move("staging", source.versions["ns/model@1"])
    async with informed(source, first) as (informer, _):
        await anyio.wait_all_tasks_blocked()
        informer.add(second, source.token)
        source.move("staging", source.versions["ns/model@2"])
        await second.until_version(2)
        informer.remove(second)
        source.move("staging", source.versions["ns/model@3"])
        source.move("prod", source.versions["ns/model@3"])
        await first.until_version(3)
    assert second.version == 2


@fault(17)
async def test_everything_is_checked_again_from_time_to_time(source: FeedSource) -> None:
    holder = Holder()
    settings = InformerSettings(backoff_base_s=0.01, relist_s=0.05)
    async with informed(source, holder, settings=settings):
        await holder.until_version(1)  # nothing moved: only the check delivers it


async def test_waits_long_where_it_is_refused_and_follows_again(source: FeedSource) -> None:
    holder = Holder()
    async with informed(source, holder) as (_, contact):
        source.move("prod", source.versions["ns/model@2"])
        await holder.until_version(2)
        source.faults.unknown = True
        source.disconnect()
        with anyio.fail_after(60):
            while contact[-1]:
                await anyio.sleep(0.005)
        source.move("prod", source.versions["ns/model@3"])
        watches = len(source.watches)
        source.faults.unknown = False
        await holder.until_version(3)
    assert len(source.watches) == watches + 1
    assert holder.lost == []
    assert InformerSettings().denied_pause_s == 60


async def test_a_refusal_is_asked_about_once_a_pause(source: FeedSource, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = Holder()
    source.faults.unknown = True
    settings = InformerSettings(backoff_base_s=0.001, backoff_max_s=0.001, denied_pause_s=3600, relist_s=3600)
    asked = 0

    def watch(objects: Sequence[str], token: str) -> NoReturn:
        nonlocal asked
        asked += 1
        raise NotAuthenticated("the token is not valid any more")

    monkeypatch.setattr(source, "watch", watch)
    async with informed(source, holder, settings=settings) as (_, contact):
        with anyio.fail_after(60):
            while not contact:
                await anyio.sleep(0.005)
        await anyio.sleep(0.05)
    assert asked == 1
