"""The loader: all references of one process on one server.

Owns the cache, the downloader, the informer, the reporter, and the tasks in which references live on after `load`
returned. Reading order of one load: `Loader.load` → `_begin` (what does the reference point to?) → `Reloader.start` →
`Preparer.prepare` → `Runner.swap`; from then on `Informer` → `Reloader.offer` → `Reloader.run`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
from anyio import AsyncContextManagerMixin, CancelScope, to_thread
from anyio.abc import TaskGroup

from modelbox.errors import (
    ClientClosed,
    DeadlineExceeded,
    IntegrityError,
    ModelBoxError,
    NotAuthenticated,
    ServerBusy,
    StorageError,
    TransportError,
)
from modelbox.events import Observer
from modelbox.feed import ResumeToken
from modelbox.loader.answers import check_answer
from modelbox.loader.cache import Cache
from modelbox.loader.download import Downloader
from modelbox.loader.ledger import Ledger
from modelbox.loader.prepare import Preparer
from modelbox.loader.reload import ModelState, Reloader, as_resolved
from modelbox.loader.report import Identity, Reporter
from modelbox.loader.runner import Runner
from modelbox.loader.settings import LoaderSettings, LoadOptions
from modelbox.loader.watch import Informer
from modelbox.objects import Resolved
from modelbox.ports import ModelSource
from modelbox.refs import ModelRef
from modelbox.signing.policy import SignaturePolicy

__all__ = ("Loader",)

_log = logging.getLogger(__name__)

_PAUSE_AFTER_BUG_S = 1.0


class _Entry:
    """One reference of this process: shared by all its handles, and by everybody who waits for its first version."""

    def __init__(self, reloader: Reloader) -> None:
        self.reloader = reloader
        self.holders = 0
        self.scope = CancelScope()
        self.ready = anyio.Event()
        self.ended = anyio.Event()
        self.error: BaseException | None = None


class Loader(AsyncContextManagerMixin):
    """Loads references and keeps them in service until they are released.

    Concurrency: belongs to the engine's loop.

    Args:
        source: The server.
        cache: Opened cache.
        server_key: Names the server in the cache's records; its URL.
        identity: This process in the fleet's list.
        settings: Timeouts and pauses.
        observe: Hears every event of every reference.
        ledger: Takes the statistics of all calls.
        policy: What has to be signed, and by whom; nothing by default.
    """

    def __init__(
        self,
        source: ModelSource,
        cache: Cache,
        *,
        server_key: str,
        identity: Identity,
        settings: LoaderSettings | None = None,
        observe: Observer = lambda _: None,
        ledger: Ledger | None = None,
        policy: SignaturePolicy | None = None,
    ) -> None:
        self._source = source
        self._cache = cache
        self._server_key = server_key
        self._identity = identity
        self._settings = settings or LoaderSettings()
        self._observe = observe
        self._ledger = ledger or Ledger()
        self._policy = policy
        self._entries: dict[ModelRef, _Entry] = {}
        self._tasks: TaskGroup | None = None
        self._reporter = Reporter(source, heartbeat_s=self._settings.heartbeat_s)
        self._informer = Informer(source, settings=self._settings.informer, on_contact=self._contact)

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Loader]:
        async with Downloader(self._source, self._cache) as downloader:
            self._preparer = Preparer(
                cache=self._cache, downloader=downloader, settings=self._settings, policy=self._policy
            )
            async with anyio.create_task_group() as tg:
                self._tasks = tg
                tg.start_soon(_kept_up, self._reporter.run, name="modelbox reporter")
                tg.start_soon(_kept_up, self._informer.run, name="modelbox informer")
                try:
                    yield self
                finally:
                    self._tasks = None
                    with anyio.move_on_after(self._settings.drain_timeout_s, shield=True):
                        for entry in list(self._entries.values()):
                            await self._retire(entry)
                    tg.cancel_scope.cancel()

    async def load(self, ref: ModelRef, options: LoadOptions) -> Reloader:
        """Brings ``ref`` into service, or joins those who have it already.

        Every call is answered by one `release`.

        Raises:
            ModelBoxError: It could not be brought into service; nothing is kept but verified files in the cache.

        Cancellation: the work ends when the last caller who waits for it is gone.
        """
        entry = self._entries.get(ref)
        if entry is None:
            entry = self._enter(ref, options)
            self._spawn(self._live, entry, name=f"modelbox reference {ref}")
        entry.holders += 1
        try:
            await entry.ready.wait()
        except BaseException:
            with CancelScope(shield=True):
                await self._leave(entry)
            raise
        if entry.error is not None:
            raise entry.error
        return entry.reloader

    async def adopt(self, inherited: Reloader) -> Reloader:
        """Follows a reference that the parent process served before a fork; it serves all the while."""
        entry = self._entries.get(inherited.ref)
        if entry is None:
            entry = self._enter(inherited.ref, inherited.options, runner=inherited.runner)
            entry.reloader.adopt(inherited)
            entry.ready.set()
            self._spawn(partial(self._live, entry, inherited=True), name=f"modelbox reference {inherited.ref}")
        entry.holders += 1
        return entry.reloader

    async def release(self, reloader: Reloader) -> None:
        """Gives back what `load` or `adopt` returned; the last one takes the reference out of service."""
        entry = self._entries.get(reloader.ref)
        if entry is not None and entry.reloader is reloader:
            await self._leave(entry)

    # -- one reference

    def _enter(self, ref: ModelRef, options: LoadOptions, *, runner: Runner | None = None) -> _Entry:
        reloader = Reloader(
            ref,
            options,
            runner=runner or Runner(options.runner),
            preparer=self._preparer,
            cache=self._cache,
            cache_key=self._cache_key(ref),
            reporter=self._reporter,
            identity=self._identity,
            settings=self._settings,
            spawn=self._spawn,
            observe=self._observe,
            ledger=self._ledger,
        )
        entry = self._entries[ref] = _Entry(reloader)
        return entry

    async def _live(self, entry: _Entry, *, inherited: bool = False) -> None:
        """From the first version to the end; one task for each reference."""
        reloader, token = entry.reloader, None
        try:
            with entry.scope:
                if not inherited:
                    token = await self._begin(reloader)
                    entry.ready.set()
                if reloader.ref.movable:
                    self._informer.add(reloader, token)
                await _kept_up(reloader.run)
        except Exception as exc:
            entry.error = exc
            self._entries.pop(reloader.ref, None)
        finally:
            entry.ready.set()
            entry.ended.set()

    async def _begin(self, reloader: Reloader) -> str | None:
        """Finds what to serve first, and brings it into service; returns the token to watch from."""
        ref = reloader.ref
        last_good = await to_thread.run_sync(self._cache.load_ref, self._cache_key(ref))
        resolved: Resolved | None = None
        try:
            if last_good is None:
                answer = await self._source.resolve(ref)
                check_answer(ref, answer)
            else:
                with anyio.fail_after(self._settings.offline_after_s):
                    answer = await self._source.resolve(ref)
                check_answer(ref, answer, ResumeToken.parse(last_good.token) if last_good.token else None)
            resolved = answer
        except (TransportError, TimeoutError, ServerBusy, StorageError, IntegrityError, NotAuthenticated) as exc:
            # A token that is not taken any more says nothing about the model, nor does a server without its database.
            if last_good is None:
                if isinstance(exc, ModelBoxError):
                    raise
                raise DeadlineExceeded(f"no answer for {ref} in time") from exc
            _log.warning(
                "%s: the server is of no use, serving the last good version %d: %s",
                ref,
                last_good.version.version,
                exc,
            )
        if resolved is not None:
            reloader.confirmed()
            await reloader.start(resolved, last_good)
            return resolved.token
        assert last_good is not None
        await reloader.start(as_resolved(ref, last_good), last_good)
        reloader.set_stale(True)
        return None

    async def _leave(self, entry: _Entry) -> None:
        entry.holders -= 1
        if entry.holders <= 0:
            await self._retire(entry)

    async def _retire(self, entry: _Entry) -> None:
        ref = entry.reloader.ref
        if self._entries.get(ref) is entry:
            del self._entries[ref]
        self._informer.remove(entry.reloader)
        entry.scope.cancel()
        with anyio.move_on_after(self._settings.drain_timeout_s):
            await entry.ended.wait()
        await entry.reloader.close()

    def _contact(self, reachable: bool) -> None:
        for entry in self._entries.values():
            if entry.reloader.state is not ModelState.LOADING:
                entry.reloader.set_stale(not reachable)

    def _spawn(self, fn: Callable[..., Any], *args: object, name: str) -> None:
        if self._tasks is None:
            raise ClientClosed("the loader is closed")
        self._tasks.start_soon(_contained, partial(fn, *args), name, name=name)

    def _cache_key(self, ref: ModelRef) -> str:
        return f"{self._server_key} {ref}"


async def _kept_up(run: Callable[[], Awaitable[None]]) -> None:
    """Runs what is to run for ever: an error in it is a bug, and no reason to take anything out of service."""
    while True:
        try:
            await run()
        except Exception:
            _log.exception("%s failed unexpectedly and begins again; what serves goes on", run)
        await anyio.sleep(_PAUSE_AFTER_BUG_S)


async def _contained(run: Callable[[], Awaitable[None]], name: str) -> None:
    """Runs a task whose errors must not end the others."""
    try:
        await run()
    except Exception:
        _log.exception("%s failed unexpectedly; what serves goes on", name)
