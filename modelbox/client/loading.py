"""Bringing models into service, as methods of the client."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio.to_thread

from modelbox.client.connection import ClientConnection
from modelbox.refs import ModelRef

if TYPE_CHECKING:
    from modelbox._transport.sidecar import SidecarHost
    from modelbox.loader.settings import LoadOptions
    from modelbox.loading import LoaderHost
    from modelbox.model import LiveModel

__all__ = ("LoadCalls",)


class LoadCalls(ClientConnection):
    """The part of `Client` about serving models here."""

    async def load(
        self, ref: str | ModelRef, *, options: LoadOptions | None = None, timeout: float | None = None
    ) -> LiveModel:
        """Brings a model into service, and keeps it at what ``ref`` points to for as long as the handle lives.

        The version is streamed into the local cache, verified, opened with onnxruntime and warmed up before this
        returns. When an alias moves, the new version goes through the same and replaces the old one without a failed
        call; one that does not pass is refused, and the old version goes on. With the server out of reach, the last
        version that served on this machine is opened from the cache and marked stale.

        Args:
            ref: ``namespace/model@prod``, ``…@7``, ``…@sha256:…``; without a suffix, ``@latest``.
            options: How to open and run it; handles of one reference share the options of the first. A sidecar goes by
                its own.
            timeout: Seconds until the first version has to be ready; None for the transports' own timeouts.

        Raises:
            RefError: ``ref`` is not a reference.
            NotFoundError: The model, alias or version does not exist; says what does.
            LoadError: It cannot be served (format, broken file, unknown operator, warm-up).
            IntegrityError: Its bytes are not what the manifest says.
            CacheError: The cache cannot be used: disk full, read-only, not ours.
            Unavailable: The server cannot be reached and the cache holds nothing for ``ref``; or no sidecar answers.
            DeadlineExceeded: It was not ready within ``timeout``.
            ConfigError: onnxruntime is not installed.

        Cancellation: the work ends when nobody else waits for the same reference; verified files stay in the cache.
        """
        parsed = ModelRef.parse(ref)
        if self._config is None:
            await anyio.to_thread.run_sync(lambda: self.config)
        return await self._loading().load(parsed, options, timeout=timeout)

    def load_sync(
        self, ref: str | ModelRef, *, options: LoadOptions | None = None, timeout: float | None = None
    ) -> LiveModel:
        """`load` for code that is not async; see `modelbox.sync`."""
        return self._loading().load_sync(ModelRef.parse(ref), options, timeout=timeout)

    def _loading(self) -> LoaderHost | SidecarHost:
        self._check_open()
        if self._host is None:
            if self.config.sidecar:
                from modelbox._transport.sidecar import SidecarHost

                self._host = SidecarHost(self._engine, self.config)
            else:
                from modelbox.loading import LoaderHost

                self._host = LoaderHost(self._engine, config=lambda: self.config, source=self.source)
        return self._host
