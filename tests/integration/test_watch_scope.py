"""Watches whose readers may see less, more, or nothing at all from some moment on; over SQLite."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest

from modelbox.access import ANYBODY, Caller, Grant, Role, Scope
from modelbox.errors import LimitError, NotAuthenticated
from modelbox.feed import Bookmark, FeedItem, Filter, ResumeToken, Resync, ResyncReason, Revision
from modelbox.objects import NewModel
from modelbox.runtime.services.feed import FeedService
from tests.faults.registry import fault

from .server_core import Core, open_core

ALPHA = Caller(name="ada", grants=(Grant(namespace="alpha", role=Role.READER),))
BOTH = Caller(name="ada", grants=(*ALPHA.grants, Grant(namespace="beta", role=Role.READER)))


class Access:
    """What is known of one reader; the tests change it."""

    def __init__(self, caller: Caller) -> None:
        self.caller: Caller | None = caller
        self.asked = anyio.Event()

    def renew(self) -> Caller:
        self.asked.set()
        if self.caller is None:
            raise NotAuthenticated("the token was revoked")
        return self.caller


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[Core]:
    async with open_core(tmp_path / "data") as opened:
        yield opened


def feed_of(core: Core, *, bookmark_interval_s: float = 3600.0, max_watches: int = 2) -> FeedService:
    return FeedService(
        core.feed_store,
        bookmark_interval_s=bookmark_interval_s,
        max_watches=max_watches,
        compact_interval_s=None,
    )


async def until_end(items: AsyncIterator[FeedItem]) -> list[FeedItem]:
    with anyio.fail_after(60):
        return [item async for item in items]


@fault(68)
@pytest.mark.parametrize("after", [None, ANYBODY, BOTH, Caller(name="ada")], ids=["gone", "all", "more", "nothing"])
async def test_a_change_of_access_ends_a_watch_at_once(core: Core, after: Caller | None) -> None:
    access = Access(ALPHA)
    async with feed_of(core) as feed, feed.watch(Filter(), scope=ALPHA.scope, renew=access.renew) as items:
        assert isinstance(await anext(items), Bookmark)
        # Of somebody else: nothing ends.
        feed.access_changed()
        await core.registry.create_model(NewModel(namespace="alpha", name="one"), actor="")
        assert isinstance(await anext(items), Revision)
        access.caller = after
        feed.access_changed()
        left = await until_end(items)
    assert [type(item) for item in left] == [Resync]
    assert isinstance(left[0], Resync)
    assert left[0].reason is ResyncReason.AUTHZ


@fault(68)
async def test_a_token_that_expires_ends_its_watch_although_nothing_happens(core: Core) -> None:
    access = Access(ALPHA)
    async with feed_of(core, bookmark_interval_s=0.02) as feed:
        async with feed.watch(Filter(), scope=ALPHA.scope, renew=access.renew) as items:
            assert isinstance(await anext(items), Bookmark)
            access.caller = None
            left = await until_end(items)
    assert isinstance(left[-1], Resync)
    assert left[-1].reason is ResyncReason.AUTHZ
    assert all(isinstance(item, Bookmark) for item in left[:-1])


async def test_what_ended_between_the_call_and_its_stream_is_not_told(core: Core) -> None:
    access = Access(ALPHA)
    access.caller = None
    async with feed_of(core) as feed, feed.watch(Filter(), scope=ALPHA.scope, renew=access.renew) as items:
        assert [type(item) for item in await until_end(items)] == [Resync]


async def test_what_is_hidden_moves_the_bookmark_only(core: Core) -> None:
    for namespace in ("alpha", "beta", "beta", "alpha", "beta"):
        name = f"m{await head(core)}"
        await core.registry.create_model(NewModel(namespace=namespace, name=name), actor="")
    async with feed_of(core) as feed:
        begin = ResumeToken.parse((await feed.list(Filter(), scope=ALPHA.scope)).token)
        token = str(ResumeToken(server_id=begin.server_id, epoch=begin.epoch, rev=0, chain="0" * 16, scope=begin.scope))
        async with feed.watch(Filter(), token, scope=ALPHA.scope) as items:
            found = [await anext(items) for _ in range(4)]
            await core.registry.create_model(NewModel(namespace="beta", name="later"), actor="")
            await core.registry.create_model(NewModel(namespace="alpha", name="later"), actor="")
            found.append(await anext(items))
    revisions = [item for item in found if isinstance(item, Revision)]
    assert [(one.prev_rev, one.rev) for one in revisions] == [(0, 1), (1, 4), (4, 7)]
    assert [item.rev for item in found if isinstance(item, Bookmark)] == [0, 5]
    assert {change.namespace for one in revisions for change in one.changes} == {"alpha"}


async def head(core: Core) -> int:
    return (await core.feed_store.head()).rev


async def test_a_token_has_so_many_watches_and_others_are_not_in_its_way(core: Core) -> None:
    async with feed_of(core, max_watches=2) as feed, AsyncExitStack() as stack:
        async with feed.watch(Filter(), holder="one"):
            pass
        first = feed.watch(Filter(), holder="one")
        await first.__aenter__()
        await stack.enter_async_context(feed.watch(Filter(), holder="one"))
        with pytest.raises(LimitError, match="max_watches"):
            await stack.enter_async_context(feed.watch(Filter(), holder="one"))
        await stack.enter_async_context(feed.watch(Filter(), holder="two"))
        for _ in range(4):
            await stack.enter_async_context(feed.watch(Filter()))
        await first.__aexit__(None, None, None)
        await stack.enter_async_context(feed.watch(Filter(), holder="one"))
        assert feed.watchers == 7
    assert feed.watchers == 0


async def test_a_list_does_not_go_on_with_another_scope(core: Core) -> None:
    for name in ("a", "b", "c"):
        await core.registry.create_model(NewModel(namespace="alpha", name=name), actor="")
    async with feed_of(core) as feed:
        page = await feed.list(Filter(kinds=("model",)), page_size=1, scope=ALPHA.scope)
        rest = await feed.list(Filter(kinds=("model",)), page_token=page.next_token, scope=ALPHA.scope)
        assert [change.object for change in rest.items] == ["alpha/b", "alpha/c"]
        for scope in (BOTH.scope, Scope(everything=True), ANYBODY.scope):
            with pytest.raises(ValueError, match="page token"):
                await feed.list(Filter(kinds=("model",)), page_token=page.next_token, scope=scope)
