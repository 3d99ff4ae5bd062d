"""A non-blocking Unix socket that carries frames, on any event loop.

Owns the socket, what was received of the next frame, and what could not be sent yet. Refuses to know what frames mean:
its `Receiver` does. Used by both ends of the sidecar's socket: one kind of code for asyncio, uvloop, trio and threads
without a loop, because all that it needs of a loop is to be told when the socket is ready (measured: as fast as
uvloop's own transports).

Frames that are written in one tick of the loop leave in one call to the system. A file descriptor travels with the
frame that names it.

Invariants: the receiver hears `Receiver.lost` exactly once, and nothing after it. Nothing is read while what was
received before is still being worked on, or while the peer does not take what is sent (`pause`): so a peer that never
reads can make no more than a bounded amount of memory wait for it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import struct
from collections import deque
from collections.abc import Iterator
from typing import Protocol

from modelbox._frames import MAX_FRAME_BYTES, Frame, FrameReader
from modelbox._loops import Loop, Timer
from modelbox.errors import ModelBoxError

__all__ = ("FrameSocket", "Receiver", "enlarge_buffers", "peer_uid")

_log = logging.getLogger(__name__)

_SOCKET_BUFFER_BYTES = 1 << 20
_TOGETHER = 16
"""Frames that leave in one call to the system; more wait no longer, so that the peer works on them meanwhile."""
_MAX_FDS = 8
_ANCILLARY_BYTES = socket.CMSG_SPACE(_MAX_FDS * 4)
_CREDENTIALS = struct.Struct("3i")
# Linux: sets the size beyond the system's limit, for those who may.
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33


class Receiver(Protocol):
    """Whoever works on received frames; called on the loop."""

    def frames(self, frames: Iterator[Frame]) -> bool:
        """Takes frames; False when it stopped early, to be called again with the rest in the loop's next tick."""

    def caught_up(self) -> None:
        """All that was received is worked on, and what was written has left as far as the peer takes it."""

    def lost(self, error: Exception | None) -> None:
        """The connection has ended: None when the peer closed it or `FrameSocket.close` was called."""


class FrameSocket:
    """A connected socket.

    Args:
        sock: Connected, non-blocking; owned from now on.
        loop: Where it is watched.
        receiver: Takes the frames.
        max_frame_bytes: Longer frames end the connection.
        descriptors: Whether the peer may send file descriptors; they wait in `received_fds`.

    Attributes:
        received_fds: Descriptors that came, oldest first; whoever takes one owns it.
        blocked: The peer does not take what was sent; more is only queued.
        queued_bytes: How much waits since then.
        progressed: Set whenever the peer takes some of it.
    """

    def __init__(
        self,
        sock: socket.socket,
        loop: Loop,
        receiver: Receiver,
        *,
        max_frame_bytes: int = MAX_FRAME_BYTES,
        descriptors: bool = False,
    ) -> None:
        self._sock: socket.socket | None = sock
        self._loop = loop
        self._receiver: Receiver | None = receiver
        self._reader = FrameReader(max_frame_bytes=max_frame_bytes)
        self._descriptors = descriptors
        self._out: list[bytes] = []
        self._rest: deque[tuple[memoryview, int]] = deque()
        self._scheduled = False
        self._working = False
        self._poll: select.poll | None = None
        self._last_flushed = 1
        self._frames: Iterator[Frame] | None = None
        self._paused = False
        self._reading: Timer | None = None
        self._writing: Timer | None = None
        self.received_fds: deque[int] = deque()
        self.blocked = False
        self.progressed = False
        self.queued_bytes = 0
        enlarge_buffers(sock)
        self._watch()

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self._sock is None

    def arrived(self) -> bool:
        """Whether there is something to read, or the connection has ended."""
        if self._poll is None:
            if self._sock is None:
                return True
            self._poll = select.poll()
            self._poll.register(self._sock.fileno(), select.POLLIN)
        return bool(self._poll.poll(0))

    @property
    def more(self) -> bool:
        """Whether more was received behind the frame that the receiver works on."""
        return self._reader.more

    # -- sending

    def write(self, data: bytes) -> None:
        """Queues a whole frame; it leaves at the end of the loop's tick, or with the next few."""
        self._out.append(data)
        if len(self._out) >= _TOGETHER:
            self.flush()
        elif not self._scheduled and not self._working:
            self._scheduled = True
            self._loop.call_soon(self.flush)

    def write_now(self, data: bytes) -> None:
        """Sends whole frames at once where nothing else was sent in this tick or the one before: for a lone caller."""
        self._out.append(data)
        if self._working or self._scheduled:
            return
        if self._last_flushed == 1:
            self.flush()
        else:
            self._scheduled = True
            self._loop.call_soon(self.flush)

    def write_fd(self, data: bytes, fd: int) -> None:
        """Sends one frame with a descriptor, which stays the caller's."""
        self.flush()
        if self._sock is None:
            return
        if not self._rest:
            try:
                sent = self._sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd))])
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as exc:
                self._end(exc)
                return
            if sent == len(data):
                return
            if sent:  # the descriptor has left with the first byte
                self._wait(memoryview(data)[sent:], -1)
                return
        self._wait(memoryview(data), os.dup(fd))

    def flush(self) -> None:
        """Sends what was written."""
        self._scheduled = False
        out = self._out
        if not out or self._sock is None:
            return
        self._out = []
        self._last_flushed = len(out)
        data = out[0] if len(out) == 1 else b"".join(out)
        if self._rest:
            self._wait(memoryview(data), -1)
            return
        try:
            sent = self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as exc:
            self._end(exc)
            return
        if sent < len(data):
            self._wait(memoryview(data)[sent:], -1)

    def _wait(self, data: memoryview, fd: int) -> None:
        self._rest.append((data, fd))
        self.queued_bytes += len(data)
        self.blocked = True
        if self._writing is None and self._sock is not None:
            self._writing = self._loop.watch(self._sock.fileno(), self._on_writable, writable=True)

    def _on_writable(self) -> None:
        sock = self._sock
        if sock is None:
            return
        try:
            while self._rest:
                data, fd = self._rest[0]
                if fd >= 0:
                    sent = sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd))])
                    os.close(fd)
                else:
                    sent = sock.send(data)
                self.queued_bytes -= sent
                self.progressed = True
                if sent < len(data):
                    self._rest[0] = (data[sent:], -1)
                    return
                self._rest.popleft()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            self._end(exc)
            return
        self.blocked = False
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
        if self._out:
            self.flush()
        self.resume()

    # -- receiving

    def pause(self) -> None:
        """Reads nothing more until `resume`, or until the peer has taken what waits for it."""
        self._paused = True
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def resume(self) -> None:
        """Reads again."""
        if self._paused and self._sock is not None:
            self._paused = False
            if self._frames is not None:
                self._loop.call_soon(self._go_on)
            else:
                self._watch()

    def _watch(self) -> None:
        if self._reading is None and self._sock is not None:
            self._reading = self._loop.watch(self._sock.fileno(), self._on_readable)

    def _on_readable(self) -> None:
        sock = self._sock
        if sock is None or self._frames is not None:
            return
        try:
            if self._descriptors:
                received, ancillary, _, _ = sock.recvmsg_into(
                    [self._reader.space()], _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
                )
                if ancillary:
                    self._take_fds(ancillary)
            else:
                received = sock.recv_into(self._reader.space())
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            self._end(exc)
            return
        if not received:
            self._end(None)
            return
        self._work(self._reader.feed(received))
        if self._sock is not None and self._reading is not None:
            receiver = self._receiver
            if receiver is not None:
                receiver.caught_up()

    def _work(self, frames: Iterator[Frame]) -> None:
        receiver = self._receiver
        if receiver is None:
            return
        # What is written meanwhile leaves together afterwards, without a turn of the loop.
        self._working = True
        try:
            done = receiver.frames(frames)
        except ModelBoxError as exc:
            self._end(exc)
            return
        except Exception as exc:
            # On trio, an error that left from here would end the application's whole run.
            _log.exception("a connection of the sidecar's socket failed")
            self._end(exc)
            return
        finally:
            self._working = False
        if self._out:
            self.flush()
        if self._sock is None:
            return
        if done:
            self._frames = None
            if not self._paused:
                self._watch()
            return
        self._frames = frames
        if not self._paused:
            if self._reading is not None:
                self._reading.cancel()
                self._reading = None
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        frames = self._frames
        if frames is not None and not self._paused and self._sock is not None:
            self._work(frames)

    def _take_fds(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self.received_fds.extend(struct.unpack(f"{len(data) // 4}i", data[: len(data) // 4 * 4]))
        while len(self.received_fds) > _MAX_FDS:
            os.close(self.received_fds.popleft())

    # -- the end

    def close(self) -> None:
        """Sends what can be sent at once, and ends the connection. Idempotent."""
        self.flush()
        self._end(None)

    def reset(self) -> None:
        """Ends the connection at once, whatever waits to be sent. Idempotent."""
        self._end(None)

    def abandon(self) -> None:
        """Closes the descriptor and nothing else: for a forked child, or a loop that has ended."""
        sock, self._sock = self._sock, None
        self._receiver = None
        if sock is not None:
            sock.close()
        self._drop_fds()

    def _end(self, error: Exception | None) -> None:
        sock, self._sock = self._sock, None
        if sock is None:
            return
        for watch in (self._reading, self._writing):
            if watch is not None:
                watch.cancel()
        self._reading = self._writing = None
        sock.close()
        self._drop_fds()
        self._out, self._frames = [], None
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.lost(error)

    def _drop_fds(self) -> None:
        for fd in (*self.received_fds, *(fd for _, fd in self._rest if fd >= 0)):
            with contextlib.suppress(OSError):
                os.close(fd)
        self.received_fds.clear()
        self._rest.clear()

    def __del__(self) -> None:
        if getattr(self, "_sock", None) is not None:
            self.abandon()


def enlarge_buffers(sock: socket.socket) -> None:
    """Gives a socket room for 1 MB in each direction, as far as the system allows it."""
    for forced, plain in ((_SO_SNDBUFFORCE, socket.SO_SNDBUF), (_SO_RCVBUFFORCE, socket.SO_RCVBUF)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, _SOCKET_BUFFER_BYTES)
        except OSError:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, plain, _SOCKET_BUFFER_BYTES)


def peer_uid(sock: socket.socket) -> int | None:
    """User id of the process on the other side, as the kernel knows it; None where it does not say."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    _, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(uid)
