"""The references that an application has open on a connection, and what it has been told of them.

Owns handles, versions by number, and the news of both. Finds models through the `SocketServer`; runs nothing.

Invariants: a version is told of before anything refers to its number. A state is told of before the event that made it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from modelbox._frames import Kind, json_frame
from modelbox._loops import Loop
from modelbox._tensors import Packer
from modelbox.errors import LimitError, ModelBoxError, NotFoundError, ServerBusy
from modelbox.events import ModelEvent
from modelbox.loader.reload import Reloader
from modelbox.loader.runner import Prediction, Runner
from modelbox.model import LiveModel, ModelState
from modelbox.objects import ModelVersion, to_json
from modelbox.refs import ModelRef
from modelbox.signature import DTYPES, Signature, TensorSpec

if TYPE_CHECKING:
    from modelbox.sidecar.service import ServedModel

__all__ = ("Handle", "Handles", "KnownVersion")

_MAX_VERSIONS = 64
_MAX_HANDLES = 1024


class Handle:
    """A reference that the application opened on this connection.

    Attributes:
        served: What serves it; another one once it was unloaded and loaded again.
        runner: Of what serves it; None before `attach` and after `detach`.
    """

    __slots__ = ("_find", "live", "number", "observer", "reloader", "runner", "served", "state")

    def __init__(self, number: int, served: ServedModel, find: Callable[[ModelRef], ServedModel | None]) -> None:
        self.number = number
        self.served = served
        self.live: LiveModel | None = None
        self.runner: Runner | None = None
        self.reloader: Reloader | None = None
        self.observer: Callable[[ModelEvent], None] | None = None
        self.state: tuple[object, ...] = ()
        self._find = find

    def attach(self) -> Runner:
        """The runner of what serves the reference now.

        Raises:
            NotFoundError: It was taken out of service.
        """
        live = self.served.live
        if live is None or live.state is ModelState.CLOSED:
            served = self._find(self.served.ref)
            live = served.live if served is not None else None
            if served is None or live is None or live.state is ModelState.CLOSED:
                raise NotFoundError(f"{self.served.ref} is not served by this sidecar any more")
            self.served = served
        if live is not self.live:
            self.detach()
            self.live = live
            # In the sidecar, behind a handle there is always the loader's own pair.
            self.reloader = cast(Reloader, live._reloader)
            self.runner = self.reloader.runner
            if self.observer is not None:
                self.reloader.observers.append(self.observer)
        assert self.runner is not None
        return self.runner

    def detach(self) -> None:
        """Hears no more events."""
        if self.reloader is not None and self.observer in self.reloader.observers:
            self.reloader.observers.remove(self.observer)
        self.live = self.runner = self.reloader = None


class KnownVersion:
    """A version that the application has been told of on this connection."""

    __slots__ = ("number", "packer", "version")

    def __init__(self, number: int, version: ModelVersion, packer: Packer) -> None:
        self.number = number
        self.version = version
        self.packer = packer


class Handles:
    """The handles of one connection.

    Args:
        write: Takes whole frames.
        loop: Of the connection.
        find: What serves a reference now, if anything does.

    Attributes:
        known: Versions that the application has been told of, by the identity of the object.
    """

    __slots__ = ("_find", "_handles", "_loop", "_numbers", "_write", "known")

    def __init__(
        self, write: Callable[[bytes], None], loop: Loop, find: Callable[[ModelRef], ServedModel | None]
    ) -> None:
        self._write = write
        self._loop = loop
        self._find = find
        self._numbers = itertools.count(1)
        self._handles: dict[int, Handle] = {}
        self.known: dict[int, KnownVersion] = {}

    def get(self, number: int) -> Handle | None:
        """A handle by its number."""
        return self._handles.get(number)

    def open(self, id_: int, served: ServedModel, *, events: bool) -> None:
        """Opens ``served`` and answers the question ``id_`` with its handle.

        Raises:
            LimitError: There are too many.
            ModelBoxError: It does not answer.
        """
        if len(self._handles) >= _MAX_HANDLES:
            raise LimitError(f"a connection may have {_MAX_HANDLES} handles")
        handle = Handle(next(self._numbers), served, self._find)
        if events:
            handle.observer = self._observer(handle)
        handle.attach()
        try:
            state = self._tell_version(handle)
        except BaseException:
            handle.detach()
            raise
        self._handles[handle.number] = handle
        handle.state = tuple(state.values())
        self._write(json_frame(Kind.OPENED, state, id_, handle.number))

    def close(self, number: int) -> None:
        """Forgets a handle; harmless when there is none."""
        handle = self._handles.pop(number, None)
        if handle is not None:
            handle.detach()

    def clear(self) -> None:
        """Forgets all."""
        for handle in self._handles.values():
            handle.detach()
        self._handles.clear()
        self.known.clear()

    def tell_news(self) -> None:
        """Tells of edits and states that come without an event; called every now and then."""
        # The socket may turn out to be broken with any frame, and then nothing is open any more.
        for handle in list(self._handles.values()):
            if handle.observer is not None and self._handles.get(handle.number) is handle:
                self._tell_state(handle)

    def introduce(self, handle: Handle, version: ModelVersion, signature: Signature) -> KnownVersion:
        """Tells the application of a version before anything refers to it."""
        if len(self.known) >= _MAX_VERSIONS:
            self.known.clear()
        known = self.known[id(version)] = KnownVersion(next(self._numbers), version, Packer(signature.outputs))
        body = {"version": to_json(version), "signature": _signature_json(signature)}
        self._write(json_frame(Kind.VERSION, body, known.number, handle.number))
        return known

    def known_version(self, handle: Handle, prediction: Prediction) -> KnownVersion:
        """The version that gave ``prediction``, which the application knows afterwards."""
        known = self.known.get(id(prediction.version))
        if known is not None:
            return known
        active = handle.runner.active if handle.runner is not None else None
        signature = active.signature if active is not None and active.version is prediction.version else None
        if signature is None:
            signature = Signature(inputs=(), outputs=tuple(_spec(name, value) for name, value in prediction.items()))
        return self.introduce(handle, prediction.version, signature)

    def _observer(self, handle: Handle) -> Callable[[ModelEvent], None]:
        loop = self._loop

        def observe(event: ModelEvent) -> None:
            # RuntimeError: the loop has ended.
            try:
                loop.call_soon_threadsafe(self._event, handle, event)
            except RuntimeError:
                return

        return observe

    def _event(self, handle: Handle, event: ModelEvent) -> None:
        if self._handles.get(handle.number) is handle:
            self._tell_state(handle)
            self._write(json_frame(Kind.EVENT, {"type": type(event).__name__, **to_json(event)}, target=handle.number))

    def _tell_state(self, handle: Handle) -> None:
        """Tells what serves now, where that is news."""
        try:
            handle.attach()
            state = self._tell_version(handle)
        except ModelBoxError:
            return
        if tuple(state.values()) != handle.state:
            handle.state = tuple(state.values())
            self._write(json_frame(Kind.STATE, state, target=handle.number))

    def _tell_version(self, handle: Handle) -> dict[str, Any]:
        assert handle.runner is not None
        assert handle.reloader is not None
        active = handle.runner.active
        if active is None:
            raise ServerBusy(f"{handle.served.ref} does not answer now", retry_after_s=1.0)
        reloader = handle.reloader
        known = self.known.get(id(active.version)) or self.introduce(handle, active.version, active.signature)
        return {"state": reloader.state.value, "stale": reloader.stale, "version": known.number}


def _spec(name: str, value: Any) -> TensorSpec:
    if isinstance(value, np.ndarray):
        dtype = "string" if value.dtype.kind in "UO" else value.dtype.name
        if dtype in DTYPES:
            return TensorSpec(name=name, dtype=dtype, shape=tuple(value.shape))
    return TensorSpec(name=name, dtype="seq(unknown)", shape=())


def _signature_json(signature: Signature) -> dict[str, Any]:
    def specs(items: Sequence[TensorSpec]) -> list[dict[str, Any]]:
        return [{"name": item.name, "dtype": item.dtype, "shape": list(item.shape)} for item in items]

    return {"inputs": specs(signature.inputs), "outputs": specs(signature.outputs)}
