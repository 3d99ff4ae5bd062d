"""The loader at a server that lies: what serves goes on, and the truth wins as soon as it is told again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from grpclib.client import Channel
from grpclib.const import Cardinality
from grpclib.encoding.base import CodecBase

from modelbox import _wire
from modelbox._proto.modelbox import v1 as pb
from modelbox._transport.source import RemoteSource
from modelbox.client import Client
from modelbox.config import load_client_config
from modelbox.errors import InvalidError
from modelbox.events import ReloadFailed, ReloadSucceeded, StaleChanged, StateConfirmed
from modelbox.feed import Bookmark, Change, FeedItem, ResumeToken, Resync, ResyncReason, Revision
from modelbox.loader.reload import Reloader
from modelbox.loader.settings import LoadOptions
from modelbox.objects import Alias, Resolved
from modelbox.refs import ModelRef
from tests.faults.lying import LyingServer
from tests.faults.registry import fault, record_figure
from tests.loading import SETTINGS, Log, answer, loading, recorded
from tests.onnx_models import add_constant
from tests.server import ServerProcess

END_OF_TIME = 2**63 - 1


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def truthful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("truthful") / "server", bookmark_interval_s=0.05) as process:
        yield process


@pytest.fixture
def lying(truthful: ServerProcess) -> Iterator[LyingServer]:
    with LyingServer(grpc=truthful.grpc_address, http=truthful.http_address) as server:
        yield server


@dataclass(kw_only=True)
class Serving:
    """A model of three versions, the first of which serves through the lying server."""

    path: str
    client: Client
    reloader: Reloader
    log: Log
    cache_dir: Path

    async def promote(self, version: int) -> Alias:
        """At the server itself, which does not lie."""
        return await self.client.promote(f"{self.path}@prod", version)

    @property
    def swaps(self) -> list[int]:
        return [event.version for event in self.log.events if isinstance(event, ReloadSucceeded)]

    async def settled(self, version: int) -> None:
        """It serves ``version``, and goes on to."""
        await self.log.served(version)
        assert await answer(self.reloader) == version + 1.0


@asynccontextmanager
async def serving(
    truthful: ServerProcess, lying: LyingServer, tmp_path: Path, *, relist_s: float = 3600
) -> AsyncIterator[Serving]:
    path = f"lies/{tmp_path.name.replace('_', '-')[:40].strip('-.').lower()}"
    settings = replace(SETTINGS, informer=replace(SETTINGS.informer, relist_s=relist_s, backoff_max_s=0.1))
    source = RemoteSource(load_client_config(url=lying.url, actor="loader@test"))
    async with Client(truthful.url, actor="ada@test") as client:
        for number in (1, 2, 3):
            (tmp_path / "model.onnx").write_bytes(add_constant(number))
            await client.publish(path, str(tmp_path / "model.onnx"))
        await client.promote(f"{path}@prod", 1)
        try:
            async with loading(source, tmp_path / "cache", settings=settings) as (loader, log):
                reloader = await loader.load(ModelRef.parse(f"{path}@prod"), LoadOptions())
                one = Serving(path=path, client=client, reloader=reloader, log=log, cache_dir=tmp_path / "cache")
                await one.settled(1)
                with anyio.fail_after(60):
                    while not lying.called("Watch"):
                        await anyio.sleep(0.01)
                yield one
        finally:
            await source.aclose()


def resolved(change: Callable[[Resolved], Resolved]) -> Callable[[pb.ResolveResponse], Iterable[pb.ResolveResponse]]:
    """Alters answers to `Resolve`."""
    return lambda answer: [_wire.pack_resolved(change(_wire.unpack_resolved(answer)))]


def watched(
    change: Callable[[FeedItem], Iterable[FeedItem]],
) -> Callable[[pb.WatchResponse], Iterable[pb.WatchResponse]]:
    """Alters what a watch tells."""

    def alter(message: pb.WatchResponse) -> Iterable[pb.WatchResponse]:
        item = _wire.unpack_feed_item(message)
        return [message] if item is None else [_wire.pack_feed_item(told) for told in change(item)]

    return alter


def at_the_end_of_time(token: str) -> str:
    return str(replace(ResumeToken.parse(token), rev=END_OF_TIME))


@fault(12)
async def test_a_flipped_bit_is_never_opened(truthful: ServerProcess, lying: LyingServer, tmp_path: Path) -> None:
    async with serving(truthful, lying, tmp_path) as one:
        lying.reads.clear()
        lying.files = lambda path, content: content[:9] + bytes([content[9] ^ 1]) + content[10:]
        await one.promote(2)
        await one.log.until(lambda event: isinstance(event, ReloadFailed) and event.quarantined)
        failures = [event for event in one.log.events if isinstance(event, ReloadFailed)]
        assert [event.code for event in failures] == ["integrity"] * 3
        assert len(lying.reads) == 6, "each of three tries fetched it twice"
        assert await answer(one.reloader) == 2.0
        lying.files = None
        await one.promote(3)
        await one.settled(3)
        await one.promote(2)
        await one.settled(2)
        assert one.swaps == [1, 3, 2]


@fault(13)
@pytest.mark.parametrize("lie", [b"", b"more"], ids=["longer", "much longer"])
async def test_no_more_is_taken_than_was_declared(
    truthful: ServerProcess, lying: LyingServer, tmp_path: Path, lie: bytes
) -> None:
    async with serving(truthful, lying, tmp_path) as one:
        lying.files = lambda path, content: content + (lie * (1 << 20) or b"x")
        (file,) = (await one.client.resolve(f"{one.path}@2")).version.manifest.files
        await one.promote(2)
        await one.log.until(lambda event: isinstance(event, ReloadFailed) and event.quarantined)
        assert await answer(one.reloader) == 2.0
        hex_digest = file.digest.partition(":")[2]
        assert not [path for path in one.cache_dir.rglob("*") if hex_digest in path.name and path.stat().st_size]


@fault(14)
async def test_ten_terabytes_are_refused_before_they_are_asked_for(
    truthful: ServerProcess, lying: LyingServer, tmp_path: Path
) -> None:
    def inflate(told: pb.ResolveResponse) -> list[pb.ResolveResponse]:
        assert told.version is not None
        assert told.alias is not None
        said = json.loads(told.version.manifest_json)
        said["files"][0]["size_bytes"] = 10 << 40
        told.version.manifest_json = json.dumps(said, separators=(",", ":"), sort_keys=True).encode()
        told.version.digest = f"sha256:{hashlib.sha256(told.version.manifest_json).hexdigest()}"
        told.alias.digest = told.version.digest
        return [told]

    async with serving(truthful, lying, tmp_path) as one:
        lying.reads.clear()
        lying.answers["Resolve"] = inflate
        await one.promote(2)
        event = await one.log.until(lambda event: isinstance(event, ReloadFailed))
        assert isinstance(event, ReloadFailed)
        assert "10995116277760 bytes, more than" in event.reason
        assert lying.reads == []
        assert await answer(one.reloader) == 2.0


@fault(15)
@pytest.mark.parametrize("lie", ["digest", "version", "model", "alias"])
async def test_an_answer_about_something_else_is_refused_and_told(
    truthful: ServerProcess, lying: LyingServer, tmp_path: Path, lie: str
) -> None:
    async with serving(truthful, lying, tmp_path) as one:
        first = await one.client.resolve(f"{one.path}@1")

        def lies(told: Resolved) -> Resolved:
            assert told.alias is not None
            match lie:
                case "digest":
                    return replace(told, alias=replace(told.alias, digest=first.version.digest))
                case "version":
                    return replace(told, version=first.version)
                case "model":
                    return replace(told, version=replace(told.version, model="another"))
            return replace(told, alias=replace(told.alias, name="other"))

        lying.answers["Resolve"] = resolved(lies)
        await one.promote(2)
        failed = await one.log.until(lambda event: isinstance(event, ReloadFailed))
        assert isinstance(failed, ReloadFailed)
        assert (failed.stage, failed.quarantined) == ("resolve", False)
        assert await answer(one.reloader) == 2.0
        with anyio.fail_after(60):
            while not (told := [i.report async for i in one.client.iter_instances(one.path) if i.report.stage]):
                await anyio.sleep(0.02)
        assert (told[0].stage, told[0].version) == ("resolve", 1)
        assert "cannot be true" in told[0].reason
        # Nothing else has to happen for the truth to be heard.
        del lying.answers["Resolve"]
        await one.settled(2)


@fault(15)
async def test_a_manifest_that_its_digest_does_not_name_is_refused(
    truthful: ServerProcess, lying: LyingServer, tmp_path: Path
) -> None:
    async with serving(truthful, lying, tmp_path) as one:

        def lies(told: pb.ResolveResponse) -> list[pb.ResolveResponse]:
            assert told.version is not None
            assert told.alias is not None
            told.version.digest = told.alias.digest = "sha256:" + "0" * 64
            return [told]

        lying.answers["Resolve"] = lies
        await one.promote(2)
        failed = await one.log.until(lambda event: isinstance(event, ReloadFailed))
        assert isinstance(failed, ReloadFailed)
        assert failed.stage == "resolve"
        assert await answer(one.reloader) == 2.0
        del lying.answers["Resolve"]
        await one.settled(2)


@fault(16)
async def test_a_replayed_answer_is_ignored(
    truthful: ServerProcess, lying: LyingServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(truthful, lying, tmp_path) as one:
        old = await one.client.resolve(f"{one.path}@prod")
        await one.promote(2)
        await one.settled(2)
        lying.answers["Resolve"] = resolved(lambda told: old)
        await one.client.update_version(f"{one.path}@2", metadata={"note": "makes the loader ask again"})
        with anyio.fail_after(60):
            while "ignored an older state" not in caplog.text:
                await anyio.sleep(0.01)
        assert await answer(one.reloader) == 3.0
        del lying.answers["Resolve"]
        await one.promote(3)
        await one.settled(3)
        assert one.swaps == [1, 2, 3]


@fault(17)
async def test_a_frozen_feed_is_found_by_asking(truthful: ServerProcess, lying: LyingServer, tmp_path: Path) -> None:
    """Bookmarks come, news do not: contact is not confirmation, and the look from time to time finds the truth."""
    async with serving(truthful, lying, tmp_path, relist_s=3) as one:
        lying.answers["Watch"] = watched(lambda item: [] if isinstance(item, Revision) else [item])
        confirmed = sum(isinstance(event, StateConfirmed) for event in one.log.events)
        began = time.monotonic()
        await one.promote(2)
        await one.settled(2)
        assert not one.reloader.stale
        assert sum(isinstance(event, StateConfirmed) for event in one.log.events) > confirmed
        record_figure(17, f"found after {time.monotonic() - began:.1f} s, with a look every 3 s")


@fault(17)
@pytest.mark.parametrize("where", ["Resolve", "Watch"])
async def test_a_leap_of_history_changes_nothing(
    truthful: ServerProcess, lying: LyingServer, tmp_path: Path, where: str
) -> None:
    def leap(told: Resolved) -> Resolved:
        assert told.alias is not None
        return replace(told, alias=replace(told.alias, mod_rev=END_OF_TIME), token=at_the_end_of_time(told.token))

    def leaping(item: FeedItem) -> list[FeedItem]:
        if isinstance(item, Bookmark):
            return [replace(item, rev=END_OF_TIME, head_rev=END_OF_TIME, token=at_the_end_of_time(item.token))]
        return [item]

    async with serving(truthful, lying, tmp_path) as one:
        await recorded(one.reloader, lambda state: True)
        state = one.reloader._cache.load_ref(one.reloader._cache_key)
        if where == "Resolve":
            lying.answers["Resolve"] = resolved(leap)
            await one.promote(2)
            await one.log.until(lambda event: isinstance(event, ReloadFailed))
        else:
            lying.answers["Watch"] = watched(leaping)
            await one.log.until(lambda event: isinstance(event, StaleChanged) and event.stale)
            await one.promote(2)
        assert await answer(one.reloader) == 2.0
        kept = one.reloader._cache.load_ref(one.reloader._cache_key)
        assert state is not None
        assert kept is not None
        assert (kept.version, kept.token) == (state.version, state.token)
        lying.answers.clear()
        await one.settled(2)


@fault(18)
async def test_what_comes_twice_is_done_once(truthful: ServerProcess, lying: LyingServer, tmp_path: Path) -> None:
    async with serving(truthful, lying, tmp_path) as one:
        lying.answers["Watch"] = watched(lambda item: [item, item, item])
        watches = lying.called("Watch")
        for version in (2, 3):
            await one.promote(version)
            await one.settled(version)
        assert one.swaps == [1, 2, 3]
        assert lying.called("Watch") == watches


@fault(19, 20)
async def test_what_is_dropped_is_found_at_the_next_link(
    truthful: ServerProcess, lying: LyingServer, tmp_path: Path
) -> None:
    """Bookmarks that came meanwhile say that everything was sent: they do not count."""
    dropped: list[int] = []
    beyond = 0

    def drop(item: FeedItem) -> list[FeedItem]:
        nonlocal beyond
        if isinstance(item, Revision) and not dropped:
            dropped.append(item.rev)
            return []
        beyond += isinstance(item, Bookmark) and bool(dropped)
        return [item]

    async with serving(truthful, lying, tmp_path) as one:
        lying.answers["Watch"] = watched(drop)
        watches = lying.called("Watch")
        await one.promote(2)
        with anyio.fail_after(60):
            while beyond < 2:
                await anyio.sleep(0.01)
        assert one.swaps == [1], "there was no way to know"
        await one.client.promote(f"{one.path}@other", 1)
        await one.settled(2)
        assert lying.called("Watch") == watches + 1


@fault(19)
async def test_events_in_the_wrong_order_end_in_the_right_state(
    truthful: ServerProcess, lying: LyingServer, tmp_path: Path
) -> None:
    held: list[FeedItem] = []

    def swap(item: FeedItem) -> list[FeedItem]:
        if not isinstance(item, Revision):
            return [item]
        if not held:
            held.append(item)
            return []
        return [item, *held]

    async with serving(truthful, lying, tmp_path) as one:
        lying.answers["Watch"] = watched(swap)
        await one.promote(2)
        await one.promote(3)
        await one.settled(3)
        assert await answer(one.reloader) == 4.0


@fault(20)
async def test_events_that_nobody_asked_for_are_ignored(
    truthful: ServerProcess, lying: LyingServer, tmp_path: Path
) -> None:
    told = 0

    def elsewhere(item: FeedItem) -> list[FeedItem]:
        nonlocal told
        if isinstance(item, Revision):
            told += 1
            return [replace(item, changes=tuple(moved_away(change) for change in item.changes))]
        return [item]

    def moved_away(change: Change) -> Change:
        return replace(change, namespace="secret", object=change.object.replace("lies/", "secret/"))

    async with serving(truthful, lying, tmp_path) as one:
        lying.answers["Watch"] = watched(elsewhere)
        asked, watches = lying.called("Resolve"), lying.called("Watch")
        for version in (1, 2, 1):
            await one.client.promote(f"{one.path}@other", version)
        with anyio.fail_after(60):
            while told < 3:
                await anyio.sleep(0.01)
        del lying.answers["Watch"]
        await one.promote(2)
        await one.settled(2)
        assert lying.called("Resolve") == asked + 1, "only for what is its own"
        assert lying.called("Watch") == watches
        assert not (one.cache_dir / "secret").exists()


@fault(12, 15)
@pytest.mark.parametrize("garbage", [b"", b"\xff" * 40, b"\x0a\x02hi"], ids=["empty", "no message", "half"])
async def test_garbage_in_place_of_an_answer_ends_a_call_only(
    truthful: ServerProcess, lying: LyingServer, tmp_path: Path, garbage: bytes
) -> None:
    async with serving(truthful, lying, tmp_path) as one:
        lying.answers["Resolve"] = lambda answer: [garbage]
        await one.promote(2)
        await one.log.until(lambda event: isinstance(event, ReloadFailed))
        assert await answer(one.reloader) == 2.0
        lying.answers.clear()
        await one.settled(2)
    with pytest.raises(InvalidError):
        _wire.decode_message(pb.ResolveResponse, b"\xff" * 40)


@fault(27)
async def test_a_watcher_that_is_always_sent_back_to_the_list_takes_its_time(
    truthful: ServerProcess, lying: LyingServer
) -> None:
    again = Resync(reason=ResyncReason.FUTURE, message="as always")
    lying.answers["Watch"] = lambda message: [_wire.pack_feed_item(again)]
    async with Client(lying.url) as client, anyio.create_task_group() as tg:

        async def follow() -> None:
            async for _ in client.changes(namespace="nothing"):
                pass

        tg.start_soon(follow)
        await anyio.sleep(2)
        assert lying.called("Watch") < 60
        with anyio.fail_after(60):
            while lying.called("Watch") < 2:
                await anyio.sleep(0.05)
        tg.cancel_scope.cancel()


def with_something_new(message: Any) -> bytes:
    """A message as a newer release may send it: with a field that this one does not know, number 1000, text."""
    new = b"from the future"
    return bytes(message) + b"\xc2\x3e" + bytes([len(new)]) + new


@fault(37)
async def test_a_newer_server_is_understood_as_far_as_it_can_be(
    truthful: ServerProcess, lying: LyingServer, tmp_path: Path
) -> None:
    told = 0

    def newer(item: FeedItem) -> Iterable[Any]:
        nonlocal told
        if isinstance(item, Revision):
            # A change of a kind that there is not, beside the one that there is; then an item that is none of ours.
            strange = replace(item.changes[0], kind="hologram", action="projected", object="lies/elsewhere#1")
            yield with_something_new(_wire.pack_feed_item(replace(item, changes=(strange, *item.changes))))
            yield with_something_new(pb.WatchResponse())
            told += 1
        else:
            yield with_something_new(_wire.pack_feed_item(item))

    def newer_watch(message: pb.WatchResponse) -> Iterable[Any]:
        item = _wire.unpack_feed_item(message)
        assert item is not None
        return newer(item)

    async with serving(truthful, lying, tmp_path) as one:
        watches = lying.called("Watch")
        lying.answers["Watch"] = newer_watch
        for method in ("Resolve", "BeginDownload", "Report"):
            lying.answers[method] = lambda answer: [with_something_new(answer)]
        for version in (2, 3):
            await one.promote(version)
            await one.settled(version)
        assert told >= 2
        assert lying.called("Watch") == watches
        assert not [event for event in one.log.events if isinstance(event, ReloadFailed)]


@fault(37)
async def test_a_newer_client_is_understood_as_far_as_it_can_be(truthful: ServerProcess) -> None:
    host, _, port = truthful.grpc_address.rpartition(":")
    async with Client(truthful.url) as client:
        await client.create_model("lies/newer")
    channel = Channel(host, int(port), codec=_Raw())
    try:
        call = channel.request("/modelbox.v1.RegistryService/GetModel", Cardinality.UNARY_UNARY, bytes, bytes)
        async with call as stream:
            await stream.send_message(with_something_new(pb.GetModelRequest(namespace="lies", name="newer")), end=True)
            answer = await stream.recv_message()
        assert answer is not None
        assert pb.Model.parse(answer).name == "newer"
    finally:
        channel.close()


class _Raw(CodecBase):
    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        return bytes(message)

    def decode(self, data: bytes, message_type: Any) -> bytes:
        return data
