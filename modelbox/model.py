"""The handle that an application holds: one reference that always answers with what it points to now.

Owns nothing but its subscriptions: sessions, downloads and swaps belong to the loader, which lives in the engine's
thread or in a sidecar. `LiveModel.predict` never goes through the engine; it runs on the caller's loop, on what is
active at that moment. The protocols below are all that the handle knows of either.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Coroutine, Mapping
from types import TracebackType
from typing import Any, Protocol

from numpy.typing import ArrayLike

from modelbox import _fork
from modelbox._loops import Loop, Waiter, current_loop
from modelbox.errors import ClientClosed, FormatRefused
from modelbox.events import DownloadProgress, ModelEvent, Observer
from modelbox.loader.reload import ModelState
from modelbox.loader.runner import Lease, Prediction
from modelbox.objects import JsonValue, ModelVersion
from modelbox.otel import ModelMeter, is_sampled, predict_span
from modelbox.refs import Digest, ModelRef
from modelbox.signature import Signature

__all__ = ("EventStream", "LiveModel", "ModelState")

_MAX_EVENTS = 256


class Active(Protocol):
    """What answers at this moment: a `Generation` in this process, or a version that a sidecar has told of."""

    version: ModelVersion

    @property
    def signature(self) -> Signature:
        """Its inputs and outputs."""


class Runs(Protocol):
    """The call path: `Runner` in this process, or the way to a sidecar."""

    @property
    def active(self) -> Active | None:
        """What answers; None once closed."""

    def predict(self, inputs: Mapping[str, Any], *, timeout: float | None = None) -> Coroutine[Any, Any, Prediction]:
        """See `LiveModel.predict`."""

    def predict_sync(self, inputs: Mapping[str, Any]) -> Prediction:
        """See `LiveModel.predict_sync`."""

    def lease(self) -> Lease:
        """See `LiveModel.lease`."""


class Follows(Protocol):
    """A reference that is kept in service: `Reloader` in this process, or what a sidecar says of it."""

    ref: ModelRef
    observers: list[Observer]

    @property
    def runner(self) -> Runs:
        """Its call path."""

    @property
    def state(self) -> ModelState:
        """What it is doing."""

    @property
    def stale(self) -> bool:
        """Whether a newer version may exist that nobody here has heard of."""


class Host(Protocol):
    """Whoever made a handle, and takes its reference back."""

    async def release(self, reference: Any) -> None:
        """Gives a handle's reference back."""

    def release_sync(self, reference: Any) -> None:
        """The same for code that is not async."""

    def forget(self, reference: Any) -> None:
        """The same without waiting; for handles that nobody closed."""

    def adopt(self, model: LiveModel, inherited: Any) -> None:
        """In a forked child: follows what ``model`` served in the parent process."""


class LiveModel:
    """A loaded reference; made by `modelbox.load` or `Client.load`.

    Everything it says of itself (`version`, `digest`, `signature`, …) is true for the version that answers at this
    moment. Where several calls or values must belong to one version, hold a `lease`.

    Concurrency: may be shared by tasks, threads and event loops (asyncio, uvloop, trio), and goes on working in a
    forked child.
    """

    def __init__(self, reloader: Follows, host: Host) -> None:
        self._host = host
        self._hold(reloader)
        self._runner = reloader.runner
        self._inboxes: weakref.WeakSet[_Inbox] = weakref.WeakSet()
        self._closed = False
        self._inherited = False
        self._meter = ModelMeter(reloader.ref, lambda: self._active().version.version)
        _fork.reset_in_child(self)

    # -- what answers now

    @property
    def ref(self) -> str:
        """The reference as it was asked for, in its canonical form."""
        return str(self._reloader.ref)

    @property
    def version(self) -> int:
        """Number of the version that answers now."""
        return self._active().version.version

    @property
    def digest(self) -> Digest:
        """Digest of its manifest."""
        return self._active().version.digest

    @property
    def signature(self) -> Signature:
        """Its inputs and outputs, as the session reports them."""
        return self._active().signature

    @property
    def tensors(self) -> Mapping[str, Any]:
        """Of a version of safetensors: its tensors by name, as read-only numpy arrays.

        Those of the version that is in service now: take the mapping once for what belongs together. Arrays stay good
        after a newer version replaced theirs.

        Raises:
            FormatRefused: It has a graph, or runs in a sidecar.
        """
        from modelbox.loader.tensor_files import TensorFiles

        session = getattr(self._active(), "session", None)
        if not isinstance(session, TensorFiles):
            raise FormatRefused(f"{self.ref} holds no tensors of its own here: call `predict`")
        return session.raw

    @property
    def metadata(self) -> Mapping[str, JsonValue]:
        """Its metadata, as edited up to now."""
        return self._active().version.metadata

    @property
    def info(self) -> ModelVersion:
        """All that the registry says of it: manifest, labels, metrics."""
        return self._active().version

    @property
    def state(self) -> ModelState:
        """``active``, or ``reloading`` while a newer version is made ready, or ``closed``."""
        return ModelState.CLOSED if self._closed else self._reloader.state

    @property
    def stale(self) -> bool:
        """Whether the server (or the sidecar) cannot be reached, so that a newer version may exist."""
        return self._reloader.stale

    @property
    def meter(self) -> ModelMeter:
        """Business metrics, labelled with model, version and alias for you."""
        return self._meter

    # -- predictions

    def predict(
        self, inputs: Mapping[str, ArrayLike], *, timeout: float | None = None
    ) -> Coroutine[Any, Any, Prediction]:
        """Runs the model.

        Args:
            inputs: An array for each input of `signature`, C-contiguous or not; the dtype must be the signature's
                (Python numbers and lists are converted), the rank and all fixed dimensions must match.
            timeout: Seconds to wait for a turn; None waits for ever. A run that has begun is not ended by it.

        Returns:
            An array for each output, by name, and as ``.version`` the one version that gave them all.

        Raises:
            InputError: Names, dtypes or shapes do not fit; says for each what was expected and what came.
            DeadlineExceeded: No turn within ``timeout``.
            LoadError: The runtime failed in the middle of the graph.

        Cancellation: a call that waits for its turn leaves the queue; one that runs ends unseen. The lease is given
        back either way.
        """
        if self._inherited:
            self._rejoin()
        if is_sampled():
            return self._predict_in_span(inputs, timeout)
        return self._runner.predict(inputs, timeout=timeout)

    def predict_sync(self, inputs: Mapping[str, ArrayLike]) -> Prediction:
        """`predict` for code that is not async; runs in the calling thread."""
        if self._inherited:
            self._rejoin()
        return self._runner.predict_sync(inputs)

    def lease(self) -> Lease:
        """Holds on to the version that answers now: ``async with model.lease() as lease: await lease.predict(…)``.

        Works as ``with`` and ``async with``. For calls that must all be answered by one version, such as those that
        carry a model's state from one to the next. Keep it short: a replaced version stays in memory until its last
        lease ends, and is ended by force after the drain timeout.
        """
        if self._inherited:
            self._rejoin()
        return self._runner.lease()

    # -- events

    def events(self) -> EventStream:
        """What happens to the reference from now on: ``async for event in model.events(): …``.

        Reloads, refusals, loss of contact. At most 256 undelivered events are kept: of a reader that is slower, the
        oldest are dropped, and of several `DownloadProgress` in a row only the newest is kept in any case. Ends when
        the handle is closed. Call it on the event loop that reads it.
        """
        inbox = _Inbox(current_loop(), self._reloader.observers)
        self._inboxes.add(inbox)
        return EventStream(inbox)

    # -- life

    async def aclose(self) -> None:
        """Gives the reference back; with the last handle its session is freed. Idempotent.

        Cancellation: the handle is closed all the same, the freeing goes on in the engine.
        """
        if not self._closed:
            self._closed = True
            self._forgotten.detach()
            for inbox in list(self._inboxes):
                inbox.end()
            await self._host.release(self._reloader)

    def close_sync(self) -> None:
        """`aclose` for code that is not async."""
        if not self._closed:
            self._closed = True
            self._forgotten.detach()
            for inbox in list(self._inboxes):
                inbox.end()
            self._host.release_sync(self._reloader)

    async def __aenter__(self) -> LiveModel:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        active = self._runner.active
        version = active.version.version if active is not None else None
        return f"<LiveModel {self.ref} version={version} state={self.state}{' stale' if self.stale else ''}>"

    def _active(self) -> Active:
        active = self._runner.active
        if active is None:
            raise ClientClosed(f"{self.ref} was closed")
        return active

    async def _predict_in_span(self, inputs: Mapping[str, ArrayLike], timeout: float | None) -> Prediction:
        with predict_span(self._reloader.ref) as answered_by:
            prediction = await self._runner.predict(inputs, timeout=timeout)
            answered_by(prediction.version.version)
            return prediction

    def _hold(self, reloader: Follows) -> None:
        self._reloader = reloader
        # A handle that nobody closes gives its reference back when it is forgotten.
        self._forgotten = weakref.finalize(self, self._host.forget, reloader)
        self._forgotten.atexit = False

    def _after_fork_in_child(self) -> None:
        self._inherited = not self._closed
        self._forgotten.detach()

    def _rejoin(self) -> None:
        """First use in a forked child: serve what was inherited, and follow the reference from here on."""
        self._inherited = False
        self._host.adopt(self, self._reloader)


class EventStream:
    """An endless iterator over a reference's events, for one task; see `LiveModel.events`."""

    def __init__(self, inbox: _Inbox) -> None:
        self._inbox = inbox

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> ModelEvent:
        event = await self._inbox.next()
        if event is None:
            raise StopAsyncIteration
        return event

    def close(self) -> None:
        """Stops listening; also done when the stream is forgotten. Idempotent."""
        self._inbox.end()

    def __del__(self) -> None:
        self._inbox.end()


class _Inbox:
    """A bounded queue from the engine's thread to one reader on its own loop."""

    def __init__(self, loop: Loop, observers: list[Observer]) -> None:
        self._loop = loop
        self._observers = observers
        self._lock = threading.Lock()
        self._events: deque[ModelEvent] = deque(maxlen=_MAX_EVENTS)
        self._waiter: Waiter[None] | None = None
        self._ended = False
        observers.append(self)

    def __call__(self, event: ModelEvent, /) -> None:
        """Takes an event; called in the engine's thread."""
        with self._lock:
            if isinstance(event, DownloadProgress) and self._events and isinstance(self._events[-1], DownloadProgress):
                self._events.pop()
            self._events.append(event)
        self._poke()

    def end(self) -> None:
        """Takes nothing more; the reader may finish what is queued. Idempotent."""
        if not self._ended:
            self._ended = True
            with contextlib.suppress(ValueError):
                self._observers.remove(self)
            self._poke()

    def _poke(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._wake)
        except RuntimeError:
            self._ended = True  # the reader's loop has ended

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> ModelEvent | None:
        """The oldest undelivered event, or None at the end."""
        while True:
            with self._lock:
                if self._events:
                    return self._events.popleft()
            if self._ended:
                return None
            self._waiter = self._loop.make_waiter()
            if not self._events and not self._ended:
                await self._waiter
