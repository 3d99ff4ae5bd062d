"""What all parts of the client stand on: settings, the engine, the connection to the server, pages, the end."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import anyio.to_thread

from modelbox.config import ClientConfig, load_client_config
from modelbox.engine import Engine
from modelbox.errors import ClientClosed
from modelbox.objects import (
    Page,
)

if TYPE_CHECKING:
    from modelbox._transport.sidecar import SidecarHost
    from modelbox._transport.source import RemoteSource
    from modelbox.loading import LoaderHost

__all__ = ("ClientConnection",)

T = TypeVar("T")
_CLOSE_S = 5.0


class ClientConnection:
    """The base of `modelbox.Client`; see there."""

    def __init__(
        self,
        url: str | None = None,
        *,
        config: ClientConfig | None = None,
        engine: Engine | None = None,
        **settings: Any,
    ) -> None:
        if config is not None and (url is not None or settings):
            raise TypeError("Client takes either a config or single settings")
        self._settings = {**settings, "url": url}
        self._config = config
        self._owns_engine = engine is None
        self._engine = Engine() if engine is None else engine
        self._source: RemoteSource | None = None
        self._source_pid = 0
        self._of_parent: list[RemoteSource] = []
        self._closed = False
        self._host: LoaderHost | SidecarHost | None = None

    @property
    def config(self) -> ClientConfig:
        """The settings in force; reads them on first use.

        Raises:
            ConfigError: They cannot be used; names every problem.
        """
        if self._config is None:
            self._config = load_client_config(**self._settings)
        return self._config

    @property
    def engine(self) -> Engine:
        """The engine that this client's work runs in."""
        return self._engine

    async def __aenter__(self) -> Self:
        self._check_open()
        await anyio.to_thread.run_sync(lambda: self.config)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes connections, and the engine where it is the client's own. Idempotent.

        Cancellation: closing goes on, for at most 5 s.
        """
        if self._closed:
            return
        self._closed = True
        with anyio.move_on_after(_CLOSE_S, shield=True):
            with suppress(ClientClosed):
                await self._engine.call(self._close_parts)
            if self._owns_engine:
                await anyio.to_thread.run_sync(self._engine.close)

    async def _close_parts(self) -> None:
        """Ends what this client has on the engine's loop; runs there."""
        if self._host is not None:
            await self._host.aclose()
        if self._source is not None and self._source_pid == os.getpid():
            await self._source.aclose()

    def _check_open(self) -> None:
        if self._closed:
            raise ClientClosed("this client is closed: make a new modelbox.Client")

    async def source(self) -> RemoteSource:
        """The transport, for a loader on the same engine; call it there only."""
        self._check_open()
        if self._source is None or self._source_pid != os.getpid():
            from modelbox._transport.source import RemoteSource

            if self._source is not None:
                # Its sockets belong to the process that we were forked from: never use, close or collect them here.
                self._of_parent.append(self._source)
            self._source = RemoteSource(self.config)
            self._source_pid = os.getpid()
        return self._source

    async def _call(self, fn: Callable[[RemoteSource], Awaitable[T]]) -> T:
        """Runs ``fn`` on the engine's loop."""
        self._check_open()
        return await self._engine.call(self._run, fn)

    async def _run(self, fn: Callable[[RemoteSource], Awaitable[T]]) -> T:
        return await fn(await self.source())

    async def _pages(self, fetch: Callable[[RemoteSource, str], Awaitable[Page[T]]]) -> AsyncIterator[T]:
        token = ""
        while True:

            async def next_page(source: RemoteSource, token: str = token) -> Page[T]:
                return await fetch(source, token)

            page = await self._call(next_page)
            for item in page.items:
                yield item
            token = page.next_token
            if not token:
                return
