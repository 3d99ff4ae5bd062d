"""A server whose streams fall silent after a while, bookmarks aside."""

from __future__ import annotations

import dataclasses
import sys

from modelbox.runtime.__main__ import main
from modelbox.runtime.ports import FeedBatch
from modelbox.runtime.store.feed import SqlFeedStore

_LAST = 100
"""Beyond what a test says until its watchers listen, however long they take to."""
_read_after = SqlFeedStore.read_after


async def _tired(store: SqlFeedStore, rev: int, *, limit: int, max_bytes: int) -> FeedBatch:
    batch = await _read_after(store, rev, limit=limit, max_bytes=max_bytes)
    if batch.head.rev <= _LAST:
        return batch
    head = dataclasses.replace(batch.head, rev=max(rev, _LAST))
    return dataclasses.replace(batch, head=head, revisions=tuple(one for one in batch.revisions if one.rev <= _LAST))


SqlFeedStore.read_after = _tired  # type: ignore[method-assign,assignment]

if __name__ == "__main__":
    sys.exit(main())
