"""A server that comes and goes, over hours that pass in no time: the clock is trio's, and jumps to the next timer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import pytest

from modelbox.feed import Bookmark, FeedItem, Resync, ResyncReason, Revision
from modelbox.loader.watch import Informer, InformerSettings
from modelbox.objects import Resolved
from modelbox.refs import ModelRef
from tests.faults.registry import fault, record_figure
from tests.feed_source import FeedSource

testing = pytest.importorskip("trio.testing", reason="trio's clock can be set, asyncio's can not")
REF = ModelRef.parse("ns/model@prod")
MINUTES = 60


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": testing.MockClock(autojump_threshold=0.001)}


class _Counted(FeedSource):
    """Counts attempts, successful or not."""

    attempts = 0

    def watch(self, objects: Sequence[str], token: str) -> AbstractAsyncContextManager[AsyncIterator[FeedItem]]:
        self.attempts += 1
        return super().watch(objects, token)


class _Holder:
    def __init__(self) -> None:
        self.ref = REF
        self.versions: list[int] = []

    def offer(self, resolved: Resolved, *, reset: bool = False) -> None:
        self.versions.append(resolved.version.version)

    def missing(self, error: Exception) -> None:
        raise AssertionError(error)

    refused = missing


@asynccontextmanager
async def followed(source: FeedSource) -> AsyncIterator[_Holder]:
    holder = _Holder()
    informer = Informer(source, settings=InformerSettings(relist_s=1e9))
    informer.add(holder, source.token)
    async with anyio.create_task_group() as tg:
        tg.start_soon(informer.run)
        yield holder
        tg.cancel_scope.cancel()


@pytest.fixture
def source() -> _Counted:
    source = _Counted()
    for number in (1, 2):
        source.add({"model.onnx": b"%d" % number}, version=number)
    source.move("prod", source.versions["ns/model@1"])
    return source


@fault(10)
async def test_a_flapping_server_is_asked_a_few_times_a_minute(source: _Counted) -> None:
    async with followed(source) as holder:
        for _ in range(MINUTES * 15):
            source.faults.down = True
            source.disconnect()
            await anyio.sleep(2)
            source.faults.down = False
            await anyio.sleep(2)
        # Pauses of up to 10 s, half of it on average, and up to 2 s of a stream in between.
        per_minute = source.attempts / MINUTES
        assert 4 < per_minute < 16
        source.move("prod", source.versions["ns/model@2"])
        await anyio.sleep(11)
        assert holder.versions[-1] == 2
        record_figure(10, f"{per_minute:.1f} attempts a minute, over {MINUTES} minutes")


@fault(10)
async def test_a_stream_that_lasted_is_taken_up_again_soon(source: _Counted) -> None:
    async with followed(source):
        source.faults.down = True
        source.disconnect()
        await anyio.sleep(600)
        source.faults.down = False
        await anyio.sleep(61 + 10)
        before = source.attempts
        source.disconnect()
        await anyio.sleep(0.6)
        assert source.attempts == before + 1, "the first pause is half a second at most"


class _Endless(_Counted):
    """Ends every stream as soon as it begins, in the way that a test wants."""

    endless: ResyncReason | None = None

    async def _items(self, token: str) -> AsyncIterator[FeedItem]:
        if self.endless is not None:
            yield Resync(reason=self.endless, message="as always")
            return
        rev = self.rev + self.attempts
        yield Bookmark(rev=self.rev, head_rev=self.rev, token=self._at(self.rev))
        yield Revision(rev=rev + 2, prev_rev=rev + 1, changes=(), token=self._at(rev + 2))
        await anyio.sleep_forever()


@fault(19, 26, 27)
@pytest.mark.parametrize("how", [ResyncReason.COMPACTED, ResyncReason.FUTURE, None], ids=["old", "ahead", "gaps"])
async def test_a_server_that_never_makes_sense_is_not_asked_without_end(how: ResyncReason | None) -> None:
    endless = _Endless()
    endless.endless = how
    endless.add({"model.onnx": b"1"})
    endless.move("prod", endless.versions["ns/model@1"])
    async with followed(endless) as holder:
        await anyio.sleep(60 * MINUTES)
        assert endless.attempts / MINUTES < 20
        assert set(holder.versions) == {1}
