"""References that come and go while others are followed: each has its own place in history, the stream has one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from modelbox.errors import Unavailable
from modelbox.events import ReloadStarted
from modelbox.feed import ResumeToken
from modelbox.loader.reload import Reloader
from modelbox.loader.settings import LoadOptions
from modelbox.loader.watch import Informer, InformerSettings
from modelbox.objects import Resolved
from modelbox.refs import ModelRef
from tests.feed_source import FeedSource
from tests.loading import answer, loading
from tests.onnx_models import add_constant
from tests.unit.loader.test_watch import QUICK, Holder, informed

PROD = ModelRef.parse("ns/model@prod")
STAGING = ModelRef.parse("ns/model@staging")


@pytest.fixture
def source() -> FeedSource:
    source = FeedSource()
    for number in (1, 2, 3):
        source.add({"model.onnx": add_constant(number)}, version=number)
    source.move("prod", source.versions["ns/model@1"])
    source.move("staging", source.versions["ns/model@1"])
    return source


async def test_a_move_from_before_the_place_of_the_stream_is_not_missed(source: FeedSource) -> None:
    before = source.token
    source.move("staging", source.versions["ns/model@2"])
    prod, staging = Holder(PROD), Holder(STAGING)
    async with informed(source, prod) as (informer, _):
        await anyio.wait_all_tasks_blocked()
        informer.add(staging, before)
        await staging.until_version(2)


async def test_a_move_during_a_first_load_is_not_missed(source: FeedSource, tmp_path: Path) -> None:
    async with loading(source, tmp_path) as (loader, log):
        loaded: list[Reloader] = []

        async def load() -> None:
            loaded.append(await loader.load(PROD, LoadOptions()))

        source.gate = held = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(load)
            await log.until(lambda event: isinstance(event, ReloadStarted) and event.ref == str(PROD))
            await anyio.wait_all_tasks_blocked()
            source.move("prod", source.versions["ns/model@3"])
            source.move("staging", source.versions["ns/model@2"])
            source.gate = None
            await loader.load(STAGING, LoadOptions())
            held.set()
        await log.served(3)
        assert await answer(loaded[0]) == 4.0


async def test_a_place_that_comes_in_the_middle_of_a_listing_does_not_count_for_the_others(
    source: FeedSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    prod, staging, later = Holder(PROD), Holder(STAGING), Holder(ModelRef.parse("ns/model@later"))
    source.move("later", source.versions["ns/model@1"])
    resolve, asked = source.resolve, anyio.Event()

    async def held(ref: ModelRef) -> Resolved:
        if ref == STAGING and not asked.is_set():
            asked.set()
            await anyio.sleep_forever()
        return await resolve(ref)

    monkeypatch.setattr(source, "resolve", held)
    async with informed(source, prod, staging, token=None) as (informer, _):
        await prod.until_version(1)
        await asked.wait()
        source.move("prod", source.versions["ns/model@2"])
        informer.add(later, source.token)
        await staging.until_version(1)
        await prod.until_version(2)


async def test_a_look_for_one_that_left_is_none_for_its_successor(
    source: FeedSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, other = Holder(PROD), Holder(PROD), Holder(STAGING)
    resolve, asked, go_on = source.resolve, anyio.Event(), anyio.Event()
    calls = 0

    async def held(ref: ModelRef) -> Resolved:
        nonlocal calls
        calls += ref == PROD
        number = calls if ref == PROD else 0
        if number == 1:
            asked.set()
            await go_on.wait()
        elif number == 2:
            go_on.set()
            await anyio.wait_all_tasks_blocked()
            raise Unavailable("not now")
        return await resolve(ref)

    monkeypatch.setattr(source, "resolve", held)
    settings = InformerSettings(backoff_base_s=0.01, backoff_max_s=0.02, relist_s=3600, jitter_s=0.001)
    async with informed(source, first, other, settings=settings) as (informer, _):
        source.move("prod", source.versions["ns/model@2"])
        with anyio.fail_after(20):
            await asked.wait()
        informer.remove(first)
        informer.add(second, None)
        await second.until_version(2)
    assert first.offers == []


async def test_an_answer_from_before_the_change_that_it_is_about_is_asked_for_again(
    source: FeedSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve, holder = source.resolve, Holder(PROD)
    before, asked = await resolve(PROD), 0

    async def lagging(ref: ModelRef) -> Resolved:
        nonlocal asked
        asked += 1
        return before if asked <= 2 else await resolve(ref)

    monkeypatch.setattr(source, "resolve", lagging)
    async with informed(source, holder):
        source.move("prod", source.versions["ns/model@2"])
        await holder.until_version(2)
        await anyio.sleep(0.1)
    assert asked == 3
    assert [offer.version.version for offer in holder.offers] == [1, 1, 2]


async def test_an_answer_to_a_listing_from_before_the_place_of_the_stream_is_asked_for_again(
    source: FeedSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve, other, holder = source.resolve, Holder(STAGING), Holder(PROD)
    before, token, asked = await resolve(PROD), source.token, 0

    async def lagging(ref: ModelRef) -> Resolved:
        nonlocal asked
        asked += ref == PROD
        return before if ref == PROD and asked == 1 else await resolve(ref)

    async with informed(source, other) as (informer, _):
        source.move("prod", source.versions["ns/model@2"])
        source.move("staging", source.versions["ns/model@2"])
        await other.until_version(2)
        monkeypatch.setattr(source, "resolve", lagging)
        informer.add(holder, token)
        await holder.until_version(2)
    assert [offer.version.version for offer in holder.offers] == [1, 2]


async def test_of_moves_that_one_look_is_for_the_answer_has_to_know_the_last(
    source: FeedSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelbox.loader.watch.random.uniform", lambda low, high: high)
    resolve, holder = source.resolve, Holder(PROD)
    asked = 0

    async def lagging(ref: ModelRef) -> Resolved:
        nonlocal asked
        asked += 1
        return between if asked == 1 else await resolve(ref)

    async with informed(source, holder, settings=replace(QUICK, jitter_s=1.0)):
        source.move("prod", source.versions["ns/model@2"])
        between = await resolve(PROD)
        source.move("prod", source.versions["ns/model@3"])
        monkeypatch.setattr(source, "resolve", lagging)
        await holder.until_version(3)


async def test_an_answer_of_another_history_is_not_asked_for_again(
    source: FeedSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve, holder = source.resolve, Holder(PROD)
    asked = 0

    async def other(ref: ModelRef) -> Resolved:
        nonlocal asked
        asked += 1
        place = ResumeToken(server_id="another", epoch="one", rev=3, chain="00")
        answer = await resolve(ref)
        assert answer.alias is not None
        return replace(answer, alias=replace(answer.alias, mod_rev=3), token=str(place))

    monkeypatch.setattr(source, "resolve", other)
    for _ in range(5):
        source.move("later", source.versions["ns/model@1"])
    async with informed(source, holder):
        source.move("prod", source.versions["ns/model@2"])
        await holder.until_version(2)
        await anyio.sleep(0.1)
    assert asked == 1


async def test_a_look_that_was_due_when_the_informer_failed_is_made_up_for(source: FeedSource) -> None:
    class Failing(Holder):
        failed = False

        def offer(self, resolved: Resolved, *, reset: bool = False) -> None:
            if not self.failed:
                self.failed = True
                raise ZeroDivisionError
            super().offer(resolved, reset=reset)

    failing, prod = Failing(STAGING), Holder(PROD)
    informer = Informer(source, settings=replace(QUICK, jitter_s=0.05))
    for holder in (failing, prod):
        informer.add(holder, source.token)
    async with anyio.create_task_group() as tasks:
        # As the loader keeps it up.
        async def run() -> None:
            for _ in range(3):
                with pytest.raises(ExceptionGroup):
                    await informer.run()

        tasks.start_soon(run)
        await anyio.wait_all_tasks_blocked()
        source.move("staging", source.versions["ns/model@2"])
        source.move("prod", source.versions["ns/model@2"])
        await failing.until_version(2)
        await prod.until_version(2)
        source.move("staging", source.versions["ns/model@3"])
        source.move("prod", source.versions["ns/model@3"])
        await failing.until_version(3)
        await prod.until_version(3)
        tasks.cancel_scope.cancel()
