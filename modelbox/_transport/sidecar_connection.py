"""One connection to the sidecar: the calls on it, the handles that are open on it, and what it was told.

Owns the frames of both directions. Refuses to reconnect: that is up to its owner, a `Link`, which gets the calls back
that were not answered when the connection ends.

Invariants: a call that was sent is answered, failed or given back to the owner, once. Its segments are lent until the
sidecar has answered, even if nobody waits for it any more.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from modelbox import __version__
from modelbox._frame_socket import FrameSocket
from modelbox._frames import CALL, CALL_BYTES, PROTOCOL, Flag, Frame, Kind, json_body, json_frame, small_frame
from modelbox._loops import Loop
from modelbox._tensors import Layout, parse_layout
from modelbox._transport.sidecar_answers import AnswerMemory
from modelbox._transport.sidecar_call import Call, Opener, Question, RemoteVersion
from modelbox._transport.sidecar_segments import SHARED_FROM, SegmentPool
from modelbox.errors import LimitError, ModelBoxError, ProtocolError, Unavailable, error_from_dict
from modelbox.loader.runner import Prediction

__all__ = ("MAX_ATTEMPTS", "Connection", "ConnectionOwner")

MAX_ATTEMPTS = 4
"""How often a call is on its way when a connection breaks before it is seen as the cause."""

_MAX_LAYOUTS = 256
_MAX_VERSIONS = 256
_MAX_BYTES = 1 << 48
# Looking up a member of an enumeration costs more than comparing two numbers.
_INFER, _RESULT, _SHARED = int(Kind.INFER), int(Kind.RESULT), int(Flag.SHARED)


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
                # Behind a good-bye, the owner may have handles of the same numbers on the next connection.
                if not self._leaving:
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


def _expected(before: int, size: int) -> int:
    """How much memory the next answer gets, by what the answers before it had; 0 for none."""
    if size >= before:
        return size if size >= SHARED_FROM else 0
    after = before // 2 if size < before // 4 else before
    return after if after >= SHARED_FROM else 0
