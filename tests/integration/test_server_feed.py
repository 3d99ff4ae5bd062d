"""The change feed over gRPC and as server-sent events, on a real server process."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import aiohttp
import anyio
import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from modelbox import _wire as wire
from modelbox._proto.modelbox import v1 as pb
from modelbox.feed import Bookmark, FeedItem, Resync, ResyncReason, Revision
from tests.server import ServerProcess
from tests.stubs import Stubs, connect, publish


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def feed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("feed") / "data", bookmark_interval_s=0.2) as process:
        yield process


async def _watch(
    stubs: Stubs, token: str = "", *, namespace: str = "", kinds: tuple[str, ...] = ()
) -> AsyncGenerator[FeedItem, None]:
    request = pb.WatchRequest(filter=pb.Filter(namespace=namespace, kinds=list(kinds)), token=token)
    async for message in stubs.watch.watch(request):
        item = wire.unpack_feed_item(message)
        assert item is not None
        yield item


async def _revisions(stubs: Stubs, token: str, count: int, **wanted: str) -> list[Revision]:
    found: list[Revision] = []
    with anyio.fail_after(60):
        async with aclosing(_watch(stubs, token, namespace=wanted.get("namespace", ""))) as items:
            async for item in items:
                if isinstance(item, Revision):
                    found.append(item)
                if len(found) == count:
                    break
    return found


async def _make(stubs: Stubs, namespace: str, *names: str) -> None:
    for name in names:
        await stubs.registry.create_model(pb.CreateModelRequest(namespace=namespace, name=name))


async def _token(stubs: Stubs) -> str:
    return (await stubs.watch.list(pb.ListRequest(page_size=1))).token


async def test_a_watch_begins_with_a_bookmark_and_brings_each_change_once_in_order(feed_server: ServerProcess) -> None:
    async with connect(feed_server.grpc_address) as stubs:
        token = await _token(stubs)
        async with aclosing(_watch(stubs, token)) as items:
            assert isinstance(await anext(items), Bookmark)
            await _make(stubs, "order", "a", "b", "c")
            revisions = [item async for item in _until(items, 3)]
        assert [r.rev - revisions[0].rev for r in revisions] == [0, 1, 2]
        assert [r.prev_rev for r in revisions][1:] == [r.rev for r in revisions][:-1]
        assert [c.object for r in revisions for c in r.changes if c.kind == "model"] == [
            "order/a",
            "order/b",
            "order/c",
        ]
        assert all(c.actor == "tester" for r in revisions for c in r.changes)


async def _until(items: AsyncIterator[FeedItem], count: int) -> AsyncIterator[Revision]:
    with anyio.fail_after(60):
        while count:
            item = await anext(items)
            if isinstance(item, Revision):
                count -= 1
                yield item


async def test_publishing_is_one_revision(feed_server: ServerProcess) -> None:
    async with connect(feed_server.grpc_address) as stubs:
        token = await _token(stubs)
        await publish(stubs, "atomic", "m", {"m.onnx": b"x"}, aliases=("prod",))
        changes = [c for revision in await _revisions(stubs, token, 1, namespace="atomic") for c in revision.changes]
        kinds = [(c.kind, c.object) for c in changes]
        assert ("version", "atomic/m@1") in kinds
        assert ("alias", "atomic/m@prod") in kinds
        assert ("alias", "atomic/m@latest") in kinds


async def test_every_token_resumes_after_its_revision(feed_server: ServerProcess) -> None:
    async with connect(feed_server.grpc_address) as stubs:
        token = await _token(stubs)
        await _make(stubs, "resume", *(f"m{i}" for i in range(6)))
        first = await _revisions(stubs, token, 6, namespace="resume")
        for i, revision in enumerate(first[:-1]):
            rest = await _revisions(stubs, revision.token, 5 - i, namespace="resume")
            assert [r.rev for r in rest] == [r.rev for r in first[i + 1 :]]


async def test_a_watch_goes_on_behind_a_restart_of_the_server(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data") as server:
        async with connect(server.grpc_address) as stubs:
            token = await _token(stubs)
            await _make(stubs, "restart", "a", "b")
            [first, _] = await _revisions(stubs, token, 2, namespace="restart")
        server.kill()
        server.restart()
        async with connect(server.grpc_address) as stubs:
            await _make(stubs, "restart", "c")
            rest = await _revisions(stubs, first.token, 2, namespace="restart")
            assert [c.object for r in rest for c in r.changes] == ["restart/b", "restart/c"]


async def test_the_token_of_another_server_is_answered_with_resync(feed_server: ServerProcess, tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "other") as other:
        async with connect(other.grpc_address) as stubs:
            foreign = await _token(stubs)
    async with connect(feed_server.grpc_address) as stubs:
        items = [item async for item in _watch(stubs, foreign)]
    [last] = items[-1:]
    assert isinstance(last, Resync)
    assert last.reason is ResyncReason.DIVERGED


async def test_a_token_that_is_none_is_invalid(feed_server: ServerProcess) -> None:
    async with connect(feed_server.grpc_address) as stubs:
        with pytest.raises(GRPCError) as caught:
            async for _ in _watch(stubs, "never"):
                raise AssertionError("an item")
        assert caught.value.status is Status.INVALID_ARGUMENT


async def test_a_list_and_the_watch_from_its_token_miss_nothing(feed_server: ServerProcess) -> None:
    async with connect(feed_server.grpc_address) as stubs:
        await _make(stubs, "listed", *(f"m{i}" for i in range(5)))
        wanted = pb.Filter(namespace="listed", kinds=["model"])
        first = await stubs.watch.list(pb.ListRequest(filter=wanted, page_size=2))
        await _make(stubs, "listed", "m9")
        seen = list(first.items)
        token = first.next_page_token
        while token:
            page = await stubs.watch.list(pb.ListRequest(filter=wanted, page_size=2, page_token=token))
            seen += page.items
            token = page.next_page_token
        names = {item.object for item in seen}
        names |= {c.object for r in await _revisions(stubs, first.token, 1, namespace="listed") for c in r.changes}
        assert names == {*(f"listed/m{i}" for i in range(5)), "listed/m9"}


# --- server-sent events ------------------------------------------------------------------------------------------


@asynccontextmanager
async def _events(server: ServerProcess, **options: object) -> AsyncIterator[AsyncIterator[tuple[str, str, object]]]:
    async with (
        aiohttp.ClientSession() as http,
        http.get(server.url + "/api/v1/changes", **options) as response,  # type: ignore[arg-type]  # as the test says
    ):
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/event-stream")

        async def parsed() -> AsyncIterator[tuple[str, str, object]]:
            fields: dict[str, str] = {}
            async for raw in response.content:
                line = raw.decode().rstrip("\n")
                if line:
                    key, _, value = line.partition(":")
                    fields[key] = value.removeprefix(" ")
                else:
                    yield fields["event"], fields.get("id", ""), json.loads(fields["data"])
                    fields = {}

        yield parsed()


async def test_server_sent_events_tell_the_same_and_resume(feed_server: ServerProcess) -> None:
    async with connect(feed_server.grpc_address) as stubs:
        token = await _token(stubs)
        await _make(stubs, "sse", "a", "b")
        told = await _revisions(stubs, token, 2, namespace="sse")
    with anyio.fail_after(60):
        async with _events(feed_server, params={"token": token, "namespace": "sse"}) as events:
            kind, _, _ = await anext(events)
            assert kind == "bookmark"
            seen = [await anext(events) for _ in range(2)]
        assert [kind for kind, _, _ in seen] == ["revision", "revision"]
        assert [data["rev"] for _, _, data in seen if isinstance(data, dict)] == [r.rev for r in told]
        # As a browser does when it connects again.
        async with _events(feed_server, params={"namespace": "sse"}, headers={"Last-Event-ID": seen[0][1]}) as events:
            again = [event async for event in _only(events, "revision", 1)]
        assert again == [seen[1]]


async def _only(
    events: AsyncIterator[tuple[str, str, object]], kind: str, count: int
) -> AsyncIterator[tuple[str, str, object]]:
    while count:
        event = await anext(events)
        if event[0] == kind:
            count -= 1
            yield event


async def test_server_sent_events_filter_by_kind_and_object(feed_server: ServerProcess) -> None:
    async with connect(feed_server.grpc_address) as stubs:
        token = await _token(stubs)
        await publish(stubs, "ssef", "m", {"a": b"1"}, aliases=("prod",))
        await publish(stubs, "ssef", "n", {"a": b"1"}, aliases=("prod",))
    params = [("token", token), ("kind", "alias"), ("object", "ssef/n")]
    with anyio.fail_after(60):
        async with _events(feed_server, params=params) as events:
            [(_, _, data)] = [event async for event in _only(events, "revision", 1)]
    assert isinstance(data, dict)
    assert {change["object"] for change in data["changes"]} == {"ssef/n@prod", "ssef/n@latest"}


async def test_server_sent_events_refuse_a_bad_token_and_resync_a_foreign_one(
    feed_server: ServerProcess, tmp_path: Path
) -> None:
    async with aiohttp.ClientSession() as http:
        async with http.get(feed_server.url + "/api/v1/changes", params={"token": "never"}) as response:
            assert response.status == 400
            assert (await response.json())["code"] == "invalid"
    with ServerProcess(tmp_path / "other") as other:
        async with connect(other.grpc_address) as stubs:
            foreign = await _token(stubs)
    with anyio.fail_after(60):
        async with _events(feed_server, params={"token": foreign}) as events:
            told = [event async for event in events]
    assert told[-1][0] == "resync"
    assert told[-1][1] == ""


async def test_server_sent_events_end_with_the_server(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data") as server:
        with anyio.fail_after(60):
            async with _events(server) as events:
                assert (await anext(events))[0] == "bookmark"
                server.send_signal(signal.SIGTERM)
                rest = [kind async for kind, _, _ in events]
        assert rest == ["bookmark"]
        assert server.wait() == 0
