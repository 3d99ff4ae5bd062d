"""The composition root: builds the server of its parts, runs it, and stops it without losing a call.

Owns the order of start and stop, signals and sockets. Start: settings, sockets, database, services, adapters; then one
line on stdout says where it listens. Stop, on SIGTERM or SIGINT: not ready, no new work, watches end with a bookmark,
calls finish within ``drain_timeout_s``, connections close, database closes. A second signal exits at once; that is as
safe as a crash, which loses nothing that was acknowledged.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

import anyio
import anyio.abc
import anyio.to_thread
from aiohttp import web

from modelbox._proto.modelbox import v1 as pb
from modelbox.errors import ConfigError, StorageError

from .blobs.filesystem import FilesystemBlobs
from .config import ServerConfig
from .grpc.artifacts import ArtifactAdapter
from .grpc.calls import Boundary, CallLimits
from .grpc.fleet import FleetAdapter
from .grpc.guard import Limits
from .grpc.registry import RegistryAdapter
from .grpc.server import GrpcServer, Servable
from .grpc.standard import ServerAdapter, health_service, reflection_services
from .grpc.watch import WatchAdapter
from .health import Health
from .metrics import CONTENT_TYPE, Metrics
from .rest.app import build_app
from .rest.hello import HelloWatch
from .services.artifacts import ArtifactService
from .services.feed import FeedService
from .services.fleet import FleetService
from .services.registry import RegistryService
from .store.artifacts import SqlArtifactStore
from .store.feed import SqlFeedStore
from .store.fleet import SqlFleetStore
from .store.registry import SqlRegistryStore
from .store.sqlite import SqliteDatabase

__all__ = ("Addresses", "serve")

_LOG = logging.getLogger(__name__)
_SWEEP_INTERVAL_S = 3600.0
_READ_BUFFER = 1 << 20


class Addresses:
    """Where the server listens, as ``host:port``."""

    def __init__(self, *, grpc: str, http: str, metrics: str) -> None:
        self.grpc = grpc
        self.http = http
        self.metrics = metrics

    def __str__(self) -> str:
        return f"grpc={self.grpc} http={self.http} metrics={self.metrics}"


def _announce(addresses: Addresses) -> None:
    print(f"modelbox ready {addresses}", flush=True)


async def serve(config: ServerConfig, *, on_ready: Callable[[Addresses], None] = _announce) -> None:
    """Runs the server until a signal or a failure of its storage ends it.

    Args:
        config: The settings.
        on_ready: Called once everything answers.

    Raises:
        ConfigError: It cannot start so: a port is taken, the data directory is in use ...
        StorageError: The database failed for good while it ran.

    Cancellation: stops without a drain.
    """
    try:
        await _serve(config, on_ready)
    except BaseExceptionGroup as group:
        raise _single(group) from group


async def _serve(config: ServerConfig, on_ready: Callable[[Addresses], None]) -> None:
    stopping = anyio.Event()
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_obey, signals, stopping, name="signals")
            async with AsyncExitStack() as stack:
                server = _Server(config, stack)
                await server.start()
                try:
                    on_ready(server.addresses)
                    await server.run_until(stopping)
                finally:
                    with anyio.CancelScope(shield=True):
                        await server.stop()
            tasks.cancel_scope.cancel()


def _single(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one exception in nested groups of one."""
    inner: BaseException = group
    while isinstance(inner, BaseExceptionGroup) and len(inner.exceptions) == 1:
        inner = inner.exceptions[0]
    return inner


async def _obey(signals: AsyncIterator[signal.Signals], stopping: anyio.Event) -> None:
    async for number in signals:
        if stopping.is_set():
            _LOG.warning("exiting at once on a second %s", signal.Signals(number).name)
            os._exit(128 + number)
        _LOG.info("stopping on %s", signal.Signals(number).name)
        stopping.set()


class _Server:
    def __init__(self, config: ServerConfig, stack: AsyncExitStack) -> None:
        self._config = config
        self._stack = stack
        self._health = Health()
        self._metrics = Metrics()

    async def start(self) -> None:
        config, metrics, health = self._config, self._metrics, self._health
        sockets = [
            self._stack.enter_context(_bind(config.host, port, key))
            for key, port in (
                ("grpc_port", config.grpc_port),
                ("http_port", config.http_port),
                ("metrics_port", config.metrics_port),
            )
        ]
        self.addresses = Addresses(grpc=_address(sockets[0]), http=_address(sockets[1]), metrics=_address(sockets[2]))
        self._database = await self._stack.enter_async_context(
            SqliteDatabase(config.data_dir, observe=metrics.observe_database)
        )
        blobs = await self._stack.enter_async_context(FilesystemBlobs(config.data_dir))
        feed_store = SqlFeedStore(self._database)
        registry = RegistryService(SqlRegistryStore(self._database), blobs)
        artifacts = ArtifactService(SqlArtifactStore(self._database), blobs)
        fleet = FleetService(SqlFleetStore(self._database))
        self._feed = await self._stack.enter_async_context(
            FeedService(feed_store, bookmark_interval_s=config.bookmark_interval_s)
        )
        info = {
            "server_id": (await feed_store.head()).server_id,
            "version": _version(),
            "grpc_address": config.advertise_grpc or _reachable(sockets[0]),
            "http_address": config.advertise_http or _reachable(sockets[1]),
        }
        tasks = await self._stack.enter_async_context(_task_group())
        tasks.start_soon(_sweep_for_ever, artifacts, name="upload sweeper")

        self._boundary = Boundary(
            limits=CallLimits(
                call_timeout_s=config.call_timeout_s,
                send_timeout_s=config.send_timeout_s,
                stall_timeout_s=config.stall_timeout_s,
            ),
            metrics=metrics,
            health=health,
        )
        services: list[Servable] = [
            self._boundary.wrap(RegistryAdapter(registry)),
            self._boundary.wrap(ArtifactAdapter(artifacts, metrics)),
            self._boundary.wrap(WatchAdapter(self._feed)),
            self._boundary.wrap(FleetAdapter(fleet)),
            self._boundary.wrap(ServerAdapter(pb.ServerInfo(**info))),
        ]
        standard = [health_service(health, services), *reflection_services(services)]
        self._grpc = GrpcServer(
            [*services, *(self._boundary.wrap(service, always=True) for service in standard)],
            limits=Limits(
                max_message_bytes=config.max_message_bytes,
                max_connections=config.max_connections,
                max_streams=config.max_streams,
                hello_timeout_s=config.hello_timeout_s,
                keepalive_s=config.keepalive_s,
            ),
        )

        hello = HelloWatch(config.hello_timeout_s)
        app = build_app(
            registry=registry,
            artifacts=artifacts,
            feed=self._feed,
            health=health,
            hello=hello,
            metrics=metrics,
            server_info=info,
            loopback=config.loopback,
            send_timeout_s=config.send_timeout_s,
            stall_timeout_s=config.stall_timeout_s,
        )
        self._http = await self._run_http(app, sockets[1], hello, tasks, drain_s=config.drain_timeout_s)
        self._scrapes = await self._run_http(_metrics_app(metrics), sockets[2], None, tasks, drain_s=1.0)
        await self._grpc.listen(sockets[0])

        metrics.describe(version=info["version"], server_id=info["server_id"])
        metrics.observe_gauge("modelbox_grpc_connections", "Open gRPC connections.", lambda: self._grpc.connections)
        metrics.observe_gauge("modelbox_watchers", "Open streams of the change feed.", lambda: self._feed.watchers)
        health.set_ready()

    async def _run_http(
        self,
        app: web.Application,
        sock: socket.socket,
        hello: HelloWatch | None,
        tasks: anyio.abc.TaskGroup,
        *,
        drain_s: float,
    ) -> web.AppRunner:
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
        self._stack.push_async_callback(runner.cleanup)
        await web.SockSite(runner, sock, backlog=1024).start()
        if hello is not None and runner.server is not None:
            tasks.start_soon(hello.run, runner.server, name="silent HTTP connections")
        return runner

    async def run_until(self, stopping: anyio.Event) -> None:
        """Returns when it is time to stop; raises when the database has failed for good."""
        async with anyio.create_task_group() as tasks:

            async def watch_database() -> None:
                raise await self._database.wait_failed()

            tasks.start_soon(watch_database, name="database watch")
            await stopping.wait()
            tasks.cancel_scope.cancel()

    async def stop(self) -> None:
        """Drains and closes what listens; the rest closes with the stack."""
        self._health.set_unready("shutting down")
        self._feed.drain()
        self._boundary.end_ambient()
        _LOG.info("draining: new work is refused, calls have %s s to end", self._config.drain_timeout_s)
        async with anyio.create_task_group() as closing:
            closing.start_soon(self._close_grpc, name="drain gRPC")
            closing.start_soon(self._http.cleanup, name="drain HTTP")
        await self._scrapes.cleanup()

    async def _close_grpc(self) -> None:
        cut_off = await self._grpc.aclose(grace_s=self._config.drain_timeout_s)
        if cut_off:
            _LOG.warning("cut off %d gRPC calls that did not end within %s s", cut_off, self._config.drain_timeout_s)


async def _sweep_for_ever(artifacts: ArtifactService) -> None:
    while True:
        try:
            dropped = await artifacts.sweep_uploads()
        except StorageError:
            _LOG.exception("could not remove stale uploads; trying again later")
        else:
            if dropped:
                _LOG.info("removed %d stale uploads", dropped)
        await anyio.sleep(_SWEEP_INTERVAL_S)


@asynccontextmanager
async def _task_group() -> AsyncIterator[anyio.abc.TaskGroup]:
    async with anyio.create_task_group() as tasks:
        yield tasks
        tasks.cancel_scope.cancel()


def _metrics_app(metrics: Metrics) -> web.Application:
    async def scrape(request: web.Request) -> web.Response:
        body = await anyio.to_thread.run_sync(metrics.render)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    app = web.Application()
    app.add_routes([web.get("/metrics", scrape)])
    return app


def _bind(host: str, port: int, key: str) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # With the protocol named, event loops switch Nagle's algorithm off; without, keep-alive requests take 40 ms.
        sock = socket.socket(family, kind, socket.IPPROTO_TCP)
    except OSError as exc:
        raise ConfigError(f"host = {host!r} is no address of this machine: {exc.strerror or exc}") from exc
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(1024)
        sock.setblocking(False)
    except OSError as exc:
        sock.close()
        raise ConfigError(
            f"{key} = {port}: cannot listen on {host}:{port}: {exc.strerror or exc}; choose another {key}, 0 takes a "
            "free one"
        ) from exc
    return sock


def _address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _reachable(sock: socket.socket) -> str:
    """What clients are told: an address, or the port alone where every address of this machine will do."""
    host, port = sock.getsockname()[:2]
    return f":{port}" if host in ("0.0.0.0", "::") else _address(sock)


def _version() -> str:
    try:
        return version("modelbox")
    except PackageNotFoundError:
        return "unknown"
