"""A TCP proxy that breaks connections on purpose."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from types import TracebackType

_BLOCK_BYTES = 1 << 16
_HELD_BYTES = 1 << 18


class BreakingProxy:
    """Passes bytes to and from one address, and resets a connection once it carried so many of them.

    Args:
        target: ``host:port``.
        break_after: For each connection that moves more than this, one entry is used up: the bytes after which it is
            reset. When the list is empty, nothing breaks any more.
    """

    def __init__(self, target: str, *, break_after: list[int] | None = None) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self.break_after = break_after or []
        self.broken = 0
        self.moved_bytes = 0
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> BreakingProxy:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        # A shutdown wakes the threads that wait at a socket; to close it does not.
        for end in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        for end in (self._listener, *self._open):
            end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                self._open += [client, server]
                for end in (client, server):
                    # What is on its way here when a connection breaks is lost: not as much as the system would hold.
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _HELD_BYTES)
                carried = _Carried()
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=(source, sink, carried), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, carried: _Carried) -> None:
        with contextlib.suppress(OSError):
            while block := source.recv(_BLOCK_BYTES):
                with self._lock:
                    self.moved_bytes += len(block)
                    carried.bytes += len(block)
                    breaks = bool(self.break_after) and carried.bytes > self.break_after[0]
                    if breaks:
                        self.break_after.pop(0)
                        self.broken += 1
                if breaks:
                    for end in (source, sink):
                        # A reset as soon as the other thread, woken by the shutdown, has let go of the socket.
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        with contextlib.suppress(OSError):
                            end.shutdown(socket.SHUT_RDWR)
                        end.close()
                    return
                sink.sendall(block)
            sink.shutdown(socket.SHUT_WR)


class _Carried:
    """How much one connection carried, both ways."""

    def __init__(self) -> None:
        self.bytes = 0
