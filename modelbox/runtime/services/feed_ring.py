"""The newest revisions in memory, and who waits for which of them.

Watchers want little of much: a loader wants its model's alias, while training programs write a thousand revisions a
second. So the ring knows the revisions by what they are about, and a watcher is woken, and looks, only where something
may be for it: the work is that of matches, not of watchers times revisions. The index is bounded as the ring is, and
shared; a watcher itself is a cursor and the few keys that it waits for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

import anyio

from modelbox.access import ALL, Scope
from modelbox.feed import Change, Filter
from modelbox.runtime.ports import StoredRevision

__all__ = ("Interest", "Ring")

_MEMORY_FACTOR = 4
"""Parsed JSON takes about this much more memory than its text."""
_CHANGE_OVERHEAD = 500

_FEW = 50
"""Namespaces that a watcher of all that it may see waits for one by one."""

_Key = tuple[str, str]
_ALL: _Key = ("", "")


def _keys_of(change: Change) -> Iterator[_Key]:
    """Everything that a filter could know the change by."""
    yield _ALL
    yield ("namespace", change.namespace)
    yield ("kind", change.kind)
    path = change.object
    yield ("object", path)
    for place, char in enumerate(path):
        # A model's path takes in its versions and aliases, an id what is attached to the object.
        if char in "@/":
            yield ("object", path[:place])


class Interest:
    """What a watcher waits for. It may be woken for nothing: the filter decides."""

    __slots__ = ("_event", "keys")

    def __init__(self, wanted: Filter, scope: Scope = ALL) -> None:
        seen = set() if scope.everything else {*scope.namespaces, *(namespace for namespace, _ in scope.models)}
        if wanted.objects:
            keys = [("object", path) for path in wanted.objects]
        elif wanted.namespace:
            keys = [("namespace", wanted.namespace)]
        elif 0 < len(seen) <= _FEW:
            keys = [("namespace", namespace) for namespace in sorted(seen)]
        elif wanted.kinds:
            keys = [("kind", kind) for kind in wanted.kinds]
        else:
            keys = [_ALL]
        self.keys = tuple(dict.fromkeys(keys))
        self._event = anyio.Event()

    @property
    def woken(self) -> bool:
        """Whether there may have been something since `rearm`."""
        return self._event.is_set()

    def rearm(self) -> None:
        """Before looking: what comes from here on wakes it up."""
        if self._event.is_set():
            self._event = anyio.Event()

    def wake(self) -> None:
        """Lets `wait` return."""
        self._event.set()

    async def wait(self) -> None:
        """Returns once there may have been something since `rearm`."""
        await self._event.wait()


class _Revs:
    """Ascending revisions; the oldest ones go first."""

    __slots__ = ("_gone", "_revs")

    def __init__(self) -> None:
        self._revs: list[int] = []
        self._gone = 0

    def append(self, rev: int) -> None:
        self._revs.append(rev)

    def drop_first(self) -> bool:
        """Returns whether any are left."""
        self._gone += 1
        if self._gone * 2 > len(self._revs):
            del self._revs[: self._gone]
            self._gone = 0
        return len(self._revs) > self._gone

    def after(self, rev: int) -> int | None:
        place = bisect_right(self._revs, rev, lo=self._gone)
        return self._revs[place] if place < len(self._revs) else None


class Ring:
    """The newest revisions, consecutive up to ``last``; drops the oldest ones beyond its limits.

    Args:
        max_changes: Changes at most.
        max_bytes: Estimated memory at most, in bytes.
    """

    def __init__(self, *, max_changes: int, max_bytes: int) -> None:
        self.last = 0
        self.last_chain = b""
        self._first = 1
        self._entries: dict[int, StoredRevision] = {}
        self._index: dict[_Key, _Revs] = {}
        self._interests: dict[_Key, set[Interest]] = {}
        self._catching_up: set[Interest] = set()
        self._changes = 0
        self._bytes = 0
        self._max_changes = max_changes
        self._max_bytes = max_bytes

    def start(self, rev: int, chain: bytes) -> None:
        """Begins behind ``rev``, and wakes everybody: whoever is not there yet has to look elsewhere."""
        self.last, self.last_chain = rev, chain
        self._first = rev + 1
        self._entries.clear()
        self._index.clear()
        self._changes = self._bytes = 0
        self.wake_all()

    def append(self, revision: StoredRevision) -> None:
        """Adds the revision after ``last``, and wakes those that may want it."""
        if revision.rev != self.last + 1:
            raise AssertionError(f"revision {revision.rev} does not follow {self.last}")
        self._entries[revision.rev] = revision
        self.last, self.last_chain = revision.rev, revision.chain
        self._changes += len(revision.changes)
        self._bytes += self._cost(revision)
        for key in self._keys(revision):
            revs = self._index.get(key)
            if revs is None:
                revs = self._index[key] = _Revs()
            revs.append(revision.rev)
            for interest in self._interests.get(key, ()):
                interest.wake()
        for interest in self._catching_up:
            interest.wake()
        while self._entries and (self._changes > self._max_changes or self._bytes > self._max_bytes):
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        oldest = self._entries.pop(self._first)
        self._first += 1
        self._changes -= len(oldest.changes)
        self._bytes -= self._cost(oldest)
        for key in self._keys(oldest):
            if not self._index[key].drop_first():
                del self._index[key]

    def holds(self, rev: int) -> bool:
        """Whether this and all later revisions are here."""
        return rev >= self._first

    def next_for(self, interest: Interest, cursor: int) -> StoredRevision | None:
        """The first revision after ``cursor`` that may be for ``interest``; `holds` the one after the cursor."""
        found: int | None = None
        for key in interest.keys:
            revs = self._index.get(key)
            rev = None if revs is None else revs.after(cursor)
            if rev is not None and (found is None or rev < found):
                found = rev
        return None if found is None else self._entries[found]

    # -- who waits -------------------------------------------------------------------------------------------------

    def add(self, interest: Interest) -> None:
        """Has ``interest`` woken from now on until `remove`; by every revision, until it has `caught_up`."""
        self._catching_up.add(interest)
        for key in interest.keys:
            self._interests.setdefault(key, set()).add(interest)

    def caught_up(self, interest: Interest) -> None:
        """Has ``interest`` woken by what may be for it only."""
        self._catching_up.discard(interest)

    def remove(self, interest: Interest) -> None:
        """Forgets it."""
        self._catching_up.discard(interest)
        for key in interest.keys:
            others = self._interests[key]
            others.discard(interest)
            if not others:
                del self._interests[key]

    def wake_all(self) -> None:
        """Wakes everybody."""
        for interests in self._interests.values():
            for interest in interests:
                interest.wake()

    @staticmethod
    def _keys(revision: StoredRevision) -> set[_Key]:
        return {key for change in revision.changes for key in _keys_of(change)}

    @staticmethod
    def _cost(revision: StoredRevision) -> int:
        return revision.size_bytes * _MEMORY_FACTOR + len(revision.changes) * _CHANGE_OVERHEAD
