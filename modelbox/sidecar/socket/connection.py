"""One application's connection: its handles, leases and segments, and the way of each call through it.

Owns everything that ends with the connection. Short runs happen right where their frame is read, and calls that share
a run are handed to the loader's collector: neither needs a task. What runs long goes through the model's queue
(`ServedModel.predict`) in a task of its own.

Invariants: each `Kind.INFER` is answered exactly once, also after a cancel, so that the application knows when it may
use a segment again. A frame with wrong content is answered with an error and changes nothing else; a frame that breaks
the framing ends the connection. Answers that the application does not read stop its next calls from being read.
"""

from __future__ import annotations

import itertools
import logging
import struct
from collections.abc import Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from time import monotonic, perf_counter_ns
from typing import TYPE_CHECKING, Any, cast

import anyio
import numpy as np

from modelbox import __version__
from modelbox._frame_socket import FrameSocket
from modelbox._frames import (
    HEADER,
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    PROTOCOL,
    Flag,
    Frame,
    Kind,
    json_body,
    json_frame,
    small_frame,
)
from modelbox._tensors import Layout, Packer, parse_layout, parts_of
from modelbox.errors import (
    ClientClosed,
    DeadlineExceeded,
    InvalidError,
    LimitError,
    ModelBoxError,
    NotFoundError,
    ProtocolError,
    RunTerminated,
    ServerBusy,
    UsageError,
)
from modelbox.events import ModelEvent
from modelbox.loader.batching import Entry
from modelbox.loader.generation import Generation
from modelbox.loader.reload import Reloader
from modelbox.loader.runner import Lease, Prediction, Runner
from modelbox.model import LiveModel, ModelState
from modelbox.objects import ModelVersion, to_json
from modelbox.sidecar.socket.linger import Linger
from modelbox.sidecar.socket.segments import Segments, settled
from modelbox.signature import DTYPES, Signature, TensorSpec

if TYPE_CHECKING:
    from modelbox.sidecar.service import ServedModel
    from modelbox.sidecar.socket.server import SocketServer

__all__ = ("Connection",)

_log = logging.getLogger(__name__)

_TURN_NS = 2_000_000
"""Work for one connection after which the loop's other tasks come first."""
_CROWDED_NS = 5_000_000
"""How long after a call on another connection calls are expected to come in company."""
_MAX_CALLS = 4096
_MAX_QUEUED_BYTES = 4 << 20
_MAX_LAYOUTS = 256
_MAX_VERSIONS = 64
_MAX_HANDLES = 1024
_MAX_LEASES = 1024
_FIXED = struct.Struct("<QIHH")
_FIXED_BYTES = _FIXED.size
_SHARED_FROM = 64 << 10
# Looking up a member of an enumeration costs more than comparing two numbers.
_INFER, _RESULT = int(Kind.INFER), int(Kind.RESULT)


class Handle:
    """A reference that the application opened on this connection."""

    __slots__ = ("live", "number", "observer", "reloader", "runner", "served", "state", "version")

    def __init__(self, number: int, served: ServedModel) -> None:
        self.number = number
        self.served = served
        self.live: LiveModel | None = None
        self.runner: Runner | None = None
        self.reloader: Reloader | None = None
        self.observer: Callable[[ModelEvent], None] | None = None
        self.version: ModelVersion | None = None
        self.state: tuple[object, ...] = ()

    def attach(self) -> Runner:
        """The runner of what serves the reference now.

        Raises:
            ServerBusy: It does not answer yet.
            NotFoundError: It was taken out of service.
        """
        live = self.served.live
        if live is None or live.state is ModelState.CLOSED:
            raise NotFoundError(f"{self.served.ref} is not served by this sidecar any more")
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


class _Known:
    """A version that the application has been told of on this connection."""

    __slots__ = ("number", "packer", "version")

    def __init__(self, number: int, version: ModelVersion, packer: Packer) -> None:
        self.number = number
        self.version = version
        self.packer = packer


class _Call:
    """A call in the loader's hands; a `DirectCall`."""

    __slots__ = ("_connection", "_done", "_handle", "_id", "_into", "_runner", "entry", "generation")

    def __init__(self, connection: Connection, handle: Handle, runner: Runner, id_: int, into: int) -> None:
        self._connection = connection
        self._handle = handle
        self._runner = runner
        self._id = id_
        self._into = into
        self._done = False
        self.generation: Generation | None = None
        self.entry: Entry | None = None

    def done(self) -> bool:
        """Whether it was answered."""
        return self._done

    def set_result(self, result: list[Any], /) -> None:
        """Answers it."""
        generation = self.generation
        assert generation is not None
        connection = self._connection
        waited = self._end()
        known = connection.known.get(id(generation.version))
        if known is None:
            known = connection.introduce(self._handle, generation.version, generation.signature)
        connection.answer(self._id, known, result, self._into, waited=waited)

    def set_exception(self, exception: BaseException, /) -> None:
        """Answers it with an error."""
        self._connection.refuse(self._id, exception, waited=self._end())

    def cancel(self) -> None:
        """The application does not want the answer any more."""
        if not self._done and self.entry is not None:
            self._runner.discard(self.entry)
            self.set_exception(_cancelled())

    def _end(self) -> bool:
        """Notes that it is answered; returns whether it had to wait."""
        self._done = True
        if self.entry is None:
            return False
        # The entry holds the inputs, maybe in shared memory, and this call: they end together.
        self.entry = None
        self._handle.served.gate.leave()
        return True

    def __await__(self) -> Generator[Any, None, list[Any]]:
        raise TypeError("a call of the socket is answered, not awaited")


class Connection:
    """A connection; made by `SocketServer`, and its socket's receiver.

    Attributes:
        known: Versions that the application has been told of, by the identity of the object.
        calls: Calls that wait for others or run in tasks, by id; a call that is answered at once is never here.
    """

    def __init__(self, server: SocketServer) -> None:
        self._server = server
        self.socket: FrameSocket | None = None
        self.known: dict[int, _Known] = {}
        self.calls: dict[int, _Call | anyio.CancelScope] = {}
        self.greeted = False
        self.opened_at = monotonic()
        self.blocked_since: float | None = None
        self._numbers = itertools.count(1)
        self._layouts: dict[bytes, Layout] = {}
        self._handles: dict[int, Handle] = {}
        self._leases: dict[int, Lease] = {}
        self._segments = Segments(max_count=server.limits.max_segments, max_bytes=server.limits.max_shared_bytes)
        self._linger = Linger(server.limits.linger_s)
        self._alone_ns = 0
        self._goodbye = False
        # What remembers answers has to see every call.
        self._direct = server.service.cache is None

    # -- what arrives

    def frames(self, frames: Iterator[Frame]) -> bool:
        """See `Receiver.frames`."""
        socket = self.socket
        assert socket is not None
        until_ns = perf_counter_ns() + _TURN_NS
        for kind, _, words, id_, target, body in frames:
            if kind == _INFER:
                self._infer(words, id_, target, body)
            else:
                self._control(kind, id_, target, body)
            if socket.closed:
                return True
            if socket.queued_bytes > _MAX_QUEUED_BYTES or len(self.calls) > _MAX_CALLS:
                socket.pause()
                return False
            if perf_counter_ns() > until_ns:
                return False
        return True

    def caught_up(self) -> None:
        """See `Receiver.caught_up`."""
        came_ns, self._alone_ns = self._alone_ns, 0
        if came_ns and self.socket is not None:
            self._linger.after_call(came_ns, self.socket.arrived)

    def lost(self, error: Exception | None) -> None:
        """Gives back everything; calls that run end unseen."""
        if error is not None and not isinstance(error, OSError):
            _log.warning("a connection of the socket was ended: %s", error)
        for call in list(self.calls.values()):
            if isinstance(call, _Call):
                call.cancel()
            else:
                call.cancel()
        self.calls.clear()
        for handle in self._handles.values():
            handle.detach()
        self._handles.clear()
        for number in list(self._leases):
            self._release(number)
        self._segments.clear()
        self.known.clear()
        self._server.forget(self)

    def _infer(self, words: int, id_: int, target: int, body: bytearray) -> None:
        try:
            lease_id, timeout_ms, held_in, into = _FIXED.unpack_from(body)
            end = _FIXED_BYTES + words * 8
            raw = bytes(body[_FIXED_BYTES:end])
            layout = self._layouts.get(raw)
            if layout is None:
                layout = self._learn(raw)
            if held_in:
                inputs = settled(layout.read(self._segments.get(held_in)))
            else:
                inputs = layout.read(body, end)
            if lease_id:
                self._infer_leased(lease_id, inputs, id_, into)
                return
            handle = self._handles.get(target)
            if handle is None:
                raise _Gone(f"there is no handle {target} on this connection")
            runner = handle.runner
            if runner is None or runner.active is None:
                runner = handle.attach()
            gate = handle.served.gate
            if gate.running < gate.width and not gate.waiting and self._direct:
                call = _Call(self, handle, runner, id_, into)
                if runner.start(inputs, call, alone=self._alone()):
                    if call.entry is not None and not call.done():
                        gate.running += 1
                        self.calls[id_] = call
                    return
            timeout = timeout_ms / 1e3 if timeout_ms else None
            self._spawn(self._infer_in_task(handle, inputs, timeout), handle, id_, into)
        except Exception as exc:
            self.refuse(id_, exc)

    def _alone(self) -> bool:
        """Whether a call that was just read is the only one: nothing to share a run with is on its way."""
        server, socket = self._server, self.socket
        now_ns = perf_counter_ns()
        if server.last_caller is not self:
            server.last_caller = self
            server.crowded_until_ns = now_ns + _CROWDED_NS
        if now_ns < server.crowded_until_ns or self.calls or socket is None or socket.more:
            return False
        self._alone_ns = now_ns
        return True

    def _infer_leased(self, lease_id: int, inputs: Mapping[str, Any], id_: int, into: int) -> None:
        held = self._server.leases.get(lease_id)
        if held is None:
            raise _Gone(f"there is no lease {lease_id}")
        lease, handle = held
        if lease.quick:
            prediction = lease.predict_sync(inputs)
            self.answer(id_, self._known_version(handle, prediction), list(prediction.values()), into)
            return
        self._spawn(lease.predict(inputs), handle, id_, into)

    async def _infer_in_task(self, handle: Handle, inputs: Mapping[str, Any], timeout: float | None) -> Prediction:
        return await handle.served.predict(inputs, timeout=timeout)

    def _spawn(self, run: Coroutine[Any, Any, Prediction], handle: Handle, id_: int, into: int) -> None:
        scope = anyio.CancelScope()
        self.calls[id_] = scope

        async def call() -> None:
            try:
                with scope:
                    try:
                        prediction = await run
                    except Exception as exc:
                        self.refuse(id_, exc, waited=True)
                    else:
                        known = self._known_version(handle, prediction)
                        self.answer(id_, known, list(prediction.values()), into, waited=True)
                if scope.cancelled_caught:
                    self.refuse(id_, _cancelled(), waited=True)
            finally:
                run.close()

        self._server.spawn(call)

    def _control(self, kind: int, id_: int, target: int, body: bytearray) -> None:
        if not self.greeted and kind != Kind.HELLO:
            raise ProtocolError("the first frame must be HELLO")
        try:
            if kind == Kind.HELLO:
                self._hello(json_body(body))
            elif kind == Kind.CANCEL:
                call = self.calls.get(id_)
                if call is not None:
                    call.cancel()
            elif kind == Kind.OPEN:
                self._server.spawn(self._open, id_, json_body(body))
            elif kind == Kind.CLOSE:
                handle = self._handles.pop(target, None)
                if handle is not None:
                    handle.detach()
            elif kind == Kind.LEASE:
                self._lease(id_, target, json_body(body))
            elif kind == Kind.RELEASE:
                self._release(json_body(body).get("lease"))
            elif kind == Kind.SEGMENT:
                self._add_segment(target, body)
            elif kind == Kind.UNSEGMENT:
                self._segments.drop(target)
            elif kind == Kind.PING:
                self._write(small_frame(Kind.PONG, id_))
            else:
                raise InvalidError(f"there is no frame of kind {kind}")
        except Exception as exc:
            self.refuse(id_, exc)
            if kind in (Kind.HELLO, Kind.SEGMENT):
                # Whatever follows builds on it.
                self.close()

    def _hello(self, hello: Mapping[str, Any]) -> None:
        protocol = hello.get("protocol")
        if not isinstance(protocol, int) or protocol < 1:
            raise ProtocolError(f"protocol {protocol!r} is not spoken here: expected 1 to {PROTOCOL}")
        self.greeted = True
        limits = self._server.limits
        welcome = {
            "protocol": min(protocol, PROTOCOL),
            "server": f"modelbox {__version__}",
            "max_frame_bytes": MAX_FRAME_BYTES,
            "max_segments": limits.max_segments,
            "max_shared_bytes": limits.max_shared_bytes,
        }
        self._write(json_frame(Kind.WELCOME, welcome))
        if self._goodbye:
            self._write(small_frame(Kind.GOAWAY))

    # -- handles and their news

    async def _open(self, id_: int, wanted: Mapping[str, Any]) -> None:
        try:
            served = await self._server.find(str(wanted.get("ref", "")))
            if self.socket is None or self.socket.closed:
                return
            if len(self._handles) >= _MAX_HANDLES:
                raise LimitError(f"a connection may have {_MAX_HANDLES} handles")
            handle = Handle(next(self._numbers), served)
            if wanted.get("events"):
                handle.observer = self._observer(handle)
            handle.attach()
            self._handles[handle.number] = handle
            state = self._tell_version(handle)
            handle.state = tuple(state.values())
            self._write(json_frame(Kind.OPENED, state, id_, handle.number))
        except Exception as exc:
            self.refuse(id_, exc)

    def _observer(self, handle: Handle) -> Callable[[ModelEvent], None]:
        loop = self._server.loop

        def observe(event: ModelEvent) -> None:
            # RuntimeError: the loop has ended.
            try:
                loop.call_soon_threadsafe(self._event, handle, event)
            except RuntimeError:
                return

        return observe

    def _event(self, handle: Handle, event: ModelEvent) -> None:
        if self._handles.get(handle.number) is handle:
            self.tell_state(handle)
            self._write(json_frame(Kind.EVENT, {"type": type(event).__name__, **to_json(event)}, target=handle.number))

    def tell_news(self) -> None:
        """Tells of edits and states that come without an event; called every now and then."""
        for handle in self._handles.values():
            if handle.observer is not None:
                self.tell_state(handle)

    def tell_state(self, handle: Handle) -> None:
        """Tells what serves now, where that is news."""
        try:
            handle.attach()
        except ModelBoxError:
            return
        state = self._tell_version(handle)
        if tuple(state.values()) != handle.state:
            handle.state = tuple(state.values())
            self._write(json_frame(Kind.STATE, state, target=handle.number))

    def _tell_version(self, handle: Handle) -> dict[str, Any]:
        assert handle.runner is not None
        assert handle.reloader is not None
        active = handle.runner.active
        if active is None:
            raise ServerBusy(f"{handle.served.ref} does not answer now", retry_after_s=1.0)
        known = self.known.get(id(active.version)) or self.introduce(handle, active.version, active.signature)
        reloader = handle.reloader
        return {"state": reloader.state.value, "stale": reloader.stale, "version": known.number}

    def introduce(self, handle: Handle, version: ModelVersion, signature: Signature) -> _Known:
        """Tells the application of a version before anything refers to it."""
        if len(self.known) >= _MAX_VERSIONS:
            self.known.clear()
        known = self.known[id(version)] = _Known(next(self._numbers), version, Packer(signature.outputs))
        body = {"version": to_json(version), "signature": _signature_json(signature)}
        self._write(json_frame(Kind.VERSION, body, known.number, handle.number))
        return known

    def _known_version(self, handle: Handle, prediction: Prediction) -> _Known:
        known = self.known.get(id(prediction.version))
        if known is not None:
            return known
        active = handle.runner.active if handle.runner is not None else None
        signature = active.signature if active is not None and active.version is prediction.version else None
        if signature is None:
            signature = Signature(inputs=(), outputs=tuple(_spec(name, value) for name, value in prediction.items()))
        return self.introduce(handle, prediction.version, signature)

    # -- leases and segments

    def _lease(self, id_: int, target: int, wanted: Mapping[str, Any]) -> None:
        handle = self._handles.get(target)
        if handle is None:
            raise _Gone(f"there is no handle {target} on this connection")
        if len(self._leases) >= _MAX_LEASES:
            raise LimitError(f"a connection may hold {_MAX_LEASES} leases")
        lease = handle.attach().lease()
        lease.__enter__()
        digest = wanted.get("digest")
        if digest and lease.version.digest != digest:
            number = lease.version.version
            lease.__exit__(None, None, None)
            raise RunTerminated(f"the leased version is gone, version {number} answers now: take a new lease")
        lease_id = self._server.new_lease(lease, handle)
        self._leases[lease_id] = lease
        known = self.known.get(id(lease.version))
        if known is None:
            known = self.introduce(handle, lease.version, lease.signature)
        self._write(json_frame(Kind.LEASED, {"lease": lease_id}, id_, known.number))

    def _release(self, lease_id: object) -> None:
        lease = self._leases.pop(lease_id, None) if isinstance(lease_id, int) else None
        if lease is not None and isinstance(lease_id, int):
            self._server.leases.pop(lease_id, None)
            lease.__exit__(None, None, None)

    def _add_segment(self, number: int, body: bytearray) -> None:
        assert self.socket is not None
        if not self.socket.received_fds:
            raise ProtocolError("a SEGMENT frame came without a file descriptor")
        fd = self.socket.received_fds.popleft()
        self._segments.add(number, int.from_bytes(body[:8], "little"), fd)

    # -- answers

    def answer(self, id_: int, known: _Known, outputs: Sequence[Any], into: int, *, waited: bool = False) -> None:
        """Answers a call with the outputs of ``known``."""
        if waited:
            self._ended(id_)
        try:
            self._answer(id_, known, outputs, into)
        except Exception as exc:
            self.refuse(id_, exc)

    def _answer(self, id_: int, known: _Known, outputs: Sequence[Any], into: int) -> None:
        packer = known.packer
        if packer.plain:
            layout = packer.layout(outputs)
            raw, number = layout.raw, known.number
            if into and layout.size >= _SHARED_FROM:
                memory = self._segments.get(into)
                if layout.size <= len(memory):
                    layout.write(outputs, memory)
                    size = HEADER_BYTES + len(raw)
                    self._write(HEADER.pack(size, Kind.RESULT, Flag.SHARED, len(raw) >> 3, id_, number) + raw)
                    return
            size = HEADER_BYTES + len(raw) + layout.size
            if size > MAX_FRAME_BYTES:
                raise _TooLarge(layout.size)
            head = HEADER.pack(size, _RESULT, 0, len(raw) >> 3, id_, number)
            if len(outputs) == 1 and not layout.size & 7:
                self._write(b"".join((head, raw, outputs[0].tobytes())))
            else:
                self._write(b"".join([head, raw, *parts_of(layout, outputs)]))
            return
        raw, parts = packer.pack(outputs)
        data = b"".join(parts)
        size = HEADER_BYTES + len(raw) + len(data)
        if size > MAX_FRAME_BYTES:
            raise LimitError(f"an answer of {len(data)} bytes with text or lists in it: at most {MAX_FRAME_BYTES} fit")
        self._write(HEADER.pack(size, _RESULT, 0, len(raw) >> 3, id_, known.number) + raw + data)

    def refuse(self, id_: int, error: BaseException, *, waited: bool = False) -> None:
        """Answers a call or a question with an error."""
        if waited:
            self._ended(id_)
        flags = Flag(0)
        if isinstance(error, _Gone):
            flags = Flag.GONE
        elif isinstance(error, _TooLarge):
            flags = Flag.TOO_LARGE
        if isinstance(error, ModelBoxError):
            body = error.to_dict()
        elif isinstance(error, ClientClosed):
            flags = Flag.GONE
            body = ServerBusy("the model is being taken out of service").to_dict()
        else:
            _log.error("a call over the socket failed", exc_info=error)
            kind = "usage" if isinstance(error, UsageError) else "internal"
            body = ModelBoxError(f"the sidecar failed ({kind} error): its log says why").to_dict()
        try:
            frame = json_frame(Kind.ERROR, body, id_, flags=flags)
        except (TypeError, ValueError):
            frame = json_frame(Kind.ERROR, {**body, "fields": {}}, id_, flags=flags)
        self._write(frame)

    def _ended(self, id_: int) -> None:
        self.calls.pop(id_, None)
        socket = self.socket
        if len(self.calls) <= _MAX_CALLS // 2 and socket is not None and not socket.blocked:
            socket.resume()
        if self._goodbye and not self.calls:
            self._server.drained()

    def _write(self, data: bytes) -> None:
        if self.socket is not None:
            self.socket.write(data)

    def _learn(self, raw: bytes) -> Layout:
        if len(self._layouts) >= _MAX_LAYOUTS:
            self._layouts.clear()
        layout = self._layouts[raw] = parse_layout(raw)
        return layout

    # -- the end

    def say_goodbye(self) -> None:
        """Asks the application to make its next calls elsewhere."""
        self._goodbye = True
        if self.greeted:
            self._write(small_frame(Kind.GOAWAY))

    def close(self) -> None:
        """Ends the connection. Idempotent."""
        if self.socket is not None:
            self.socket.close()


class _Gone(NotFoundError):
    """The application's handle or lease is not known: it has to open it again."""


class _TooLarge(LimitError):
    def __init__(self, size: int) -> None:
        super().__init__(f"the answer has {size} bytes and does not fit", size_bytes=size)


def _cancelled() -> DeadlineExceeded:
    return DeadlineExceeded("the call was cancelled")


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
