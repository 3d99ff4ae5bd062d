"""A server that now and then says that something is stored, and rolls it back."""

from __future__ import annotations

import itertools
import sys
from typing import Any

from sqlalchemy.ext.asyncio import AsyncTransaction

from modelbox.runtime.__main__ import main

_SOUND = 60
"""Commits of the start and of what a test prepares; they are carried out."""
_count = itertools.count(1)
_commit = AsyncTransaction.commit


async def _forgetful(transaction: AsyncTransaction) -> Any:
    number = next(_count)
    if number > _SOUND and number % 7 == 0:
        return await transaction.rollback()
    return await _commit(transaction)


AsyncTransaction.commit = _forgetful  # type: ignore[method-assign,assignment]

if __name__ == "__main__":
    sys.exit(main())
