"""A `ModelSource` with aliases and a change feed, all in memory, and the feed's own faults on a switchboard.

Its history obeys the contract of `modelbox.feed` unless a test tells it to break it: skip a revision, repeat one,
answer a resume with a RESYNC, break off, restore an older state.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

import anyio

from modelbox.errors import NotFoundError, Unavailable
from modelbox.feed import Action, Bookmark, Change, FeedItem, Kind, ResumeToken, Resync, ResyncReason, Revision
from modelbox.objects import Alias, ModelVersion, Resolved, to_json
from modelbox.refs import ModelRef
from tests.model_source import NOW, MemorySource

PATH = "ns/model"


@dataclass
class FeedSource(MemorySource):
    """`MemorySource` whose references move."""

    aliases: dict[str, Alias] = field(default_factory=dict)
    history: list[Change] = field(default_factory=list)
    server_id: str = "server-1"
    epoch: str = "epoch-1"
    resolves: list[str] = field(default_factory=list)
    watches: list[str] = field(default_factory=list)
    resync: ResyncReason | None = None
    skip: set[int] = field(default_factory=set)
    repeat: set[int] = field(default_factory=set)
    _moved: anyio.Event | None = None
    _breaks: int = 0

    @property
    def rev(self) -> int:
        return len(self.history)

    @property
    def token(self) -> str:
        return str(ResumeToken(server_id=self.server_id, epoch=self.epoch, rev=self.rev, chain="00"))

    def move(self, name: str, version: ModelVersion) -> Alias:
        """Points an alias to ``version``: one revision."""
        alias = Alias(
            namespace=version.namespace,
            model=version.model,
            name=name,
            version=version.version,
            digest=version.digest,
            moved_at=NOW,
            mod_rev=self.rev + 1,
        )
        self.aliases[f"{PATH}@{name}"] = alias
        self._append(Kind.ALIAS, f"{PATH}@{name}", Action.MOVED, alias)
        return alias

    def edit(self, version: ModelVersion, **metadata: object) -> None:
        """Changes a version's metadata: one revision."""
        import dataclasses

        edited = dataclasses.replace(version, metadata=metadata, mod_rev=self.rev + 1)
        self.versions[str(version.ref)] = edited
        self._append(Kind.VERSION, str(version.ref), Action.UPDATED, edited)

    def drop(self, name: str) -> None:
        """Deletes an alias: one revision."""
        alias = self.aliases.pop(f"{PATH}@{name}")
        self._append(Kind.ALIAS, f"{PATH}@{name}", Action.DELETED, alias)

    def disconnect(self) -> None:
        """Breaks every open stream."""
        self._breaks += 1
        self._wake()

    def _append(self, kind: Kind, path: str, action: Action, state: object) -> None:
        self.history.append(
            Change(
                rev=self.rev + 1,
                idx=0,
                namespace="ns",
                object=path,
                kind=kind,
                action=action,
                actor="test",
                at=NOW,
                state=to_json(state),
            )
        )
        self._wake()

    def _wake(self) -> None:
        moved, self._moved = self._moved, None
        if moved is not None:
            moved.set()

    async def resolve(self, ref: ModelRef) -> Resolved:
        await anyio.lowlevel.checkpoint()
        self._refuse_if_down()
        self.resolves.append(str(ref))
        if not ref.movable:
            answer = await super().resolve(ref)
            return Resolved(ref=ref, version=answer.version, alias=None, token=self.token, server_id=self.server_id)
        alias = self.aliases.get(str(ref))
        if alias is None:
            raise NotFoundError(f"{ref} does not exist", exists=sorted(self.aliases))
        version = self.versions[f"{PATH}@{alias.version}"]
        return Resolved(ref=ref, version=version, alias=alias, token=self.token, server_id=self.server_id)

    def watch(self, objects: Sequence[str], token: str) -> AbstractAsyncContextManager[AsyncIterator[FeedItem]]:
        return self._stream(objects, token)

    @asynccontextmanager
    async def _stream(self, objects: Sequence[str], token: str) -> AsyncIterator[AsyncIterator[FeedItem]]:
        await anyio.lowlevel.checkpoint()
        self._refuse_if_down()
        self.watches.append(token)
        stream = self._items(token)
        try:
            yield stream
        finally:
            await stream.aclose()  # type: ignore[attr-defined]

    async def _items(self, token: str) -> AsyncIterator[FeedItem]:
        breaks = self._breaks
        at = ResumeToken.parse(token) if token else None
        if self.resync is not None:
            reason, self.resync = self.resync, None
            yield Resync(reason=reason, message="as the test wants")
            return
        if at is not None and (at.server_id, at.epoch) != (self.server_id, self.epoch):
            yield Resync(reason=ResyncReason.DIVERGED, message="another history")
            return
        sent = at.rev if at is not None else self.rev
        seen = sent
        yield Bookmark(rev=sent, head_rev=self.rev, token=self._at(sent))
        while True:
            if self._breaks != breaks or self.faults.down:
                raise Unavailable("the stream broke")
            while seen < self.rev:
                seen += 1
                if seen in self.skip:
                    self.skip.discard(seen)
                    sent = seen  # as if it had been sent, and was lost on the way
                    continue
                for _ in range(2 if seen in self.repeat else 1):
                    yield Revision(rev=seen, prev_rev=sent, changes=(self.history[seen - 1],), token=self._at(seen))
                sent = seen
            self._moved = self._moved or anyio.Event()
            await self._moved.wait()

    def _at(self, rev: int) -> str:
        return str(ResumeToken(server_id=self.server_id, epoch=self.epoch, rev=rev, chain="00"))
