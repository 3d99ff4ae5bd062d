"""What a serving program does as a process: listens, obeys signals, runs HTTP applications, says its version.

Owns the ways of a stop that no service knows: the first SIGTERM or SIGINT asks for a drain, the second exits at once.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

import anyio
import anyio.abc
from aiohttp import web, web_response

from modelbox._serving.hello import HelloWatch
from modelbox._serving.listening import BACKLOG, BoundSite
from modelbox.errors import ConfigError

__all__ = (
    "address_of",
    "bind",
    "hide_versions",
    "package_version",
    "run_http",
    "serve_until_signalled",
    "single_error",
    "task_group",
)

_LOG = logging.getLogger(__name__)
_READ_BUFFER = 1 << 20


async def serve_until_signalled(serve: Callable[[anyio.Event], Awaitable[None]]) -> None:
    """Runs ``serve(stopping)``, which ends by itself soon after ``stopping`` is set by a signal.

    Errors come out unwrapped where there is one.
    """
    try:
        stopping = anyio.Event()
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_obey, signals, stopping, name="signals")
                await serve(stopping)
                tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise single_error(group) from group


async def _obey(signals: AsyncIterator[signal.Signals], stopping: anyio.Event) -> None:
    async for number in signals:
        if stopping.is_set():
            _LOG.warning("exiting at once on a second %s", signal.Signals(number).name)
            os._exit(128 + number)
        _LOG.info("stopping on %s", signal.Signals(number).name)
        stopping.set()


def single_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one exception in nested groups of one."""
    inner: BaseException = group
    while isinstance(inner, BaseExceptionGroup) and len(inner.exceptions) == 1:
        inner = inner.exceptions[0]
    return inner


@asynccontextmanager
async def task_group() -> AsyncGenerator[anyio.abc.TaskGroup]:
    """A task group that is cancelled at the end."""
    async with anyio.create_task_group() as tasks:
        yield tasks
        tasks.cancel_scope.cancel()


async def run_http(
    stack: AsyncExitStack,
    app: web.Application,
    sock: socket.socket,
    *,
    drain_s: float,
    hello: HelloWatch | None = None,
    tasks: anyio.abc.TaskGroup | None = None,
    tls: ssl.SSLContext | None = None,
    handshake_timeout_s: float = 5.0,
) -> web.AppRunner:
    """Serves ``app`` on a bound socket; ``runner.cleanup()`` drains it, at the latest when ``stack`` closes.

    Args:
        stack: Closes the runner.
        app: What to serve.
        sock: Bound already.
        drain_s: Seconds that requests get to end.
        hello: Ends connections that never send a request; needs ``tasks``.
        tasks: Where that happens.
        tls: None for plaintext.
        handshake_timeout_s: Seconds for the whole handshake of TLS.
    """
    hide_versions()
    runner = web.AppRunner(
        app,
        handle_signals=False,
        access_log=None,
        handler_cancellation=True,
        keepalive_timeout=60.0,
        shutdown_timeout=drain_s,
        read_bufsize=_READ_BUFFER,
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    if hello is not None and runner.server is not None:
        hello.limit(runner.server)
    shares = hello.shares if hello is not None else None
    await BoundSite(runner, sock, tls=tls, handshake_timeout_s=handshake_timeout_s, shares=shares).start()
    if hello is not None and tasks is not None and runner.server is not None:
        tasks.start_soon(hello.run, runner.server, name="silent HTTP connections")
    return runner


def hide_versions() -> None:
    """Has aiohttp's answers say ``Server: modelbox``, for the whole process.

    They would tell everybody, token or not, the releases of aiohttp and Python. What has no request that could be read
    passes no middleware and no signal, so there is no other place to set it.
    """
    web_response.SERVER_SOFTWARE = "modelbox"  # type: ignore[attr-defined]  # it looks for it there


def bind(host: str, port: int, key: str) -> socket.socket:
    """A listening socket.

    Raises:
        ConfigError: The address or the port cannot be had; ``key`` names the setting.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # With the protocol named, event loops switch Nagle's algorithm off; without, keep-alive requests take 40 ms.
        sock = socket.socket(family, kind, socket.IPPROTO_TCP)
    except OSError as exc:
        raise ConfigError(f"host = {host!r} is no address of this machine: {exc.strerror or exc}") from exc
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as exc:
        sock.close()
        raise ConfigError(
            f"{key} = {port}: cannot listen on {host}:{port}: {exc.strerror or exc}; choose another {key}, 0 takes a "
            "free one"
        ) from exc
    return sock


def address_of(sock: socket.socket) -> str:
    """Where a socket listens, as ``host:port``."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def package_version() -> str:
    """The release of ModelBox that runs."""
    try:
        return version("modelbox")
    except PackageNotFoundError:
        return "unknown"
