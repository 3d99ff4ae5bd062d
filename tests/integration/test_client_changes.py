"""The change feed through the client: order, resuming, listing, cancellation, and a server that dies."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import anyio
import pytest

from modelbox.changes import ChangeFeed
from modelbox.client import Client
from modelbox.errors import InvalidError, Unavailable
from modelbox.feed import Change, Resync
from tests.server import ServerProcess


@pytest.fixture
def ns() -> str:
    return f"ns-{secrets.token_hex(4)}"


@pytest.fixture
async def client(shared_server: ServerProcess) -> AsyncIterator[Client]:
    if not shared_server.running:
        shared_server.restart()
    async with Client(shared_server.url) as opened:
        yield opened


async def take(feed: ChangeFeed, count: int) -> list[Change]:
    changes: list[Change] = []
    with anyio.fail_after(60):
        while len(changes) < count:
            change = await anext(feed)
            assert isinstance(change, Change)
            changes.append(change)
    return changes


async def test_changes_arrive_in_order_and_go_on_at_a_token(client: Client, ns: str) -> None:
    start = (await client.create_model(f"{ns}/first")).item
    async with client.changes(namespace=ns, list_first=True) as feed:
        listed = await take(feed, 2)
        assert {change.object for change in listed} == {ns, f"{ns}/first"}
        assert {change.mod_rev for change in listed} == {start.mod_rev}
        for number in range(5):
            await client.create_model(f"{ns}/m{number}")
        seen = await take(feed, 3)
        token = feed.token
    async with client.changes(token, namespace=ns) as feed:
        seen += await take(feed, 2)
    assert [change.object for change in seen] == [f"{ns}/m{number}" for number in range(5)]
    assert [change.rev for change in seen] == sorted({change.rev for change in seen})


async def test_filters_by_object_and_kind(client: Client, ns: str) -> None:
    await client.create_model(f"{ns}/a")
    async with client.changes(objects=[f"{ns}/a"], kinds=["model"], list_first=True) as feed:
        await take(feed, 1)
        await client.create_model(f"{ns}/b")
        await client.update_model(f"{ns}/a", owner="ada")
        (change,) = await take(feed, 1)
    assert (change.object, change.action) == (f"{ns}/a", "updated")
    assert change.state["owner"] == "ada"


async def test_a_cancelled_wait_loses_nothing(client: Client, ns: str) -> None:
    await client.create_model(f"{ns}/first")
    async with client.changes(namespace=ns, list_first=True) as feed:
        await take(feed, 2)
        for number in range(10):
            with anyio.move_on_after(0.02):
                await anext(feed)
                pytest.fail("nothing has happened")
            await client.create_model(f"{ns}/m{number}")
            (change,) = await take(feed, 1)
            assert change.object == f"{ns}/m{number}"


async def test_a_feed_survives_a_server_that_is_killed(shared_server: ServerProcess, client: Client, ns: str) -> None:
    await client.create_model(f"{ns}/first")
    async with client.changes(namespace=ns, list_first=True) as feed:
        await take(feed, 2)
        seen = []
        for round_ in range(2):
            await client.create_model(f"{ns}/before{round_}")
            await anyio.to_thread.run_sync(shared_server.kill)
            await anyio.to_thread.run_sync(shared_server.restart)
            await client.create_model(f"{ns}/after{round_}")
            seen += await take(feed, 2)
    expected = [f"{ns}/{when}{round_}" for round_ in range(2) for when in ("before", "after")]
    assert [change.object for change in seen] == expected


async def test_lost_history_is_said_and_followed_by_the_state(server: ServerProcess) -> None:
    async with Client(server.url) as client:
        await client.create_model("ns/a")
        async with client.changes(list_first=True) as feed:
            await take(feed, 2)
            token = feed.token
        # The same installation with its history gone: what a restored backup looks like to a reader.
        await anyio.to_thread.run_sync(server.kill)
        for file in server.data_dir.glob("*.db*"):
            await anyio.to_thread.run_sync(file.unlink)
        await anyio.to_thread.run_sync(server.restart)
        await client.create_model("ns/b")
        async with client.changes(token) as feed:
            with anyio.fail_after(60):
                first = await anext(feed)
            assert isinstance(first, Resync)
            assert {change.object for change in await take(feed, 2)} == {"ns", "ns/b"}
            await client.create_model("ns/c")
            assert [change.object for change in await take(feed, 1)] == ["ns/c"]


async def test_the_first_contact_must_succeed() -> None:
    async with Client("http://127.0.0.1:1") as client, client.changes() as feed:
        with pytest.raises(Unavailable):
            await anext(feed)


async def test_nonsense_as_a_token_is_refused(client: Client) -> None:
    async with client.changes("nonsense") as feed:
        with pytest.raises(InvalidError):
            await anext(feed)


async def test_a_closed_feed_ends(client: Client) -> None:
    feed = client.changes()
    await feed.aclose()
    await feed.aclose()
    assert [change async for change in feed] == []
