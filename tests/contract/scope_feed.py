"""What every database must leave out of the change feed for whoever may not see everything: just that.

What somebody is told is what everybody together is told, without the rest, and nobody can tell that there is a rest.
"""

from __future__ import annotations

from itertools import pairwise

import anyio

from modelbox.access import ALL, Scope
from modelbox.feed import Bookmark, Change, Filter, ResumeToken, Resync, ResyncReason, Revision
from modelbox.runtime.permissions.places import Places
from modelbox.runtime.services.feed import FeedService
from modelbox.runtime.store.feed import SqlFeedStore
from modelbox.runtime.store.places import SqlPlaceStore
from tests.scope_world import CASES, ScopeWorld

__all__ = ("ScopeFeedContract",)

_GENESIS = bytes(8).hex()


class ScopeFeedContract:
    """Lists and watches of the feed under a scope."""

    async def test_the_feed_lists_what_may_be_seen(self, world: ScopeWorld) -> None:
        async with feed_of(world) as feed:
            filters = (
                Filter(),
                Filter(namespace="beta"),
                Filter(kinds=("attributes", "readme", "artifact")),
                Filter(objects=("beta/m", world.runs["alpha"][0], "gamma")),
            )
            for wanted in filters:
                everything = await listed(feed, wanted, ALL, 1000)
                assert everything
                for number, allowed in enumerate(CASES):
                    expected = [change for change in everything if world.shows(allowed, change)]
                    assert await listed(feed, wanted, allowed.scope, (3, 7, 1000)[number % 3]) == expected

    async def test_the_feed_tells_what_may_be_seen(self, world: ScopeWorld) -> None:
        """Objects that are gone for good are told of to whoever sees their whole namespace."""
        async with feed_of(world) as feed:
            filters = (Filter(), Filter(namespace="beta"), Filter(objects=("alpha/m",)), Filter(kinds=("lineage",)))
            for wanted in filters:
                everything, _ = await told(feed, wanted, ALL)
                assert everything
                kinds = {change.kind for revision in everything for change in revision}
                assert wanted != Filter() or len(kinds) == 19
                for allowed in CASES:
                    expected = [
                        picked
                        for revision in everything
                        if (picked := tuple(change for change in revision if world.shows(allowed, change)))
                    ]
                    found, revisions = await told(feed, wanted, allowed.scope)
                    assert found == expected, allowed.name
                    assert all(after.prev_rev == before.rev for before, after in pairwise(revisions))

    async def test_a_watch_does_not_go_on_from_another_scope(self, world: ScopeWorld) -> None:
        async with feed_of(world) as feed:
            scopes = [ALL, *(allowed.scope for allowed in CASES)]
            tokens = [(await feed.list(Filter(), scope=scope)).token for scope in scopes]
            assert len(set(tokens)) == len(scopes)
            for token, made_for in zip(tokens, scopes, strict=True):
                for scope in scopes:
                    async with feed.watch(Filter(), token, scope=scope) as items:
                        first = await anext(items)
                    if scope == made_for:
                        assert isinstance(first, Bookmark)
                    else:
                        assert isinstance(first, Resync)
                        assert first.reason is ResyncReason.AUTHZ


def feed_of(world: ScopeWorld) -> FeedService:
    places = Places(SqlPlaceStore(world.database))
    return FeedService(SqlFeedStore(world.database), places=places.find, compact_interval_s=None)


async def listed(feed: FeedService, wanted: Filter, scope: Scope, page_size: int) -> list[Change]:
    items: list[Change] = []
    page_token = ""
    while True:
        page = await feed.list(wanted, page_size=page_size, page_token=page_token, scope=scope)
        items += page.items
        page_token = page.next_token
        if not page_token:
            return items
        assert len(page.items) == page_size


async def told(feed: FeedService, wanted: Filter, scope: Scope) -> tuple[list[tuple[Change, ...]], list[Revision]]:
    """The changes that are told from the beginning on, revision by revision."""
    now = ResumeToken.parse((await feed.list(wanted, scope=scope)).token)
    begin = ResumeToken(server_id=now.server_id, epoch=now.epoch, rev=0, chain=_GENESIS, scope=now.scope)
    revisions: list[Revision] = []
    with anyio.fail_after(60):
        async with feed.watch(wanted, str(begin), scope=scope) as items:
            async for item in items:
                if isinstance(item, Revision):
                    revisions.append(item)
                elif isinstance(item, Bookmark) and item.rev >= now.rev:
                    break
                assert not isinstance(item, Resync), item
    assert not revisions or revisions[0].prev_rev == 0
    return [revision.changes for revision in revisions], revisions
