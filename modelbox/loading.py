"""From `load` to a handle: keeps one loader alive in the engine of one client, and hands out what it loads.

Owns the loader's life: started by the first load, ended by the client's `aclose`, started anew in a forked child. This
is where configuration, transport, cache, telemetry and loader meet.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace

import anyio
from anyio import to_thread

from modelbox.config import ClientConfig, process_instance_id
from modelbox.engine import Engine, EngineTask
from modelbox.errors import ClientClosed, DeadlineExceeded
from modelbox.loader.cache import Cache
from modelbox.loader.loader import Loader
from modelbox.loader.probe import ProbeMode
from modelbox.loader.reload import Reloader
from modelbox.loader.report import Identity
from modelbox.loader.settings import LoaderSettings, LoadOptions
from modelbox.loader.slower import Slower
from modelbox.model import LiveModel
from modelbox.otel import Telemetry
from modelbox.ports import ModelSource
from modelbox.refs import ModelRef

__all__ = ("LoaderHost",)

_log = logging.getLogger(__name__)


class LoaderHost:
    """The loader of one client.

    Args:
        engine: Where it runs.
        config: Gives the settings in force, read on first use.
        source: Gives the transport; called on the engine's loop.
        settings: Of the loader.

    Concurrency: the public methods may be called from any thread and event loop.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        config: Callable[[], ClientConfig],
        source: Callable[[], Awaitable[ModelSource]],
        settings: LoaderSettings | None = None,
    ) -> None:
        self._engine = engine
        self._config = config
        self._source = source
        self._settings = settings or LoaderSettings()
        self._life: _Life | None = None

    async def load(self, ref: ModelRef, options: LoadOptions | None, *, timeout: float | None) -> LiveModel:
        """Brings ``ref`` into service and returns a handle; see `Client.load`."""
        held: list[Reloader] = []
        try:
            with anyio.fail_after(timeout):
                await self._engine.call(self._load, ref, options or LoadOptions(), held)
            return LiveModel(held.pop(), self)
        except DeadlineExceeded:
            raise
        except TimeoutError as exc:
            raise DeadlineExceeded(f"{ref} was not ready within {timeout} s", timeout_s=timeout) from exc
        finally:
            self._give_back(held)

    def load_sync(self, ref: ModelRef, options: LoadOptions | None, *, timeout: float | None) -> LiveModel:
        """The same for code that is not async."""
        held: list[Reloader] = []
        try:
            self._engine.call_sync(self._load, ref, options or LoadOptions(), held, timeout=timeout)
            return LiveModel(held.pop(), self)
        finally:
            self._give_back(held)

    async def release(self, reloader: Reloader) -> None:
        """Gives a handle's reference back."""
        if not self._engine.closed:
            await self._engine.call(self._release, reloader)

    def release_sync(self, reloader: Reloader) -> None:
        """The same for code that is not async."""
        if not self._engine.closed:
            self._engine.call_sync(self._release, reloader)

    def adopt(self, model: LiveModel, inherited: Reloader) -> None:
        """In a forked child: follows what ``model`` served in the parent process; serving does not wait for it."""

        async def rejoin() -> None:
            life = await self._living()
            model._hold(await life.loader.adopt(inherited))

        self._engine.start_soon(rejoin, name=f"modelbox adopt {inherited.ref}")

    async def aclose(self) -> None:
        """Takes everything out of service; runs on the engine's loop."""
        life, self._life = self._life, None
        if life is not None and life.pid == os.getpid():
            life.stop.set()
            await life.ended.wait()

    def forget(self, reloader: Reloader) -> None:
        """Gives a reference back without waiting; for handles that nobody closed."""
        self._give_back([reloader])

    def _give_back(self, held: list[Reloader]) -> None:
        # Not empty where the caller was cancelled in the moment in which the engine had finished.
        for reloader in held:
            with contextlib.suppress(ClientClosed):
                self._engine.start_soon(self._release, reloader, name=f"modelbox release {reloader.ref}")

    async def _load(self, ref: ModelRef, options: LoadOptions, held: list[Reloader]) -> None:
        held.append(await (await self._living()).loader.load(ref, options))

    async def _release(self, reloader: Reloader) -> None:
        life = self._life
        if life is not None and life.pid == os.getpid():
            await life.loader.release(reloader)

    async def _living(self) -> _Life:
        life = self._life
        if life is None or life.pid != os.getpid():
            life = self._life = _Life()
            life.task = self._engine.start_soon(self._live, life, name="modelbox loader")
        await life.ready.wait()
        if life.error is not None:
            if self._life is life:
                self._life = None
            raise life.error
        return life

    async def _live(self, life: _Life) -> None:
        try:
            config = self._config()
            cache = Cache(config.cache_dir, max_bytes=config.cache_max_bytes)
            await to_thread.run_sync(cache.open)
            policy = config.signature_policy()
            await to_thread.run_sync(policy.open)
            telemetry = Telemetry()
            informer = replace(self._settings.informer, jitter_s=config.swap_jitter_s)
            loader = Loader(
                await self._source(),
                cache,
                server_key=config.url,
                identity=Identity(instance_id=process_instance_id(), host=socket.gethostname(), pid=os.getpid()),
                settings=replace(
                    self._settings,
                    informer=informer,
                    swap_interval_s=config.swap_interval_s,
                    probe=ProbeMode(config.probe),
                    probe_timeout_s=config.probe_timeout_s,
                    probe_max_bytes=config.probe_max_bytes,
                    slower=Slower(config.slower),
                    slower_factor=config.slower_factor,
                ),
                observe=telemetry,
                ledger=telemetry.ledger,
                policy=policy,
            )
            async with loader:
                life.loader = loader
                life.ready.set()
                await life.stop.wait()
        except Exception as exc:
            if life.ready.is_set():
                _log.exception("the loader ended in an unexpected way; the next load starts another one")
            life.error = exc
        finally:
            if not life.ready.is_set():
                life.error = life.error or ClientClosed("the client was closed while the loader started")
                life.ready.set()
            life.ended.set()


class _Life:
    """One life of the loader: from its start to a close, a failure or a fork."""

    loader: Loader
    task: EngineTask

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.ready = anyio.Event()
        self.stop = anyio.Event()
        self.ended = anyio.Event()
        self.error: Exception | None = None
