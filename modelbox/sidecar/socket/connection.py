"""One application's connection: the receiver of its frames.

Owns everything that ends with the connection: handles, calls, leases and segments, each kept by a module of its own.
What is here is the order of things: hello first, fairness towards other connections, questions that are answered from
here, the goodbye.

Invariants: a frame with wrong content is answered with an error and changes nothing else; a frame that breaks the
framing ends the connection. Answers that the application does not read stop its next calls from being read.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from time import monotonic, perf_counter_ns
from typing import TYPE_CHECKING, Any

from modelbox import __version__
from modelbox._frame_socket import FrameSocket
from modelbox._frames import MAX_FRAME_BYTES, PROTOCOL, Frame, Kind, json_body, json_frame, small_frame
from modelbox.errors import InvalidError, LimitError, ProtocolError, RunTerminated
from modelbox.loader.runner import Lease
from modelbox.sidecar.socket.answers import Answers, Gone
from modelbox.sidecar.socket.calls import Calls
from modelbox.sidecar.socket.handles import Handles
from modelbox.sidecar.socket.linger import Linger
from modelbox.sidecar.socket.segments import Segments

if TYPE_CHECKING:
    from modelbox.sidecar.socket.server import SocketServer

__all__ = ("Connection",)

_log = logging.getLogger(__name__)

_TURN_NS = 2_000_000
"""Work for one connection after which the loop's other tasks come first."""
_CROWDED_NS = 5_000_000
"""How long after a call on another connection calls are expected to come in company."""
_MAX_CALLS = 4096
_MAX_QUEUED_BYTES = 4 << 20
_MAX_LEASES = 1024
# Looking up a member of an enumeration costs more than comparing two numbers.
_INFER = int(Kind.INFER)


class Connection:
    """A connection; made by `SocketServer`, and its socket's receiver.

    Attributes:
        calls: What it waits for.
        greeted: It said hello.
        opened_at: When it came, on the clock of `time.monotonic`.
        blocked_since: Since when it takes no answers; kept by the server's sweep.
    """

    def __init__(self, server: SocketServer) -> None:
        self._server = server
        self.socket: FrameSocket | None = None
        self.greeted = False
        self.opened_at = monotonic()
        self.blocked_since: float | None = None
        limits = server.limits
        self._segments = Segments(max_count=limits.max_segments, max_bytes=limits.max_shared_bytes)
        self._handles = Handles(self._write, server.loop, server.served)
        self._answers = Answers(self._write, self._segments)
        self.calls = Calls(server, self._handles, self._segments, self._answers, self._ended)
        self._leases: dict[int, Lease] = {}
        self._linger = Linger(limits.linger_s)
        self._alone_ns = 0
        self._goodbye = False

    # -- what arrives

    def frames(self, frames: Iterator[Frame]) -> bool:
        """See `Receiver.frames`."""
        socket = self.socket
        assert socket is not None
        calls = self.calls
        now_ns = perf_counter_ns()
        until_ns = now_ns + _TURN_NS
        for kind, _, words, id_, target, body in frames:
            if kind == _INFER and self.greeted:
                calls.infer(words, id_, target, body, alone=self._is_alone(socket, now_ns))
            else:
                self._control(kind, id_, target, body)
            if socket.closed:
                return True
            if socket.queued_bytes > _MAX_QUEUED_BYTES or len(calls.waiting) > _MAX_CALLS:
                socket.pause()
                return False
            if socket.more and (now_ns := perf_counter_ns()) > until_ns:
                return False
        return True

    def caught_up(self) -> None:
        """See `Receiver.caught_up`."""
        came_ns, self._alone_ns = self._alone_ns, 0
        # Not while a call waits: it is the loop that it waits for.
        if came_ns and self.socket is not None and not self.calls.waiting:
            self._linger.after_call(came_ns, self.socket.arrived)

    def lost(self, error: Exception | None) -> None:
        """See `Receiver.lost`; calls that run end unseen."""
        if error is not None and not isinstance(error, OSError):
            _log.warning("a connection of the socket was ended: %s", error)
        self.calls.cancel_all()
        self._handles.clear()
        for number in list(self._leases):
            self._release(number)
        self._segments.clear()
        self._server.forget(self)

    def _is_alone(self, socket: FrameSocket, now_ns: int) -> bool:
        """Whether a call that was just read is the only one: nothing to share a run with is on its way."""
        server = self._server
        if server.last_caller is not self:
            server.last_caller = self
            server.crowded_until_ns = now_ns + _CROWDED_NS
        if now_ns < server.crowded_until_ns or self.calls.waiting or socket.more:
            return False
        self._alone_ns = now_ns
        return True

    def _control(self, kind: int, id_: int, target: int, body: bytearray) -> None:
        if not self.greeted and kind != Kind.HELLO:
            raise ProtocolError("the first frame must be HELLO")
        try:
            if kind == Kind.HELLO:
                self._hello(json_body(body))
            elif kind == Kind.CANCEL:
                self.calls.cancel(id_)
            elif kind == Kind.OPEN:
                self._server.spawn(self._open, id_, json_body(body))
            elif kind == Kind.CLOSE:
                self._handles.close(target)
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
            self._answers.error(id_, exc)
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
            "max_frame_bytes": min(limits.max_frame_bytes, MAX_FRAME_BYTES),
            "max_request_bytes": limits.max_request_bytes,
            "max_segments": limits.max_segments,
            "max_shared_bytes": limits.max_shared_bytes,
        }
        self._write(json_frame(Kind.WELCOME, welcome))
        if self._goodbye:
            self._write(small_frame(Kind.GOAWAY))

    async def _open(self, id_: int, wanted: Mapping[str, Any]) -> None:
        try:
            served = await self._server.find(str(wanted.get("ref", "")))
            if self.socket is not None and not self.socket.closed:
                self._handles.open(id_, served, events=bool(wanted.get("events")))
        except Exception as exc:
            self._answers.error(id_, exc)

    def tell_news(self) -> None:
        """Tells of edits and states that come without an event; called every now and then."""
        self._handles.tell_news()

    # -- leases and segments

    def _lease(self, id_: int, target: int, wanted: Mapping[str, Any]) -> None:
        handle = self._handles.get(target)
        if handle is None:
            raise Gone(f"there is no handle {target} on this connection")
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
        known = self._handles.known.get(id(lease.version))
        if known is None:
            known = self._handles.introduce(handle, lease.version, lease.signature)
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

    # -- what leaves

    def _write(self, data: bytes) -> None:
        if self.socket is not None:
            self.socket.write(data)

    def _ended(self) -> None:
        socket, waiting = self.socket, self.calls.waiting
        if len(waiting) <= _MAX_CALLS // 2 and socket is not None and not socket.blocked:
            socket.resume()
        if self._goodbye and not waiting:
            self._server.drained()

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
