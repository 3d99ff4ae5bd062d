"""Models that run in a sidecar: the same handle as in the process, without a runtime here.

Owns the application's view of its references (`SidecarReference`), the call path (`SidecarRunner`) and leases. One link
in the engine hears what happens to the references; each event loop and each thread that calls has a link of its own, so
that calls never cross threads. Loading, swapping and queueing happen in the sidecar; what is counted here is what this
application sees.

Invariants: what `LiveModel` says of itself comes from the engine's link, in the sidecar's own order: an event is
delivered after the state that it tells of. While the sidecar cannot be reached the reference is stale, and calls wait.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Mapping
from functools import partial
from time import monotonic, perf_counter_ns
from types import TracebackType
from typing import Any

import anyio

from modelbox import _fork, events
from modelbox._frames import Kind, json_body
from modelbox._loops import Loop, Waiter, current_loop
from modelbox._transport.sidecar_link import Call, Connection, Link, Opener, Question, RemoteVersion, no_sidecar
from modelbox._transport.sidecar_thread import ThreadLoop
from modelbox.config import ClientConfig
from modelbox.engine import Engine, EngineTask
from modelbox.errors import (
    AuthError,
    ClientClosed,
    DeadlineExceeded,
    InputError,
    LeaseReleased,
    ModelBoxError,
    TransportError,
    Unavailable,
    UsageError,
)
from modelbox.events import ModelEvent, Observer, ReloadSucceeded, StaleChanged
from modelbox.loader.ledger import CallLabels
from modelbox.loader.reload import ModelState
from modelbox.loader.runner import Lease, Prediction
from modelbox.loader.settings import LoadOptions
from modelbox.loader.stats import CallStats, Outcome
from modelbox.model import LiveModel
from modelbox.objects import ModelVersion
from modelbox.otel import Telemetry
from modelbox.refs import ModelRef
from modelbox.signature import Signature

__all__ = ("SidecarHost", "SidecarLease", "SidecarReference", "SidecarRunner")

_log = logging.getLogger(__name__)

_RETRY_S = 1.0


class _Local(threading.local):
    link: Link | None = None
    thread_link: Link | None = None


class _Links:
    """The links of one process to one sidecar, one for each loop or thread."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._local = _Local()
        self._lock = threading.Lock()
        self._all: set[Link] = set()
        self._closed = False
        _fork.reset_in_child(self)

    def here(self) -> Link:
        """The link of the running event loop."""
        link = self._local.link
        loop = current_loop()
        if link is not None and link.loop is loop:
            return link
        link = self._local.link = self._make(loop, link)
        return link

    def thread(self) -> Link:
        """The link of a thread whose loop, if it has one, is not to be used."""
        link = self._local.thread_link
        if link is None:
            link = self._local.thread_link = self._make(ThreadLoop(), None)
        return link

    def is_here(self, link: Link) -> bool:
        """Whether ``link`` may be used by the caller directly."""
        return link is self._local.link or link is self._local.thread_link

    def close(self) -> None:
        """Ends all links, each on its own loop."""
        with self._lock:
            self._closed = True
            links, self._all = self._all, set()
        for link in links:
            if isinstance(link.loop, ThreadLoop):
                link.abandon()
                continue
            # RuntimeError: the loop has ended.
            try:
                link.loop.call_soon_threadsafe(link.close)
            except RuntimeError:
                link.abandon()

    def _make(self, loop: Loop, before: Link | None) -> Link:
        link = Link(loop, self._path)
        with self._lock:
            if self._closed:
                raise ClientClosed("the client is closed")
            if before is not None:
                # Its loop has ended: this thread runs another one.
                self._all.discard(before)
                before.abandon()
            self._all.add(link)
        return link

    def _after_fork_in_child(self) -> None:
        # The parent's connections: closing the descriptors here leaves them to the parent alone.
        for link in self._all:
            link.abandon()
        self._lock = threading.Lock()
        self._all = set()
        self._local = _Local()


class SidecarRunner:
    """Calls of one reference, answered by the sidecar.

    Attributes:
        active: What answers there, as far as is known here; None before the first answer and after `close`.
        answer_bytes: See `Caller`.
    """

    def __init__(self, ref: ModelRef, links: _Links, telemetry: Telemetry, patience_s: float) -> None:
        self.ref = ref
        self.ref_text = str(ref)
        self.active: RemoteVersion | None = None
        self.answer_bytes = 0
        self._links = links
        self._telemetry = telemetry
        self._patience_s = patience_s

    async def predict(self, inputs: Mapping[str, Any], *, timeout: float | None = None) -> Prediction:
        """See `LiveModel.predict`."""
        if timeout is not None:
            with anyio.move_on_after(timeout):
                return await self._predict(inputs, None, timeout)
            raise DeadlineExceeded(f"no answer within {timeout:g} s", timeout_s=timeout)
        return await self._predict(inputs, None, None)

    async def _predict(
        self, inputs: Mapping[str, Any], lease: SidecarLease | None, timeout: float | None
    ) -> Prediction:
        start_ns = perf_counter_ns()
        link = self._links.here()
        call = self._call(inputs, lease, timeout, link.loop.make_waiter(), start_ns)
        link.submit(call)
        try:
            prediction = await call.waiter
        except BaseException as exc:
            if not isinstance(exc, Exception):
                link.cancel(call)
            self._record_failure(exc, start_ns)
            raise
        version = call.version
        assert version is not None
        (version.stats or self._stats(version)).record_ok(perf_counter_ns() - start_ns)
        return prediction

    def predict_sync(self, inputs: Mapping[str, Any], *, timeout: float | None = None) -> Prediction:
        """See `LiveModel.predict_sync`."""
        return self._predict_sync(inputs, None, timeout)

    def _predict_sync(self, inputs: Mapping[str, Any], lease: SidecarLease | None, timeout: float | None) -> Prediction:
        start_ns = perf_counter_ns()
        link = self._links.thread()
        loop = link.loop
        assert isinstance(loop, ThreadLoop)
        call = self._call(inputs, lease, timeout, loop.make_waiter(), start_ns)
        link.submit(call)
        try:
            prediction: Prediction = loop.wait(call.waiter, until=None if timeout is None else monotonic() + timeout)
        except BaseException as exc:
            link.cancel(call)
            self._record_failure(exc, start_ns)
            raise
        version = call.version
        assert version is not None
        (version.stats or self._stats(version)).record_ok(perf_counter_ns() - start_ns)
        return prediction

    def lease(self) -> Lease:
        """See `LiveModel.lease`."""
        return SidecarLease(self, self._links)

    def _call(
        self,
        inputs: Mapping[str, Any],
        lease: SidecarLease | None,
        timeout: float | None,
        waiter: Waiter[Prediction],
        start_ns: int,
    ) -> Call:
        active = self.active if lease is None else lease.held
        if active is None:
            raise ClientClosed(f"{self.ref} was closed")
        try:
            feed = active.check(inputs)
        except InputError as exc:
            self._record_failure(exc, start_ns)
            raise
        if timeout is None:
            return Call(self, feed, active.packer, waiter, self._patience_s, 0, lease)
        return Call(self, feed, active.packer, waiter, timeout, max(int(timeout * 1e3), 1), lease)

    def _stats(self, version: RemoteVersion) -> CallStats:
        labels = CallLabels(model=self.ref.path, version=version.version.version, alias=self.ref.alias or "")
        stats = version.stats = self._telemetry.ledger.stats(labels)
        return stats

    def _record_failure(self, exc: BaseException, start_ns: int) -> None:
        active = self.active
        if active is None:
            return
        if isinstance(exc, InputError):
            outcome = Outcome.INVALID
        elif isinstance(exc, Exception) and not isinstance(exc, DeadlineExceeded):
            outcome = Outcome.ERROR
        else:
            outcome = Outcome.CANCELLED
        (active.stats or self._stats(active)).record(outcome, perf_counter_ns() - start_ns)


class SidecarLease(Lease):
    """One version in the sidecar, and the promise that it stays open there.

    The lease belongs to the connection that took it. When that breaks it is taken again, if the same version still
    answers; otherwise its calls end with `RunTerminated`.
    """

    __slots__ = ("_connection", "_link", "_links", "_number", "_owner", "_retaking", "held")

    def __init__(self, runner: SidecarRunner, links: _Links) -> None:
        self._owner = runner
        self._links = links
        self.held: RemoteVersion | None = None
        self._number = 0
        self._connection: Connection | None = None
        self._link: Link | None = None
        self._retaking: list[Call] | None = None

    @property
    def session(self) -> Any:
        """There is none in this process.

        Raises:
            UsageError: Always.
        """
        raise UsageError("the session lives in the sidecar: call lease.predict instead")

    @property
    def version(self) -> ModelVersion:
        """What answers.

        Raises:
            LeaseReleased: The lease has ended, or was not entered.
        """
        return self._version().version

    @property
    def signature(self) -> Signature:
        """Its inputs and outputs."""
        return self._version().signature

    async def predict(self, inputs: Mapping[str, Any]) -> Prediction:
        """Runs the leased version."""
        self._version()
        return await self._owner._predict(inputs, self, None)

    def predict_sync(self, inputs: Mapping[str, Any]) -> Prediction:
        """The same for code that is not async."""
        self._version()
        return self._owner._predict_sync(inputs, self, None)

    def number_on(self, connection: Connection, call: Call) -> int | None:
        """See `LeaseHolder`."""
        held = self._connection
        if held is not None and not held.closed:
            return self._number
        if self._retaking is None:
            self._retaking = [call]
            self._take(
                connection,
                self._retaken,
                partial(self._retake_failed, connection),
                digest=self._version().version.digest,
            )
        else:
            self._retaking.append(call)
        return None

    def _retaken(self, connection: Connection, *_: object) -> None:
        calls, self._retaking = self._retaking, None
        for call in calls or ():
            if not call.waiter.done():
                connection.submit(call)

    def _retake_failed(self, connection: Connection, error: Exception) -> None:
        calls, self._retaking = self._retaking, None
        if isinstance(error, Unavailable):
            connection.again(calls or ())
            return
        for call in calls or ():
            call.fail(error)

    def _take(
        self,
        connection: Connection,
        then: Callable[..., None],
        failed: Callable[[Exception], None],
        *,
        digest: str = "",
    ) -> None:
        handle = connection.handle_of(self._owner.ref_text)

        def leased(target: int, body: dict[str, Any]) -> None:
            self._connection = connection
            self._number = int(body["lease"])
            self.held = connection.versions[target]
            then(connection)

        assert handle is not None
        connection.ask(Kind.LEASE, {"digest": digest} if digest else {}, Question(leased, failed), target=handle)

    def _version(self) -> RemoteVersion:
        if self.held is None:
            raise LeaseReleased("the lease is not held: use it inside of the `with` block")
        return self.held

    def _begin(self, link: Link) -> Waiter[None]:
        if self.held is not None:
            raise UsageError("the lease is held already: take another one")
        waiter: Waiter[None] = link.loop.make_waiter()
        self._link = link

        def done(*_: object) -> None:
            if not waiter.done():
                waiter.set_result(None)

        def failed(error: Exception) -> None:
            if isinstance(error, Unavailable):
                link.again([opener], broken=True)
            elif not waiter.done():
                waiter.set_exception(error)

        opener = Opener(
            self._owner, waiter, self._owner._patience_s, lambda connection: self._take(connection, done, failed)
        )
        link.submit(opener)
        return waiter

    def __enter__(self) -> Lease:
        link = self._links.thread()
        loop = link.loop
        assert isinstance(loop, ThreadLoop)
        loop.wait(self._begin(link))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        held, self.held = self.held, None
        connection, link, number = self._connection, self._link, self._number
        if held is None or connection is None or link is None:
            return
        if self._links.is_here(link):
            connection.tell(Kind.RELEASE, {"lease": number})
            connection.socket.flush()
        else:
            # RuntimeError: its loop has ended, and the connection with it.
            try:
                link.loop.call_soon_threadsafe(partial(connection.tell, Kind.RELEASE, {"lease": number}))
            except RuntimeError:
                return

    async def __aenter__(self) -> Lease:
        waiter = self._begin(self._links.here())
        try:
            await waiter
        except BaseException:
            # It may have been taken, or be on its way: either way nobody will use it.
            self.__exit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, exc, trace)


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
        self._links = _Links(self._path)
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
