"""A process of four writers on a shared database, some of whose changes fail; it writes until it is killed.

Run as ``python -m tests.integration.prefix_writer URL``; prints the revision of each change that was acknowledged.
"""

from __future__ import annotations

import os
import random
import secrets
import sys
from pathlib import Path

import anyio
from sqlalchemy import Connection

from modelbox.errors import ServerBusy, Unavailable
from modelbox.objects import NewModel
from modelbox.runtime.store.database import Database
from modelbox.runtime.store.history import next_rev
from modelbox.runtime.store.opening import open_database
from modelbox.runtime.store.registry import SqlRegistryStore
from tests.contract.metadata_stores import AT

_WRITERS = 4


class _Aborted(Exception):
    pass


async def _write(database: Database) -> None:
    store = SqlRegistryStore(database)

    def abort(conn: Connection) -> None:
        next_rev(conn)
        raise _Aborted

    while True:
        try:
            if random.random() < 0.1:
                await database.write(abort)
            new = NewModel(namespace="ns", name=f"m{secrets.token_hex(8)}")
            made = await store.create_model(new, actor="ann", at=AT)
        except (_Aborted, ServerBusy, Unavailable):
            continue
        # One write call, so that a kill never leaves half a line; the pipe holds what was acknowledged.
        os.write(1, f"{made.item.mod_rev}\n".encode())


async def main(url: str) -> None:
    """Writes for ever."""
    async with open_database(url, data_dir=Path(), migrate=False) as database, anyio.create_task_group() as tasks:
        for _ in range(_WRITERS):
            tasks.start_soon(_write, database)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1])
