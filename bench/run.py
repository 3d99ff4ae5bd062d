"""What every group of figures works with: a directory, a seed, sizes, a server process and a client."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

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
    """

    directory: Path
    quick: bool
    say: Callable[[str], None]

    def choose(self, full: int, quick: int) -> int:
        """One of two sizes."""
        return quick if self.quick else full

    def scratch(self) -> AbstractContextManager[str]:
        """A directory that goes away."""
        return tempfile.TemporaryDirectory(dir=self.directory)

    def server(self) -> ServerProcess:
        """A server process with an empty registry of its own; starts as a context manager."""
        return ServerProcess(Path(tempfile.mkdtemp(dir=self.directory)) / "server", log_level="warning")

    def client(self, server: ServerProcess) -> Client:
        """A client with an empty cache of its own, under settings that no environment changes."""
        return Client(server.url, cache_dir=Path(tempfile.mkdtemp(dir=self.directory)) / "cache", actor="bench")
