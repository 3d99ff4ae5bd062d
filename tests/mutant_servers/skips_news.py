"""A server that leaves a revision out of its streams now and then, as one would that counts by a sequence."""

from __future__ import annotations

import dataclasses
import sys

from modelbox.runtime.__main__ import main
from modelbox.runtime.ports import FeedBatch
from modelbox.runtime.store.feed import SqlFeedStore

_read_after = SqlFeedStore.read_after


async def _careless(store: SqlFeedStore, rev: int, *, limit: int, max_bytes: int) -> FeedBatch:
    batch = await _read_after(store, rev, limit=limit, max_bytes=max_bytes)
    told = (dataclasses.replace(one, changes=()) if one.rev % 7 == 0 else one for one in batch.revisions)
    return dataclasses.replace(batch, revisions=tuple(told))


SqlFeedStore.read_after = _careless  # type: ignore[method-assign,assignment]

if __name__ == "__main__":
    sys.exit(main())
