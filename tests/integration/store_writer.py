"""A process that writes until it is killed: prints the revision of every change that was acknowledged.

Run as ``python -m tests.integration.store_writer DIRECTORY``; the model ``ns/m`` must have two versions.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import anyio

from .server_core import Core, open_core

_WRITERS = 8


async def _write(core: Core, number: int) -> None:
    # A name of this process's own: where an alias points there already, a move changes nothing.
    name = f"writer-{os.getpid()}-{number}"
    turn = 0
    while True:
        turn += 1
        alias = await core.registry.move_alias("ns", "m", name, 1 + turn % 2, actor=f"writer {number}")
        # One write call, so that a kill never leaves half a line; the pipe holds what was acknowledged.
        os.write(1, f"{alias.mod_rev}\n".encode())


async def main(directory: Path) -> None:
    """Writes for ever."""
    async with open_core(directory) as core, anyio.create_task_group() as tasks:
        for number in range(_WRITERS):
            tasks.start_soon(_write, core, number)


if __name__ == "__main__":
    anyio.run(main, Path(sys.argv[1]))
