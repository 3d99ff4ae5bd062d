"""The listening side of the Unix socket: who may connect, how many, and how it ends.

Owns the socket's file, the connections and the leases of all of them. Authorisation is the operating system's: the
file's permissions, and the user id that the kernel knows of whoever connects.

Invariants: the socket's file appears with its final permissions, in place of one that nobody answers on any more. A
connection that does not say hello in time, or does not read its answers, is ended. With a connection end its leases,
its segments and its calls.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import socket
import stat
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import anyio
from anyio import AsyncContextManagerMixin
from anyio.abc import TaskGroup

from modelbox._frame_socket import FrameSocket, peer_uid
from modelbox._frames import CALL_BYTES, MAX_FRAME_BYTES
from modelbox._loops import Loop, Timer, current_loop
from modelbox._tensors import MAX_LAYOUT_BYTES
from modelbox.errors import AuthError, ConfigError, ModelBoxError, ServerBusy
from modelbox.loader.runner import Lease
from modelbox.refs import ModelRef
from modelbox.sidecar.service import InferenceService, ServedModel
from modelbox.sidecar.socket.answers import error_frame
from modelbox.sidecar.socket.connection import Connection
from modelbox.sidecar.socket.handles import Handle

__all__ = ("SocketLimits", "SocketServer")

_log = logging.getLogger(__name__)

_BACKLOG = 1024
_SWEEP_S = 0.25
_QUESTION_BYTES = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketLimits:
    """What one application may take.

    Attributes:
        max_connections: Of all applications together; one more is closed at once.
        max_segments: Segments of shared memory on one connection.
        max_shared_bytes: Bytes of them.
        max_request_bytes: Tensors of one call.
        hello_timeout_s: Until the first frame.
        stall_timeout_s: How long an application may leave its answers unread.
        linger_s: How long to look for the next call of a lone caller before the sidecar sleeps.
    """

    max_connections: int = 1024
    max_segments: int = 256
    max_shared_bytes: int = 1 << 30
    max_request_bytes: int = MAX_FRAME_BYTES
    hello_timeout_s: float = 5.0
    stall_timeout_s: float = 30.0
    linger_s: float = 100e-6

    @property
    def max_frame_bytes(self) -> int:
        """Longest frame that is read: a call with as much as it may have, and any question."""
        return min(max(self.max_request_bytes, _QUESTION_BYTES) + CALL_BYTES + MAX_LAYOUT_BYTES & ~7, MAX_FRAME_BYTES)


class SocketServer(AsyncContextManagerMixin):
    """Listens on a Unix socket; an async context manager.

    Args:
        service: What is served.
        path: Of the socket's file, in a directory that exists.
        mode: Its permissions.
        user_ids: Users who may connect beside root and the sidecar's own user; None leaves it to the permissions.
        limits: What one application may take.
        may_load: Whether an application may ask for a reference that is not served yet.

    Attributes:
        leases: Every held lease, by the number that applications know it by.
        last_caller: The connection that made the last call.
        crowded_until_ns: Until when calls come from several connections, on the clock of `time.perf_counter_ns`.
    """

    def __init__(
        self,
        service: InferenceService,
        path: Path,
        *,
        mode: int = 0o600,
        user_ids: frozenset[int] | None = None,
        limits: SocketLimits | None = None,
        may_load: bool = True,
    ) -> None:
        self.service = service
        self.path = path
        self.limits = limits or SocketLimits()
        self.leases: dict[int, tuple[Lease, Handle]] = {}
        self._mode = mode
        self._user_ids = user_ids
        self._may_load = may_load
        self._connections: set[Connection] = set()
        self._listener: socket.socket | None = None
        self._accepting: Timer | None = None
        self._inode: tuple[int, int] | None = None
        self._opening = anyio.Lock()
        self.last_caller: Connection | None = None
        self.crowded_until_ns = 0
        self._idle: anyio.Event | None = None

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[SocketServer]:
        self.loop: Loop = current_loop()
        self._listen()
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks: TaskGroup = tasks
                tasks.start_soon(self._sweep, name="modelbox socket sweep")
                assert self._listener is not None
                self._accepting = self.loop.watch(self._listener.fileno(), self._accept)
                try:
                    yield self
                finally:
                    self._stop_listening()
                    for connection in list(self._connections):
                        connection.close()
                    tasks.cancel_scope.cancel()
        finally:
            self._stop_listening()

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._connections)

    async def drain(self) -> None:
        """Takes no new connections, asks applications to call elsewhere, and waits until accepted calls have ended.

        Cancellation: what is left is ended by leaving the context.
        """
        self._stop_listening()
        self._idle = anyio.Event()
        for connection in list(self._connections):
            connection.say_goodbye()
        self.drained()
        await self._idle.wait()

    def drained(self) -> None:
        """Notes that a connection may have made its last call."""
        if self._idle is not None and not any(connection.calls.waiting for connection in self._connections):
            self._idle.set()

    # -- what connections ask for

    async def find(self, text: str) -> ServedModel:
        """The served reference that is ``text``, loaded where that is allowed.

        Raises:
            RefError: It is not a reference.
            NotFoundError: Neither this sidecar nor the registry has it.
            ModelBoxError: It cannot be served.
        """
        ref = ModelRef.parse(text)
        served = self.served(ref)
        if served is None or served.live is None:
            async with self._opening:
                served = self.served(ref)
                if served is None and not self._may_load:
                    return self.service.find(ref.path, ref.selector)
                if served is None or served.live is None:
                    await self.service.load(str(ref))
                    served = self.served(ref)
        return served if served is not None else self.service.find(ref.path, ref.selector)

    def served(self, ref: ModelRef) -> ServedModel | None:
        """What serves ``ref`` now, ready or not; None if nothing does."""
        return next((served for served in self.service.models() if served.ref == ref), None)

    def new_lease(self, lease: Lease, handle: Handle) -> int:
        """Notes a held lease, and gives it a number that nobody guesses."""
        number = secrets.randbits(63) | 1
        self.leases[number] = (lease, handle)
        return number

    def spawn(self, fn: Callable[..., Coroutine[Any, Any, None]], *args: object) -> None:
        """Starts work for a connection, which must not raise."""
        self._tasks.start_soon(fn, *args, name="modelbox socket call")

    def forget(self, connection: Connection) -> None:
        """Notes the end of a connection."""
        self._connections.discard(connection)
        if self.last_caller is connection:
            self.last_caller = None
        self.drained()

    # -- listening

    def _listen(self) -> None:
        path = os.fspath(self.path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        temporary = f"{path}.{os.getpid()}"
        try:
            self._refuse_if_answered(path)
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            listener.bind(temporary)
            # Nobody can connect before it listens, and it listens only under its final permissions and name.
            os.chmod(temporary, self._mode)
            listener.setblocking(False)
            listener.listen(_BACKLOG)
            about = os.stat(temporary)
            self._inode = (about.st_dev, about.st_ino)
            os.rename(temporary, path)
        except OSError as exc:
            listener.close()
            with suppress(OSError):
                os.unlink(temporary)
            raise ConfigError(
                f"the sidecar cannot listen on the Unix socket {path}: {exc.strerror or exc}; its directory must "
                "exist, be writable, and the path have at most 96 bytes",
                path=path,
            ) from exc
        except BaseException:
            listener.close()
            raise
        self._listener = listener

    @staticmethod
    def _refuse_if_answered(path: str) -> None:
        try:
            if not stat.S_ISSOCK(os.stat(path).st_mode):
                raise ConfigError(f"{path} exists and is no socket: choose another path for the sidecar's", path=path)
        except FileNotFoundError:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(path)
            except (ConnectionRefusedError, FileNotFoundError):
                return
            except OSError as exc:
                if exc.errno not in (errno.EAGAIN, errno.EINPROGRESS):
                    raise
        raise ConfigError(f"another sidecar answers on {path}: stop it, or choose another path", path=path)

    def _stop_listening(self) -> None:
        accepting, self._accepting = self._accepting, None
        if accepting is not None:
            accepting.cancel()
        listener, self._listener = self._listener, None
        if listener is None:
            return
        listener.close()
        # Only our own file: a successor may have put its own in the same place.
        with suppress(OSError):
            about = os.stat(self.path)
            if (about.st_dev, about.st_ino) == self._inode:
                os.unlink(self.path)

    def _accept(self) -> None:
        for _ in range(64):
            if self._listener is None:
                return
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as exc:
                # No descriptors left, most likely; those who wait are accepted once there are.
                _log.warning("a connection to the socket could not be accepted: %s", exc)
                return
            sock.setblocking(False)
            uid = peer_uid(sock)
            allowed = self._user_ids is None or uid in {0, os.getuid(), *self._user_ids}
            if not allowed:
                _refuse(
                    sock, uid, AuthError(f"user {uid} may not use this sidecar: its socket_users does not name them")
                )
                continue
            if len(self._connections) >= self.limits.max_connections:
                _refuse(sock, uid, ServerBusy(f"the sidecar has {len(self._connections)} connections already"))
                continue
            connection = Connection(self)
            self._connections.add(connection)
            connection.socket = FrameSocket(
                sock, self.loop, connection, max_frame_bytes=self.limits.max_frame_bytes, descriptors=True
            )

    async def _sweep(self) -> None:
        """Ends connections that hold things up, and tells of news that no event announces."""
        while True:
            await anyio.sleep(_SWEEP_S)
            now = monotonic()
            for connection in list(self._connections):
                held = connection.socket
                if held is None:
                    continue
                if not held.blocked:
                    connection.blocked_since = None
                elif connection.blocked_since is None or held.progressed:
                    connection.blocked_since = now
                    held.progressed = False
                elif now - connection.blocked_since > self.limits.stall_timeout_s:
                    _log.warning("an application left its answers unread for %s s", self.limits.stall_timeout_s)
                    held.reset()
                    continue
                if not connection.greeted and now - connection.opened_at > self.limits.hello_timeout_s:
                    held.reset()
                    continue
                connection.tell_news()


def _refuse(sock: socket.socket, uid: int | None, error: ModelBoxError) -> None:
    """Says why, as far as the peer's buffer takes it, and hangs up."""
    _log.warning("a connection of user %s was refused: %s", uid, error)
    with sock, suppress(OSError):
        sock.send(error_frame(0, error))
