"""The way from one event loop to the sidecar: a connection, the calls on it, and the calls that wait for the next one.

Owns reconnecting. A `Link` belongs to one loop and has at most one `Connection` that takes new calls; when it breaks,
or the sidecar asks for it (GOAWAY), the calls that were not answered are sent again on the next one. That is right
because a prediction changes nothing. Refuses to know references and telemetry: `modelbox._transport.sidecar` does.

Invariants: every call ends: with its answer, with its error, when nobody waits for it any more, or after ``patience_s``
without a sidecar. A call that was on its way when the connection broke `MAX_ATTEMPTS` times is not sent again: it may
be what broke it.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from time import monotonic
from typing import Any, Protocol

import numpy as np

from modelbox import __version__
from modelbox._frame_socket import FrameSocket
from modelbox._frames import CALL, CALL_BYTES, PROTOCOL, Flag, Frame, Kind, json_body, json_frame, small_frame
from modelbox._loops import Loop, Timer, Waiter
from modelbox._tensors import Layout, Packer, parse_layout
from modelbox._transport.sidecar_answers import AnswerMemory
from modelbox._transport.sidecar_segments import SHARED_FROM, Segment, SegmentPool
from modelbox.errors import AuthError, LimitError, ModelBoxError, ProtocolError, Unavailable, error_from_dict
from modelbox.loader.inputs import InputChecker
from modelbox.loader.runner import Prediction
from modelbox.loader.stats import CallStats
from modelbox.objects import ModelVersion, from_json
from modelbox.signature import Signature, TensorSpec

__all__ = ("MAX_ATTEMPTS", "Call", "Connection", "Link", "Opener", "Question", "RemoteVersion", "no_sidecar")

SidecarAddress = str
"""Path of the socket's file."""

MAX_ATTEMPTS = 4
_MAX_LAYOUTS = 256
_MAX_VERSIONS = 256
_BACKOFF_S = (0.005, 0.25)
_WELCOME_S = 5.0
_MAX_BYTES = 1 << 48
_NO_TENSORS = Packer(())
# Looking up a member of an enumeration costs more than comparing two numbers.
_INFER, _RESULT, _SHARED = int(Kind.INFER), int(Kind.RESULT), int(Flag.SHARED)


class RemoteVersion:
    """A version that the sidecar has told of; what a runner calls active.

    Attributes:
        version: What the registry says of it.
        signature: Its inputs and outputs.
        check: Checks inputs before they are sent.
        packer: Makes their layouts.
        stats: Where its calls are counted; None before the first.
    """

    __slots__ = ("check", "packer", "signature", "stats", "version")

    def __init__(self, version: ModelVersion, signature: Signature) -> None:
        self.version = version
        self.signature = signature
        self.check = InputChecker(signature).check
        self.packer = Packer(signature.inputs)
        self.stats: CallStats | None = None

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> RemoteVersion:
        """What a VERSION frame says."""
        try:
            return cls(from_json(ModelVersion, body["version"]), _signature(body["signature"]))
        except (KeyError, TypeError, ValueError) as exc:
            raise ProtocolError(f"the sidecar told of a version in a form that is not understood: {exc}") from exc


class LeaseHolder(Protocol):
    """The lease of a call, see `modelbox._transport.sidecar.SidecarLease`."""

    def number_on(self, connection: Connection, call: Call) -> int | None:
        """The lease's number; None when it has to be taken anew first, which sends the call later."""


class Caller(Protocol):
    """Whose call it is.

    Attributes:
        ref: The reference, as it is opened on a connection.
        answer_bytes: How large the last large answer was; 0 for small ones.
    """

    @property
    def ref_text(self) -> str:
        """The reference as it is opened."""

    answer_bytes: int


class Call:
    """One prediction.

    Attributes:
        waiter: Gets the `Prediction`, or the error.
        timeout_ms: What the sidecar is told; 0 for none.
        give_up_at: When waiting for a connection ends, on the clock of `time.monotonic`; None before it began.
        version: What answered.
    """

    __slots__ = (
        "attempts",
        "caller",
        "feed",
        "give_up_at",
        "held",
        "id",
        "into",
        "lease",
        "packer",
        "patience_s",
        "timeout_ms",
        "version",
        "waiter",
    )

    def __init__(
        self,
        caller: Caller,
        feed: dict[str, Any],
        packer: Packer,
        waiter: Waiter[Prediction],
        patience_s: float,
        timeout_ms: int = 0,
        lease: LeaseHolder | None = None,
    ) -> None:
        self.caller = caller
        self.feed = feed
        self.packer = packer
        self.waiter = waiter
        self.patience_s = patience_s
        self.timeout_ms = timeout_ms
        self.lease = lease
        self.attempts = 0
        self.give_up_at: float | None = None
        self.id = 0
        self.held: Segment | None = None
        self.into: Segment | None = None
        self.version: RemoteVersion | None = None

    def fail(self, error: Exception) -> None:
        """Ends it with an error."""
        if not self.waiter.done():
            self.waiter.set_exception(error)


class Opener(Call):
    """Wants a connection on which a reference is open, and nothing else.

    Args:
        then: Called with it.
    """

    __slots__ = ("then",)

    def __init__(
        self, caller: Caller, waiter: Waiter[Any], patience_s: float, then: Callable[[Connection], None]
    ) -> None:
        super().__init__(caller, {}, _NO_TENSORS, waiter, patience_s)
        self.then = then


class Question:
    """Anything else that is answered: OPEN, LEASE.

    Args:
        then: Hears the answer's target and body at the moment it arrives, before any frame behind it is read.
        failed: Hears of an error.
    """

    __slots__ = ("failed", "then")

    def __init__(self, then: Callable[[int, dict[str, Any]], None], failed: Callable[[Exception], None]) -> None:
        self.then = then
        self.failed = failed


class ConnectionOwner(Protocol):
    """What a connection tells of itself: a `Link`."""

    def welcomed(self, connection: Connection) -> None:
        """It takes calls now."""

    def leaving(self, connection: Connection) -> None:
        """It takes no new calls, but answers those that it has."""

    def again(self, calls: Sequence[Call], *, broken: bool) -> None:
        """These calls have to be sent again."""

    def ended(self, connection: Connection, error: Exception | None) -> None:
        """It is gone."""

    def pushed(self, kind: int, id_: int, target: int, body: bytearray) -> None:
        """News of a handle came: STATE or EVENT."""


class Connection:
    """One connection of a link; its socket's receiver.

    Attributes:
        usable: Takes new calls.
        versions: What the sidecar has told of, by its number on this connection.
    """

    def __init__(self, owner: ConnectionOwner, sock: socket.socket, loop: Loop) -> None:
        self._owner = owner
        self._loop = loop
        self.usable = False
        self.closed = False
        self.versions: dict[int, RemoteVersion] = {}
        self._handles: dict[str, int] = {}
        self._opening: dict[str, list[Call]] = {}
        self._calls: dict[int, Call] = {}
        self._questions: dict[int, Question] = {}
        self._layouts: dict[bytes, Layout] = {}
        self._last_id = 0
        self._leaving = False
        self.socket = FrameSocket(sock, loop, self)
        self._segments = SegmentPool(self.socket, max_count=0, max_bytes=0)
        self._answers = AnswerMemory()
        self._max_frame_bytes = 0
        self._max_request_bytes = _MAX_BYTES
        self.socket.write(json_frame(Kind.HELLO, {"protocol": PROTOCOL, "client": f"modelbox {__version__} python"}))

    @property
    def idle(self) -> bool:
        """Whether nothing is awaited on it."""
        return not (self._calls or self._questions or self._opening)

    # -- calls

    def submit(self, call: Call) -> None:
        """Sends a call, as soon as its handle is open."""
        handle = self._handles.get(call.caller.ref_text)
        if handle is None:
            self._open_for(call)
            return
        if isinstance(call, Opener):
            call.then(self)
            return
        try:
            self._send(call, handle)
        except ModelBoxError as exc:
            self._give_back(call)
            call.fail(exc)

    def _send(self, call: Call, handle: int) -> None:
        lease = 0
        if call.lease is not None:
            number = call.lease.number_on(self, call)
            if number is None:
                return
            lease = number
        arrays = list(call.feed.values())
        packer, answer_bytes = call.packer, call.caller.answer_bytes
        held = into = 0
        if answer_bytes:
            call.into = self._segments.take(answer_bytes)
            if call.into is not None:
                into = call.into.number
        data: list[bytes]
        if packer.plain:
            layout = packer.layout(arrays)
            raw, whole = layout.raw, layout.size
            size = whole
            if size > self._max_request_bytes:
                data = []  # refused below
            elif size >= SHARED_FROM and (segment := self._segments.take(size)) is not None:
                call.held, held = segment, segment.number
                layout.write(arrays, segment.memory)
                data, size = [], 0
            elif len(arrays) == 1 and not size & 7:
                data = [arrays[0].tobytes()]
            else:
                data = packer.pack(arrays)[1]
        else:
            raw, data = packer.pack(arrays)
            size = whole = sum(map(len, data))
        if whole > self._max_request_bytes:
            raise LimitError(f"inputs of {whole} bytes: the sidecar takes {self._max_request_bytes} (max_request_mb)")
        total = CALL_BYTES + len(raw) + size
        if total > self._max_frame_bytes:
            raise LimitError(f"inputs of {size} bytes: at most {self._max_frame_bytes} go into a frame")
        id_ = self._last_id % 0xFFFFFFFF + 1
        self._last_id = call.id = id_
        head = CALL.pack(total, _INFER, 0, len(raw) >> 3, id_, handle, lease, call.timeout_ms, held, into)
        calls = self._calls
        alone = not calls
        # Noted before it is written: writing may find the connection broken, which makes what is noted again.
        calls[id_] = call
        frame = b"".join((head, raw, *data))
        if alone:
            self.socket.write_now(frame)
        else:
            self.socket.write(frame)

    def cancel(self, call: Call) -> None:
        """Tells the sidecar that nobody waits for the answer any more."""
        if self._calls.get(call.id) is call:
            self.socket.write(small_frame(Kind.CANCEL, call.id))

    def _open_for(self, call: Call) -> None:
        ref = call.caller.ref_text
        waiting = self._opening.get(ref)
        if waiting is not None:
            waiting.append(call)
            return
        self._opening[ref] = [call]

        def opened(handle: int, _: dict[str, Any]) -> None:
            self._handles[ref] = handle
            for waiting in self._opening.pop(ref, ()):
                if not waiting.waiter.done():
                    self.submit(waiting)

        def failed(error: Exception) -> None:
            for waiting in self._opening.pop(ref, ()):
                waiting.fail(error)

        self.ask(Kind.OPEN, {"ref": ref}, Question(opened, failed))

    def again(self, calls: Sequence[Call]) -> None:
        """Has calls made again whose connection broke."""
        self._owner.again(calls, broken=True)

    def handle_of(self, ref_text: str) -> int | None:
        """The handle of a reference, where it is open."""
        return self._handles.get(ref_text)

    def ask(self, kind: Kind, body: object, question: Question, *, target: int = 0) -> None:
        """Sends a question."""
        id_ = self._last_id = self._last_id % 0xFFFFFFFF + 1
        self._questions[id_] = question
        self.socket.write(json_frame(kind, body, id_, target))

    def tell(self, kind: Kind, body: object, *, target: int = 0) -> None:
        """Sends what is not answered."""
        if not self.closed:
            self.socket.write(json_frame(kind, body, 0, target))

    # -- answers

    def frames(self, frames: Iterator[Frame]) -> bool:
        """See `Receiver.frames`."""
        for kind, flags, words, id_, target, body in frames:
            if kind == _RESULT:
                self._result(flags, words, id_, target, body)
            elif kind == Kind.ERROR:
                self._error(flags, id_, json_body(body))
            elif kind == Kind.VERSION:
                if len(self.versions) >= _MAX_VERSIONS:
                    self.versions.pop(next(iter(self.versions)))
                self.versions[id_] = RemoteVersion.read(json_body(body))
            elif kind in (Kind.OPENED, Kind.LEASED):
                question = self._questions.pop(id_, None)
                if question is not None:
                    question.then(target, json_body(body))
            elif kind in (Kind.STATE, Kind.EVENT):
                self._owner.pushed(kind, id_, target, body)
            elif kind == Kind.WELCOME:
                self._welcome(json_body(body))
            elif kind == Kind.GOAWAY:
                self._leave()
            if self.closed:
                break
        if self._leaving and self.idle and not self.closed:
            self.socket.close()
        return True

    def _welcome(self, body: Mapping[str, Any]) -> None:
        try:
            self._max_frame_bytes = int(body["max_frame_bytes"])
            self._max_request_bytes = int(body.get("max_request_bytes", self._max_request_bytes))
            self._segments = SegmentPool(
                self.socket, max_count=int(body["max_segments"]), max_bytes=int(body["max_shared_bytes"])
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise ProtocolError("the sidecar's welcome is not understood") from exc
        self.usable = True
        self._owner.welcomed(self)

    def _result(self, flags: int, words: int, id_: int, target: int, body: bytearray) -> None:
        call = self._calls.pop(id_, None)
        if call is None:
            return
        version = self.versions.get(target)
        if version is None:
            raise ProtocolError(f"the sidecar answered with a version {target} that it never told of")
        if call.waiter.done():
            self._give_back(call)
            return
        end = words * 8
        raw = bytes(body[:end])
        layout = self._layouts.get(raw)
        if layout is None:
            if len(self._layouts) >= _MAX_LAYOUTS:
                self._layouts.clear()
            layout = self._layouts[raw] = parse_layout(raw)
        if flags & _SHARED:
            if call.into is None:
                raise ProtocolError("the sidecar answered into a segment that it was not given")
            shared = layout.read(call.into.memory)
            prediction = Prediction(layout.read(self._answers.lend(layout.size)))
            for name, array in prediction.items():
                np.copyto(array, shared[name])
        else:
            prediction = Prediction(layout.read(body, end))
        if layout.size >= SHARED_FROM or call.caller.answer_bytes:
            call.caller.answer_bytes = _expected(call.caller.answer_bytes, layout.size)
        if call.held is not None or call.into is not None:
            self._give_back(call)
        call.version = version
        prediction.version = version.version
        call.waiter.set_result(prediction)

    def _error(self, flags: int, id_: int, body: Mapping[str, Any]) -> None:
        error = error_from_dict(body)
        question = self._questions.pop(id_, None)
        if question is not None:
            question.failed(error)
            return
        call = self._calls.pop(id_, None)
        if call is None:
            if not id_:
                raise error
            return
        self._give_back(call)
        if call.waiter.done():
            return
        needed = error.fields.get("size_bytes")
        if flags & Flag.TOO_LARGE and isinstance(needed, int) and call.attempts < MAX_ATTEMPTS:
            # The same again, with memory that the answer fits into.
            call.caller.answer_bytes = max(needed, call.caller.answer_bytes)
            call.attempts += 1
            self.submit(call)
            return
        if flags & Flag.GONE and call.attempts < MAX_ATTEMPTS:
            self._handles.pop(call.caller.ref_text, None)
            self._owner.again([call], broken=True)
            return
        call.fail(error)

    def _give_back(self, call: Call) -> None:
        for segment in (call.held, call.into):
            if segment is not None:
                self._segments.give(segment)
        call.held = call.into = None

    # -- the end

    def _leave(self) -> None:
        self._leaving = True
        self.usable = False
        self._owner.leaving(self)

    def caught_up(self) -> None:
        """See `Receiver.caught_up`."""

    def lost(self, error: Exception | None) -> None:
        """See `Receiver.lost`."""
        self.closed = True
        self.usable = False
        self._segments.clear()
        sent = [call for call in self._calls.values() if not call.waiter.done()]
        waiting = [call for calls in self._opening.values() for call in calls if not call.waiter.done()]
        questions = list(self._questions.values())
        self._calls.clear()
        self._questions.clear()
        self._opening.clear()
        for call in sent:
            call.held = call.into = None
        self._owner.ended(self, error)
        gone = error if isinstance(error, ModelBoxError) else Unavailable("the connection to the sidecar broke")
        for question in questions:
            question.failed(gone)
        self._owner.again(waiting, broken=False)
        self._owner.again(sent, broken=True)


class Link:
    """The way from one loop to the sidecar.

    Args:
        loop: Where it lives; everything but `close` belongs to it.
        path: Of the sidecar's socket.
        keep: Reconnect although nobody calls, for the one that hears news.
        on_connected: Hears of each new connection.
        on_ended: Hears when it is gone.
        on_pushed: Hears of news: kind, target and body.
        on_refused: Hears when this user may not connect.
    """

    def __init__(
        self,
        loop: Loop,
        path: SidecarAddress,
        *,
        keep: bool = False,
        on_connected: Callable[[Connection], None] | None = None,
        on_ended: Callable[[Connection], None] | None = None,
        on_pushed: Callable[[int, int, bytearray], None] | None = None,
        on_refused: Callable[[AuthError], None] | None = None,
    ) -> None:
        self.loop = loop
        self.connection: Connection | None = None
        self._path = path
        self._keep = keep
        self._on_connected = on_connected
        self._on_ended = on_ended
        self._on_pushed = on_pushed
        self._on_refused = on_refused
        self._connecting: Connection | None = None
        self._all: set[Connection] = set()
        self._held: list[Call] = []
        self._timer: Timer | None = None
        self._pause_s = _BACKOFF_S[0]
        self._closed = False
        self.trouble = ""
        if keep:
            self._connect()

    def submit(self, call: Call) -> None:
        """Sends a call now, or as soon as there is a connection."""
        connection = self.connection
        if connection is not None:
            connection.submit(call)
        else:
            self._hold(call)

    def cancel(self, call: Call) -> None:
        """Nobody waits for a call any more."""
        if call in self._held:
            self._held.remove(call)
        for connection in self._all:
            connection.cancel(call)

    def close(self) -> None:
        """Ends all connections; on the link's own loop. Idempotent."""
        self._closed = True
        self._cancel_timer()
        for connection in list(self._all):
            connection.socket.close()
        self._fail_held(float("inf"))

    def abandon(self) -> None:
        """Closes the descriptors, and nothing else: the loop has ended, or belongs to another process."""
        self._closed = True
        for connection in self._all:
            connection.closed = True
            connection.socket.abandon()

    # -- what connections tell

    def welcomed(self, connection: Connection) -> None:
        """See `ConnectionOwner`."""
        self._connecting = None
        self._cancel_timer()
        self.connection = connection
        self._pause_s = _BACKOFF_S[0]
        if self._on_connected is not None:
            self._on_connected(connection)
        held, self._held = self._held, []
        for call in held:
            if not call.waiter.done():
                self.submit(call)

    def leaving(self, connection: Connection) -> None:
        """See `ConnectionOwner`."""
        if self.connection is connection:
            self.connection = None
            if self._on_ended is not None:
                self._on_ended(connection)
        self._connect_later()

    def again(self, calls: Sequence[Call], *, broken: bool) -> None:
        """See `ConnectionOwner`."""
        for call in calls:
            call.attempts += broken
            if call.attempts >= MAX_ATTEMPTS:
                call.fail(
                    Unavailable(
                        f"the connection to the sidecar broke {call.attempts} times during this call: it is not made "
                        "again, because it may be the cause"
                    )
                )
            elif self._closed:
                call.fail(Unavailable("the client was closed"))
            else:
                self.submit(call)

    def ended(self, connection: Connection, error: Exception | None) -> None:
        """See `ConnectionOwner`."""
        self._all.discard(connection)
        self.trouble = str(error) if error is not None else "the sidecar closed the connection"
        if self._connecting is connection:
            self._connecting = None
            if isinstance(error, AuthError):
                # Waiting does not help those who may not connect.
                self._refused(error)
            self._connect_later()
        if self.connection is connection:
            self.connection = None
            if self._on_ended is not None:
                self._on_ended(connection)
            if self._keep:
                self._connect_later()

    def pushed(self, kind: int, id_: int, target: int, body: bytearray) -> None:
        """See `ConnectionOwner`."""
        if self._on_pushed is not None:
            self._on_pushed(kind, target, body)

    # -- connecting

    def _refused(self, error: AuthError) -> None:
        held, self._held = self._held, []
        for call in held:
            call.fail(error)
        if self._on_refused is not None:
            self._on_refused(error)

    def _hold(self, call: Call) -> None:
        if call.give_up_at is None:
            call.give_up_at = monotonic() + call.patience_s
        self._held.append(call)
        if self._timer is None and self._connecting is None:
            self._connect()

    def _connect(self) -> None:
        self._timer = None
        if self._closed or self.connection is not None or self._connecting is not None:
            return
        self._fail_held(monotonic())
        if not self._held and not self._keep:
            return
        try:
            sock = open_socket(self._path)
        except OSError as exc:
            self.trouble = f"{exc.strerror or exc}"
            self._connect_later()
            return
        self._connecting = connection = Connection(self, sock, self.loop)
        self._all.add(connection)
        # A sidecar that accepts and never says a word must not keep anybody waiting for ever.
        self._timer = self.loop.call_later(_WELCOME_S, self._give_up_connecting)

    def _give_up_connecting(self) -> None:
        self._timer = None
        connecting = self._connecting
        if connecting is not None:
            connecting.socket.reset()

    def _connect_later(self) -> None:
        self._cancel_timer()
        if self._closed or not (self._held or self._keep):
            return
        self._timer = self.loop.call_later(self._pause_s * random.uniform(0.5, 1.0), self._connect)
        self._pause_s = min(self._pause_s * 2, _BACKOFF_S[1])

    def _cancel_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _fail_held(self, now: float) -> None:
        waiting = []
        for call in self._held:
            if call.waiter.done():
                continue
            if call.give_up_at is not None and call.give_up_at <= now:
                call.fail(no_sidecar(self._path, self.trouble, call.patience_s))
            else:
                waiting.append(call)
        self._held = waiting


def _expected(before: int, size: int) -> int:
    """How much memory the next answer gets, by what the answers before it had; 0 for none."""
    if size >= before:
        return size if size >= SHARED_FROM else 0
    after = before // 2 if size < before // 4 else before
    return after if after >= SHARED_FROM else 0


def no_sidecar(path: SidecarAddress, trouble: str, waited_s: float) -> Unavailable:
    """Nobody answers on the socket."""
    return Unavailable(
        f"no sidecar answers on unix://{path} ({trouble or 'no answer'}), for {waited_s:g} s: is it running, and may "
        "this user connect?",
        path=path,
    )


def open_socket(path: SidecarAddress) -> socket.socket:
    """A connected, non-blocking socket.

    Raises:
        OSError: Nobody listens there, or they may not be asked.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def _signature(body: Mapping[str, Any]) -> Signature:
    def specs(items: Sequence[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name=item["name"], dtype=item["dtype"], shape=tuple(item["shape"])) for item in items)

    return Signature(inputs=specs(body["inputs"]), outputs=specs(body["outputs"]))
