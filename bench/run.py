"""What every group of figures works with: a directory, a seed, sizes, a server process and a client."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.databases import Databases, Kind
from modelbox import Client
from tests.server import ServerProcess

__all__ = ("BACKENDS", "SEED", "Run")

SEED = 20_261_121
BACKENDS: dict[str, tuple[str, dict[str, object]]] = {
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}
"""Event loops of the application, as `anyio.run` takes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of the benchmarks.

    Attributes:
        directory: Where everything is written; removed by whoever made it.
        quick: A fraction of the rounds and bytes, to see that everything works; the figures mean little.
        say: Tells what is being measured now.
        databases: Makes databases.
        database: What servers use where a group does not say.
    """

    directory: Path
    quick: bool
    say: Callable[[str], None]
    databases: Databases
    database: Kind = Kind.SQLITE

    def choose(self, full: int, quick: int) -> int:
        """One of two sizes."""
        return quick if self.quick else full

    def scratch(self) -> AbstractContextManager[str]:
        """A directory that goes away."""
        return tempfile.TemporaryDirectory(dir=self.directory)

    def server(self, *, database_url: str | None = None, blobs: Path | None = None) -> ServerProcess:
        """A server process; starts as a context manager.

        Args:
            database_url: Of a database; one of its own, empty, by default.
            blobs: Where bytes are; a directory of its own by default.
        """
        url = self.databases.new_url(self.database) if database_url is None else database_url
        directory = Path(tempfile.mkdtemp(dir=self.directory)) / "server"
        settings = {"database_url": url, "blobs_url": "" if blobs is None else blobs.as_uri()}
        given: Any = {key: value for key, value in settings.items() if value}
        return ServerProcess(directory, log_level="warning", **given)

    def client(self, server: ServerProcess) -> Client:
        """A client with an empty cache of its own, under settings that no environment changes."""
        return Client(server.url, cache_dir=Path(tempfile.mkdtemp(dir=self.directory)) / "cache", actor="bench")
