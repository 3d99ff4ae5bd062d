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
from collections.abc import Callable, Sequence
from time import monotonic

from modelbox._loops import Loop, Timer
from modelbox._transport.sidecar_call import Call
from modelbox._transport.sidecar_connection import MAX_ATTEMPTS, Connection
from modelbox.errors import AuthError, Unavailable

__all__ = ("Link", "no_sidecar")

SidecarAddress = str
"""Path of the socket's file."""

_BACKOFF_S = (0.005, 0.25)
_WELCOME_S = 5.0


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
