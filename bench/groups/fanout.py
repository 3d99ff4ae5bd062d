"""What the feed's fan-out costs a replica: processor time for changes that nobody waits for, and that many wait for.

The service alone, in this process, over a history in memory: what is counted is processor time, which neighbours do not
change. Connections, protocols and disks come on top; `watch` and `feed` measure them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

import anyio

from bench.figure import Figure, Unit
from bench.measure import Series
from bench.run import Run
from modelbox.access import ALL, Scope
from modelbox.feed import Change, Filter, Revision
from modelbox.runtime.ports import FeedBatch, FeedHead, FeedListing, Key, StoredRevision
from modelbox.runtime.services.feed import FeedService

MODELS = 100
"""Of which each watcher waits for one."""
_CHAIN = bytes(32)
_AT = datetime(2026, 1, 1, tzinfo=UTC)


class _History:
    """`modelbox.runtime.ports.FeedStore` in memory."""

    def __init__(self) -> None:
        self._revisions: list[StoredRevision] = []
        self._callbacks: list[Callable[[], None]] = []

    def add(self, *paths: tuple[str, str]) -> None:
        """One revision for each path and kind; then tells of them."""
        for path, kind in paths:
            rev = len(self._revisions) + 1
            change = Change(
                rev=rev,
                idx=0,
                namespace="acme",
                object=path,
                kind=kind,
                action="updated",
                actor="ada",
                at=_AT,
                state={"name": "prod", "version": rev},
            )
            self._revisions.append(StoredRevision(rev=rev, chain=_CHAIN, changes=(change,), size_bytes=300))
        for callback in self._callbacks:
            callback()

    async def head(self) -> FeedHead:
        return FeedHead(server_id="0" * 32, epoch="0" * 32, rev=len(self._revisions), chain=_CHAIN, compact_rev=0)

    async def check(self, rev: int) -> tuple[FeedHead, bytes | None]:
        return await self.head(), _CHAIN

    async def read_after(self, rev: int, *, limit: int, max_bytes: int) -> FeedBatch:
        return FeedBatch(head=await self.head(), revisions=tuple(self._revisions[rev : rev + limit]))

    async def list_states(self, wanted: Filter, *, limit: int, after: Key | None, scope: Scope = ALL) -> FeedListing:
        return FeedListing(head=await self.head(), items=(), next_key=None)

    async def compact(self, *, keep_revs: int, before: datetime, batch: int) -> int:
        return 0

    async def forget(self, *, before: datetime, batch: int) -> int:
        return 0

    def on_commit(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)


def measure(run: Run) -> list[Figure]:
    """The figures."""
    figures: list[Figure] = []
    for watchers in (1000, run.choose(10_000, 2000)):
        idle, delivered, memory = anyio.run(_measure, watchers, run.choose(10, 2))
        figures += [
            Figure(
                name=f"fanout.idle.{watchers}",
                what=f"processor time of a revision that none of {watchers} watchers waits for",
                unit=Unit.SECONDS,
                measured=Series.of(idle),
            ),
            Figure(
                name=f"fanout.delivery.{watchers}",
                what=f"processor time of a revision for each of the {watchers // MODELS} watchers that wait for it",
                unit=Unit.SECONDS,
                measured=Series.of(delivered),
            ),
            Figure(
                name=f"fanout.memory.{watchers}",
                what="memory of a watcher",
                unit=Unit.BYTES,
                measured=Series.of([memory]),
            ),
        ]
    return figures


async def _measure(watchers: int, rounds: int) -> tuple[list[float], list[float], float]:
    history = _History()
    async with FeedService(history, bookmark_interval_s=3600) as feed, anyio.create_task_group() as tasks:
        came = 0
        ready = 0

        async def watch(model: int) -> None:
            nonlocal came, ready
            async with feed.watch(Filter(objects=(f"acme/m{model}",))) as stream:
                ready += 1
                async for item in stream:
                    came += isinstance(item, Revision)

        before = _resident()
        for number in range(watchers):
            tasks.start_soon(watch, number % MODELS)
        while ready < watchers:
            await anyio.sleep(0.01)
        memory = (_resident() - before) / watchers

        async def cost(paths: list[tuple[str, str]], more: int) -> float:
            # Those that had something go back to sleep.
            await anyio.sleep(0.3)
            wanted, rev = came + more, feed.rev + len(paths)
            began = time.process_time()
            history.add(*paths)
            while came < wanted or feed.rev < rev:
                await anyio.sleep(0.001)
            return time.process_time() - began

        runs = [(f"run_{number:024x}", "run") for number in range(1000)]
        moves = [(f"acme/m{model}@prod", "alias") for model in range(MODELS)]
        idle, delivered = [], []
        for _ in range(rounds):
            idle.append(await cost(runs, 0) / len(runs))
            delivered.append(await cost(moves, watchers) / watchers)
        tasks.cancel_scope.cancel()
    return idle, delivered, memory


def _resident() -> float:
    with open("/proc/self/statm") as file:
        return float(file.read().split()[1]) * 4096
