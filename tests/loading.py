"""A loader of a test's own, with short pauses, and a log of what it says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import numpy as np

from modelbox.events import ModelEvent, ReloadFailed, ReloadSucceeded
from modelbox.loader.cache import Cache
from modelbox.loader.cache_state import RefState
from modelbox.loader.ledger import Ledger
from modelbox.loader.loader import Loader
from modelbox.loader.reload import Reloader
from modelbox.loader.report import Identity
from modelbox.loader.settings import LoaderSettings
from modelbox.loader.watch import InformerSettings
from modelbox.ports import ModelSource

__all__ = ("SETTINGS", "Log", "X", "answer", "loading", "recorded")

SETTINGS = LoaderSettings(
    offline_after_s=0.2,
    drain_timeout_s=2.0,
    retry_base_s=0.02,
    retry_max_s=0.05,
    optimise_after_s=0.0,
    informer=InformerSettings(backoff_base_s=0.01, backoff_max_s=0.02),
)
X = {"x": np.ones((1, 4), np.float32)}


class Log:
    """Every event, and a way to wait for one."""

    def __init__(self) -> None:
        self.events: list[ModelEvent] = []
        self._news = anyio.Event()

    def __call__(self, event: ModelEvent) -> None:
        self.events.append(event)
        self._news.set()

    async def until(self, wanted: Callable[[ModelEvent], bool], *, count: int = 1) -> ModelEvent:
        with anyio.fail_after(60):
            while len(found := [event for event in self.events if wanted(event)]) < count:
                self._news = anyio.Event()
                await self._news.wait()
        return found[-1]

    async def served(self, version: int) -> None:
        await self.until(lambda e: isinstance(e, ReloadSucceeded) and e.version == version)

    async def failed(self, version: int, *, count: int = 1) -> ReloadFailed:
        event = await self.until(lambda e: isinstance(e, ReloadFailed) and e.version == version, count=count)
        assert isinstance(event, ReloadFailed)
        return event


@asynccontextmanager
async def loading(
    source: ModelSource, directory: Path, *, settings: LoaderSettings = SETTINGS, ledger: Ledger | None = None
) -> AsyncIterator[tuple[Loader, Log]]:
    """A loader on a cache in ``directory``."""
    cache = Cache(directory)
    await anyio.to_thread.run_sync(cache.open)
    log = Log()
    loader = Loader(
        source,
        cache,
        server_key="memory",
        identity=Identity(instance_id="i-1", host="here", pid=1),
        settings=settings,
        observe=log,
        ledger=ledger,
    )
    async with loader:
        yield loader, log


async def recorded(reloader: Reloader, wanted: Callable[[RefState], bool]) -> None:
    """Waits until the disk knows."""
    with anyio.fail_after(30):
        while (state := reloader._cache.load_ref(reloader._cache_key)) is None or not wanted(state):
            await anyio.sleep(0.005)


async def answer(reloader: Reloader) -> float:
    """What the model makes of ones: ``add_constant(n)`` answers n + 1."""
    outputs = await reloader.runner.predict(X)
    return float(outputs["y"][0, 0])
