"""Models that run in a sidecar: the same handle as in the process, without a runtime here.

Owns the application's view of its references (`SidecarReference`). One link in the engine hears what happens to them;
calls have links of their own (`modelbox._transport.sidecar_links`). Loading, swapping and queueing happen in the
sidecar; what is counted here is what this application sees.

Invariants: what `LiveModel` says of itself comes from the engine's link, in the sidecar's own order: an event is
delivered after the state that it tells of. While the sidecar cannot be reached the reference is stale, and calls wait.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping
from time import monotonic
from typing import Any

import anyio

from modelbox import events
from modelbox._frames import Kind, json_body
from modelbox._loops import current_loop
from modelbox._transport.sidecar_call import Question, RemoteVersion
from modelbox._transport.sidecar_connection import Connection
from modelbox._transport.sidecar_link import Link, no_sidecar
from modelbox._transport.sidecar_links import Links
from modelbox._transport.sidecar_runner import SidecarRunner
from modelbox.config import ClientConfig
from modelbox.engine import Engine, EngineTask
from modelbox.errors import (
    AuthError,
    ClientClosed,
    DeadlineExceeded,
    ModelBoxError,
    TransportError,
)
from modelbox.events import ModelEvent, Observer, ReloadSucceeded, StaleChanged
from modelbox.loader.reload import ModelState
from modelbox.loader.settings import LoadOptions
from modelbox.model import LiveModel
from modelbox.otel import Telemetry
from modelbox.refs import ModelRef

__all__ = ("SidecarHost", "SidecarReference")

_log = logging.getLogger(__name__)

_RETRY_S = 1.0


class SidecarReference:
    """One reference that the sidecar keeps in service; what a `LiveModel` follows.

    Concurrency: belongs to the engine's loop; ``state``, ``stale`` and ``runner`` may be read anywhere.
    """

    def __init__(self, ref: ModelRef, runner: SidecarRunner, observe: Observer) -> None:
        self.ref = ref
        self.runner = runner
        self.state = ModelState.LOADING
        self.stale = False
        self.observers: list[Observer] = [observe]
        self.holders = 0
        self.handle = 0
        self.ready = anyio.Event()
        self.error: Exception | None = None
        self.task: EngineTask | None = None

    def serving(self, version: RemoteVersion, state: Mapping[str, Any]) -> None:
        """Takes what the sidecar says of it now."""
        before = self.runner.active
        self.runner.active = version
        self.state = ModelState(state["state"])
        self.set_stale(bool(state["stale"]))
        return_of_another = before is not None and before.version.digest != version.version.digest
        self._changed_from = before if return_of_another else None

    def reopened(self) -> None:
        """Tells of a version that came while nobody here could hear of it."""
        before, active = self._changed_from, self.runner.active
        if before is not None and active is not None:
            self.emit(
                ReloadSucceeded(
                    ref=str(self.ref),
                    version=active.version.version,
                    digest=active.version.digest,
                    previous_version=before.version.version,
                    stage_s={},
                )
            )

    def set_stale(self, stale: bool) -> None:
        """Notes whether news can come."""
        if stale != self.stale:
            self.stale = stale
            self.emit(StaleChanged(ref=str(self.ref), stale=stale))

    def emit(self, event: ModelEvent) -> None:
        """Tells everybody who listens."""
        for observer in tuple(self.observers):
            observer(event)

    def close(self) -> None:
        """Answers no more."""
        self.state = ModelState.CLOSED
        self.runner.active = None

    _changed_from: RemoteVersion | None = None


class SidecarHost:
    """Loads references through a sidecar; what `LoaderHost` is for this process.

    Args:
        engine: Where news is heard.
        config: The settings in force; ``sidecar`` names the socket.
    """

    def __init__(self, engine: Engine, config: ClientConfig) -> None:
        self._engine = engine
        self._path = config.sidecar.removeprefix("unix://")
        self._patience_s = config.request_timeout_s
        self._links = Links(self._path)
        self._telemetry: Telemetry | None = None
        self._pid = 0
        self._control: Link | None = None
        self._connected = anyio.Event()
        self._gone = anyio.Event()
        self._references: dict[ModelRef, SidecarReference] = {}
        self._by_handle: dict[int, SidecarReference] = {}

    async def load(self, ref: ModelRef, options: LoadOptions | None, *, timeout: float | None) -> LiveModel:
        """See `Client.load`; the sidecar's own options hold, not ``options``."""
        held: list[SidecarReference] = []
        try:
            with anyio.fail_after(timeout):
                await self._engine.call(self._load, ref, held)
            return LiveModel(held.pop(), self)
        except DeadlineExceeded:
            raise
        except TimeoutError as exc:
            raise DeadlineExceeded(f"{ref} was not ready within {timeout} s", timeout_s=timeout) from exc
        finally:
            self._give_back(held)

    def load_sync(self, ref: ModelRef, options: LoadOptions | None, *, timeout: float | None) -> LiveModel:
        """The same for code that is not async."""
        held: list[SidecarReference] = []
        try:
            self._engine.call_sync(self._load, ref, held, timeout=timeout)
            return LiveModel(held.pop(), self)
        finally:
            self._give_back(held)

    async def release(self, reference: SidecarReference) -> None:
        """Gives a handle's reference back."""
        if not self._engine.closed:
            await self._engine.call(self._release, reference)

    def release_sync(self, reference: SidecarReference) -> None:
        """The same for code that is not async."""
        if not self._engine.closed:
            self._engine.call_sync(self._release, reference)

    def forget(self, reference: SidecarReference) -> None:
        """Gives a reference back without waiting; for handles that nobody closed."""
        self._give_back([reference])

    def _give_back(self, held: list[SidecarReference]) -> None:
        # Not empty where the caller was cancelled in the moment in which the engine had finished.
        for reference in held:
            with contextlib.suppress(ClientClosed):
                self._engine.start_soon(self._release, reference, name=f"modelbox release {reference.ref}")

    def adopt(self, model: LiveModel, inherited: SidecarReference) -> None:
        """In a forked child: hears of ``model`` from here on; calls have their own connections anyway."""

        async def rejoin() -> None:
            self._begin()
            if inherited.ref not in self._references:
                inherited.holders = 0
                self._follow(inherited)
            inherited.holders += 1
            model._hold(inherited)

        self._engine.start_soon(rejoin, name=f"modelbox adopt {inherited.ref}")

    async def aclose(self) -> None:
        """Ends everything; runs on the engine's loop."""
        for reference in list(self._references.values()):
            self._forget(reference)
        control, self._control = self._control, None
        if control is not None:
            control.close()
        self._links.close()

    # -- on the engine's loop

    async def _load(self, ref: ModelRef, held: list[SidecarReference]) -> None:
        self._begin()
        reference = self._references.get(ref)
        if reference is None:
            assert self._telemetry is not None
            runner = SidecarRunner(ref, self._links, self._telemetry, self._patience_s)
            reference = SidecarReference(ref, runner, self._telemetry)
            self._follow(reference)
        reference.holders += 1
        try:
            await reference.ready.wait()
            if reference.error is not None:
                raise reference.error
        except BaseException:
            await self._release(reference)
            raise
        if self._telemetry is not None:
            self._telemetry.begins(ref, stale=reference.stale)
        held.append(reference)

    async def _release(self, reference: SidecarReference) -> None:
        if self._references.get(reference.ref) is not reference:
            reference.close()
            return
        reference.holders -= 1
        if reference.holders <= 0:
            self._forget(reference)

    def _begin(self) -> None:
        if self._control is not None and self._pid == os.getpid():
            return
        self._pid = os.getpid()
        self._references = {}
        self._by_handle = {}
        self._connected, self._gone = anyio.Event(), anyio.Event()
        if self._telemetry is None:
            self._telemetry = Telemetry()
        self._control = Link(
            current_loop(),
            self._path,
            keep=True,
            on_connected=self._on_connected,
            on_ended=self._on_ended,
            on_pushed=self._on_pushed,
            on_refused=self._on_refused,
        )

    def _follow(self, reference: SidecarReference) -> None:
        self._references[reference.ref] = reference
        reference.task = self._engine.start_soon(self._live, reference, name=f"modelbox sidecar {reference.ref}")

    def _forget(self, reference: SidecarReference) -> None:
        self._references.pop(reference.ref, None)
        if reference.task is not None:
            reference.task.cancel()
        if self._by_handle.pop(reference.handle, None) is reference:
            connection = self._control.connection if self._control is not None else None
            if connection is not None:
                connection.tell(Kind.CLOSE, {}, target=reference.handle)
        reference.close()

    async def _live(self, reference: SidecarReference) -> None:
        """Keeps a reference open on whatever connection there is; one task for each."""
        began = monotonic()
        while True:
            connection = self._control.connection if self._control is not None else None
            if connection is None:
                left = None if reference.ready.is_set() else self._patience_s - (monotonic() - began)
                with anyio.move_on_after(left):
                    await self._connected.wait()
                    continue
                trouble = self._control.trouble if self._control is not None else ""
                self._fail(reference, no_sidecar(self._path, trouble, self._patience_s))
                return
            gone = self._gone
            try:
                await self._open(connection, reference)
            except TransportError as exc:
                if connection.closed:
                    continue  # asked again on the next one
                if not reference.ready.is_set():
                    self._fail(reference, exc)
                    return
                await anyio.sleep(_RETRY_S)
                continue
            except ModelBoxError as exc:
                if not reference.ready.is_set():
                    self._fail(reference, exc)
                    return
                _log.warning("%s: the sidecar does not serve it now: %s", reference.ref, exc)
                await anyio.sleep(_RETRY_S)
                continue
            reference.ready.set()
            await gone.wait()

    def _fail(self, reference: SidecarReference, error: Exception) -> None:
        reference.error = error
        self._references.pop(reference.ref, None)
        reference.ready.set()

    async def _open(self, connection: Connection, reference: SidecarReference) -> None:
        answered = anyio.Event()
        errors: list[Exception] = []

        def opened(handle: int, state: dict[str, Any]) -> None:
            reference.handle = handle
            self._by_handle[handle] = reference
            reference.serving(connection.versions[int(state["version"])], state)
            reference.reopened()
            answered.set()

        def failed(error: Exception) -> None:
            errors.append(error)
            answered.set()

        connection.ask(Kind.OPEN, {"ref": str(reference.ref), "events": True}, Question(opened, failed))
        await answered.wait()
        if errors:
            raise errors[0]

    def _on_connected(self, connection: Connection) -> None:
        self._gone = anyio.Event()
        self._connected.set()

    def _on_ended(self, connection: Connection) -> None:
        self._connected = anyio.Event()
        self._gone.set()
        self._by_handle.clear()
        for reference in self._references.values():
            if reference.ready.is_set():
                reference.set_stale(True)

    def _on_refused(self, error: AuthError) -> None:
        for reference in list(self._references.values()):
            if not reference.ready.is_set():
                self._fail(reference, error)
                if reference.task is not None:
                    reference.task.cancel()

    def _on_pushed(self, kind: int, target: int, body: bytearray) -> None:
        reference = self._by_handle.get(target)
        connection = self._control.connection if self._control is not None else None
        if reference is None or connection is None:
            return
        news = json_body(body)
        if kind == Kind.STATE:
            version = connection.versions.get(int(news["version"]))
            if version is not None:
                reference.serving(version, news)
            return
        event = _event(news)
        if event is not None and not isinstance(event, StaleChanged):
            reference.emit(event)


def _event(news: Mapping[str, Any]) -> ModelEvent | None:
    """An event from its JSON; None for one of a kind that is not known here."""
    name = news.get("type")
    cls = getattr(events, name, None) if isinstance(name, str) and name in events.__all__ else None
    if not isinstance(cls, type) or not issubclass(cls, ModelEvent):
        return None
    try:
        return cls(**{key: value for key, value in news.items() if key in cls.__dataclass_fields__})
    except TypeError:
        return None
