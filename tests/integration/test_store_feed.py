"""The change feed through its service, over SQLite: the contract of `modelbox.feed`, for any history and any filter."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, delete, select, update

from modelbox.errors import ConflictError, InUseError, InvalidError, NotFoundError, ServerBusy
from modelbox.feed import Bookmark, Change, FeedItem, Filter, Kind, ResumeToken, Resync, ResyncReason, Revision
from modelbox.objects import ModelPatch, NewModel
from modelbox.refs import ModelRef
from modelbox.runtime.ports import StoredRevision
from modelbox.runtime.services.feed import FeedService
from modelbox.runtime.store.schema import feed_changes, feed_head
from modelbox.runtime.store.writing import Writing
from tests.faults.registry import fault

from .server_core import Core, open_core, open_feed


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[Core]:
    async with open_core(tmp_path / "data") as opened:
        yield opened


async def committed(core: Core) -> list[StoredRevision]:
    """What is stored, behind the service's back."""
    return list((await core.feed_store.read_after(0, limit=100_000, max_bytes=1 << 30)).revisions)


async def read_until(stream: AsyncIterator[FeedItem], rev: int) -> list[FeedItem]:
    """Items up to the first bookmark at or behind ``rev``, or a resync."""
    items: list[FeedItem] = []
    with anyio.fail_after(60):
        async for item in stream:
            items.append(item)
            if isinstance(item, Resync) or (isinstance(item, Bookmark) and item.rev >= rev):
                return items
    raise AssertionError("the stream ended")


def changes_of(items: Sequence[FeedItem]) -> list[Change]:
    return [change for item in items if isinstance(item, Revision) for change in item.changes]


def revision_of(item: FeedItem) -> Revision:
    assert isinstance(item, Revision)
    return item


# -- properties ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One thing that happens to the registry; some of them fail, which must leave no trace."""

    verb: str
    model: str
    number: int


# Something to act on, so that most of what follows succeeds: versions 1 and 2 of one model in two namespaces.
BASE = [Step("publish", "m", number) for number in (1, 2, 3, 4)]
STEPS = st.lists(
    st.builds(
        Step,
        verb=st.sampled_from(["publish", "promote", "rollback", "edit", "delete version", "delete model", "download"]),
        model=st.sampled_from(["m", "m-2"]),
        number=st.integers(1, 3),
    ),
    min_size=1,
    max_size=14,
).map(lambda steps: [*BASE, *steps])
FILTERS = st.builds(
    Filter,
    namespace=st.sampled_from(["", "a", "b"]),
    objects=st.lists(st.sampled_from(["a/m", "a/m-2", "b/m", "a/m@prod", "a", "b/m@1"]), max_size=2).map(tuple),
    kinds=st.lists(st.sampled_from([kind.value for kind in Kind]), max_size=3).map(tuple),
)


async def perform(core: Core, step: Step) -> None:
    namespace, registry = "ab"[step.number % 2], core.registry
    with contextlib.suppress(NotFoundError, ConflictError, InUseError):
        match step.verb:
            case "publish":
                await core.publish(b"content %d" % step.number, namespace=namespace, model=step.model)
            case "promote":
                await registry.move_alias(namespace, step.model, "prod", step.number, actor="x")
            case "rollback":
                await registry.rollback_alias(namespace, step.model, "prod", actor="x")
            case "edit":
                patch = ModelPatch(labels={"step": str(step.number)})
                await registry.update_model(namespace, step.model, patch, actor="x")
            case "delete version":
                await registry.delete_version(namespace, step.model, step.number, actor="x")
            case "delete model":
                await registry.delete_model(namespace, step.model, actor="x")
            case "download":
                ref = ModelRef.parse(f"{namespace}/{step.model}")
                await core.artifacts.begin_download(ref, actor="x")


def run(test: Callable[[Core], Coroutine[None, None, None]]) -> None:
    """Runs an asynchronous property in a directory of its own."""
    directory = Path(tempfile.mkdtemp(prefix="modelbox-feed-"))

    async def whole() -> None:
        async with open_core(directory / "data") as core:
            await test(core)

    try:
        asyncio.run(whole())
    finally:
        shutil.rmtree(directory)


relaxed = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@relaxed
@given(steps=STEPS, wanted=FILTERS, ring=st.sampled_from([1, 3, 10_000]))
def test_a_watcher_sees_the_committed_sequence_filtered(steps: list[Step], wanted: Filter, ring: int) -> None:
    async def check(core: Core) -> None:
        async with open_feed(core, max_changes=ring) as feed, feed.watch(wanted) as live:
            assert isinstance(await anext(live), Bookmark)
            for step in steps:
                await perform(core, step)
            stored = await committed(core)
            head = await core.feed_store.head()
            assert [revision.rev for revision in stored] == list(range(1, head.rev + 1))
            expected = [
                (revision.rev, kept)
                for revision in stored
                if (kept := tuple(change for change in revision.changes if wanted.matches(change)))
            ]
            # Live, from the ring or the database as it comes.
            seen: list[Revision] = []
            with anyio.fail_after(60):
                while len(seen) < len(expected):
                    item = await anext(live)
                    if isinstance(item, Revision):
                        seen.append(item)
            assert [(item.rev, item.changes) for item in seen] == expected
            assert [item.prev_rev for item in seen] == [0, *(rev for rev, _ in expected)][: len(seen)]
            # Again from any place of the history; a token is honoured exactly.
            tokens = [item.token for item in seen]
            for start, token in enumerate(tokens):
                async with feed.watch(wanted, token) as again:
                    items = await read_until(again, head.rev)
                revisions = [item for item in items if isinstance(item, Revision)]
                assert [(item.rev, item.changes) for item in revisions] == expected[start + 1 :]
                for before, item in zip([expected[start][0], *(r.rev for r in revisions)], revisions, strict=False):
                    assert item.prev_rev == before
                last = items[-1]
                assert isinstance(last, Bookmark)
                assert (last.rev, last.head_rev) == (head.rev, head.rev)
                # And the bookmark's token loses nothing: what follows it is new.
                async with feed.watch(wanted, last.token) as after:
                    assert isinstance(await anext(after), Bookmark)

    run(check)


@relaxed
@given(before=STEPS, after=STEPS, wanted=FILTERS, page_size=st.sampled_from([1, 2, 50]))
def test_list_then_watch_converges(before: list[Step], after: list[Step], wanted: Filter, page_size: int) -> None:
    """Paging while the world changes, then watching from the list's token, ends in the state that there is."""

    async def check(core: Core) -> None:
        held: dict[str, tuple[int, object]] = {}
        gone: dict[str, int] = {}
        async with open_feed(core) as feed:
            for step in before:
                await perform(core, step)
            remaining, token, page_token = list(after), None, ""
            while True:
                snapshot = await feed.list(wanted, page_size=page_size, page_token=page_token)
                token = token or snapshot.token
                assert snapshot.token == token
                for item in snapshot.items:
                    held[item.object] = (item.mod_rev, item.state)
                if remaining:
                    await perform(core, remaining.pop(0))
                if not (page_token := snapshot.next_token):
                    break
            for step in remaining:
                await perform(core, step)
            head = await core.feed_store.head()
            async with feed.watch(wanted, token) as stream:
                for change in changes_of(await read_until(stream, head.rev)):
                    if change.kind == Kind.DOWNLOAD:
                        continue
                    known = max(held.get(change.object, (0, None))[0], gone.get(change.object, 0))
                    if change.mod_rev < known:
                        continue
                    if change.action == "deleted":
                        held.pop(change.object, None)
                        gone[change.object] = change.mod_rev
                    else:
                        held[change.object] = (change.mod_rev, change.state)
            final = await feed.list(wanted, page_size=1000)
            assert held == {item.object: (item.mod_rev, item.state) for item in final.items}

    run(check)


# -- tokens --------------------------------------------------------------------------------------------------------


async def fill(core: Core, count: int, *, name: str = "m") -> list[str]:
    """Makes ``count`` revisions an hour apart, and returns the token after each."""
    tokens = []
    async with open_feed(core) as feed:
        for number in range(count):
            core.clock.advance(hours=1)
            await core.registry.create_model(NewModel(namespace="ns", name=f"{name}{number}"), actor="ann")
            tokens.append((await feed.list(Filter(), page_size=1)).token)
    return tokens


async def first_of(feed: FeedService, token: str) -> FeedItem:
    async with feed.watch(Filter(), token) as stream:
        return await anext(stream)


@fault(26)
async def test_tokens_around_the_compaction(core: Core) -> None:
    tokens = await fill(core, 9)
    core.clock.advance(days=7)
    # The fifth revision is a week old now: five go, and a token "after the fifth" has lost nothing.
    core.clock.now -= timedelta(hours=3, minutes=30)
    async with open_feed(core) as feed:
        assert await feed.compact() == 5
        assert await feed.compact() == 0
        for rev in range(1, 5):
            item = await first_of(feed, tokens[rev - 1])
            assert isinstance(item, Resync)
            assert item.reason is ResyncReason.COMPACTED
        for rev in range(5, 10):
            async with feed.watch(Filter(), tokens[rev - 1]) as stream:
                seen = [item.rev for item in await read_until(stream, 9) if isinstance(item, Revision)]
            assert seen == list(range(rev + 1, 10))


async def test_compaction_keeps_enough_revisions(core: Core) -> None:
    await fill(core, 9)
    core.clock.advance(days=30)
    async with open_feed(core, keep_revs=6) as feed:
        assert await feed.compact() == 3


@fault(26)
async def test_a_watcher_that_compaction_overtakes_is_told(core: Core) -> None:
    await fill(core, 3)
    start = (await core.feed_store.head()).rev
    async with open_feed(core, max_changes=1) as feed, feed.watch(Filter()) as stream:
        assert isinstance(await anext(stream), Bookmark)
        for number in range(5):
            await core.registry.create_model(NewModel(namespace="ns", name=f"n{number}"), actor="")
        async with feed.watch(Filter(), (await feed.list(Filter(), page_size=1)).token) as other:
            await read_until(other, start + 5)
        core.clock.advance(days=30)
        assert await feed.compact() == start + 5
        item = await anext(stream)
        assert isinstance(item, Resync)
        assert item.reason is ResyncReason.COMPACTED
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


@fault(27)
@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"rev": 4}, ResyncReason.FUTURE),
        ({"rev": 2**63 - 1}, ResyncReason.FUTURE),
        ({"server_id": "another"}, ResyncReason.DIVERGED),
        ({"epoch": "another"}, ResyncReason.DIVERGED),
        ({"chain": "00" * 8}, ResyncReason.DIVERGED),
        ({"rev": 2}, ResyncReason.DIVERGED),
    ],
)
async def test_tokens_that_cannot_be_honoured(core: Core, changed: dict[str, object], reason: ResyncReason) -> None:
    token = ResumeToken.parse((await fill(core, 3))[-1])
    fields: dict[str, object] = {name: getattr(token, name) for name in ("server_id", "epoch", "rev", "chain")}
    other = ResumeToken(**(fields | changed))  # type: ignore[arg-type]
    async with open_feed(core) as feed:
        item = await first_of(feed, str(other))
        assert isinstance(item, Resync)
        assert item.reason is reason
        assert isinstance(await first_of(feed, str(token)), Bookmark)


@fault(25)
async def test_a_restored_backup_diverges(tmp_path: Path) -> None:
    async with open_core(tmp_path / "data") as core:
        await fill(core, 2)
    shutil.copytree(tmp_path / "data", tmp_path / "backup")
    async with open_core(tmp_path / "data") as core:
        token = (await fill(core, 2, name="lost"))[-1]
    async with open_core(tmp_path / "backup") as core:
        core.clock.advance(minutes=7)
        for number in range(4):
            await core.registry.create_model(NewModel(namespace="ns", name=f"other{number}"), actor="")
        async with open_feed(core) as feed:
            item = await first_of(feed, token)
            assert isinstance(item, Resync)
            assert item.reason is ResyncReason.DIVERGED


@pytest.mark.parametrize("after", [0, 1, 3])
async def test_a_history_that_is_replaced_below_a_server_diverges(core: Core, after: int) -> None:
    """As by a failover to a standby that had not got the last revisions yet."""
    await fill(core, 4)

    def lose(conn: Connection) -> None:
        conn.execute(delete(feed_changes).where(feed_changes.c.rev > 2))
        chain = select(feed_changes.c.chain).where(feed_changes.c.rev == 2).scalar_subquery()
        conn.execute(update(feed_head).values(rev=2, chain=chain))

    def replace(conn: Connection) -> None:
        lose(conn)
        for number in range(after):
            writing = Writing(conn, actor="bob", at=core.clock())
            writing.namespace_id(f"other{number}")
            writing.finish()

    async with open_feed(core) as feed, feed.watch(Filter()) as items:
        assert isinstance(await anext(items), Bookmark)
        await core.database.write(replace)
        with anyio.fail_after(60):
            item = await anext(items)
        assert isinstance(item, Resync)
        assert item.reason is ResyncReason.DIVERGED
        # From there on all is well.
        async with feed.watch(Filter()) as again:
            assert isinstance(await anext(again), Bookmark)
            await fill(core, 1, name="next")
            assert revision_of(await anext(again)).rev == 3 + after


@pytest.mark.parametrize("token", ["x", "e30", "%%%", "W10", "é", "a" * 10_000])
async def test_what_is_no_token_is_refused(core: Core, token: str) -> None:
    async with open_feed(core) as feed:
        with pytest.raises(InvalidError):
            async with feed.watch(Filter(), token):
                pass


@pytest.mark.parametrize(
    "wanted",
    [Filter(namespace="../x"), Filter(kinds=("nix",)), Filter(objects=("a\0",)), Filter(objects=("a",) * 1001)],
)
async def test_bad_filters_are_refused(core: Core, wanted: Filter) -> None:
    async with open_feed(core) as feed:
        with pytest.raises(InvalidError):
            await feed.list(wanted)
        with pytest.raises(InvalidError):
            async with feed.watch(wanted):
                pass


# -- streams -------------------------------------------------------------------------------------------------------


async def test_without_a_token_it_begins_now(core: Core) -> None:
    await fill(core, 3)
    async with open_feed(core) as feed, feed.watch(Filter()) as stream:
        first = await anext(stream)
        assert isinstance(first, Bookmark)
        assert (first.rev, first.head_rev) == (3, 3)
        await core.registry.create_model(NewModel(namespace="ns", name="new"), actor="bob")
        with anyio.fail_after(60):
            revision = revision_of(await anext(stream))
        assert (revision.rev, revision.prev_rev) == (4, 3)
        assert revision.changes[0].actor == "bob"


async def test_idle_streams_carry_bookmarks_that_move(core: Core) -> None:
    wanted = Filter(namespace="elsewhere")
    async with open_feed(core, bookmark_interval_s=0.05) as feed, feed.watch(wanted) as stream:
        first = await anext(stream)
        assert isinstance(first, Bookmark)
        await fill(core, 3)
        items = await read_until(stream, 3)
        last = items[-1]
        assert all(isinstance(item, Bookmark) for item in items)
        assert isinstance(last, Bookmark)
        assert ResumeToken.parse(last.token).rev == 3
        assert last.token != first.token


async def test_draining_sends_what_there_is_then_a_bookmark_then_ends(core: Core) -> None:
    tokens = await fill(core, 3)
    async with open_feed(core) as feed:
        async with feed.watch(Filter(), tokens[0]) as stream:
            feed.drain()
            with anyio.fail_after(60):
                items = [item async for item in stream]
        assert [item.rev for item in items if isinstance(item, Revision)] == [2, 3]
        assert isinstance(items[-1], Bookmark)
        assert items[-1].rev == 3
        with pytest.raises(ServerBusy):
            async with feed.watch(Filter()):
                pass


async def test_a_waiting_watcher_hears_of_the_drain(core: Core) -> None:
    ended: list[FeedItem] = []

    async def wait(feed: FeedService, started: anyio.Event) -> None:
        async with feed.watch(Filter()) as stream:
            async for item in stream:
                ended.append(item)
                started.set()

    async with open_feed(core) as feed, anyio.create_task_group() as tasks:
        started = anyio.Event()
        tasks.start_soon(wait, feed, started)
        await started.wait()
        await anyio.wait_all_tasks_blocked()
        feed.drain()
    assert [type(item) for item in ended] == [Bookmark, Bookmark]


async def test_a_cancelled_watcher_leaves_nothing(core: Core) -> None:
    async with open_feed(core) as feed:
        with anyio.move_on_after(0.05):
            async with feed.watch(Filter()) as stream:
                async for _ in stream:
                    assert feed.watchers == 1
        assert feed.watchers == 0


@fault(29)
@pytest.mark.slow
async def test_a_thousand_watchers_hear_of_a_burst(core: Core) -> None:
    """Cursors into one ring: every watcher gets everything, and memory does not grow with their number."""
    await core.publish(b"one")
    await core.publish(b"two")
    count, moves, heard = 1000, 60, [0] * 1000

    async def watch(feed: FeedService, number: int, ready: anyio.Event) -> None:
        async with feed.watch(Filter()) as stream:
            async for item in stream:
                if isinstance(item, Bookmark) and item.rev < 2 + moves:
                    ready.set()
                elif isinstance(item, Revision):
                    heard[number] += 1
                    if item.rev == 2 + moves:
                        return

    async with open_feed(core) as feed:
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                events = [anyio.Event() for _ in range(count)]
                for number, ready in enumerate(events):
                    tasks.start_soon(watch, feed, number, ready)
                for ready in events:
                    await ready.wait()
                for move in range(moves):
                    await core.registry.move_alias("ns", "m", "prod", 1 + move % 2, actor="")
    assert set(heard) == {moves}
