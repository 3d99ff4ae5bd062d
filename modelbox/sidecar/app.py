"""The composition root: builds the sidecar of its parts, runs it, and stops it without losing an accepted call.

Owns the order of start and stop. Start: settings, execution providers, sockets, metrics, the service with its models,
the protocols; one line on stdout says where it listens, a second one that every configured model answers. Stop, on
SIGTERM or SIGINT: readiness off, ``drain_delay_s`` for those who route requests to notice, no new connections, accepted
calls finish within ``drain_timeout_s``, then the models are given back. A second signal exits at once.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial

import anyio
import anyio.to_thread

from modelbox._serving.grpc import GrpcServer
from modelbox._serving.guard import Limits
from modelbox._serving.hello import HelloWatch
from modelbox._serving.process import address_of, bind, package_version, run_http, serve_until_signalled, task_group
from modelbox._serving.scrapes import scrape_app
from modelbox._serving.shares import ConnectionShares
from modelbox._serving.tls import open_tls
from modelbox.client import Client
from modelbox.config import ClientConfig, load_client_config
from modelbox.errors import ConfigError
from modelbox.loader.pool import available_cores
from modelbox.loader.session import runtime
from modelbox.sidecar.config import SidecarConfig
from modelbox.sidecar.limits import ProtocolLimits
from modelbox.sidecar.metrics import SidecarMetrics
from modelbox.sidecar.model_settings import providers_of, serving_of
from modelbox.sidecar.oip.grpc import make_server
from modelbox.sidecar.oip.http import HttpServer
from modelbox.sidecar.oip.routes import Routes
from modelbox.sidecar.oip.shared_memory import IDLE_S, SharedMemory
from modelbox.sidecar.service import InferenceService
from modelbox.sidecar.socket.server import SocketLimits, SocketServer

__all__ = ("Addresses", "serve")

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where the sidecar listens: ``host:port``, or ``-`` for what is switched off."""

    http: str = "-"
    grpc: str = "-"
    metrics: str = "-"
    socket: str = "-"

    def __str__(self) -> str:
        return f"http={self.http} grpc={self.grpc} metrics={self.metrics} socket={self.socket}"


def _announce(what: str, addresses: Addresses) -> None:
    print(f"modelbox sidecar {what} {addresses}", flush=True)


async def serve(config: SidecarConfig, *, announce: Callable[[str, Addresses], None] = _announce) -> None:
    """Runs the sidecar until a signal ends it.

    Args:
        config: The settings.
        announce: Called with ``listening`` once it can be asked, and with ``ready`` whenever every configured model has
            come to answer for the first time.

    Raises:
        ConfigError: It cannot start so: a port is taken, an execution provider is missing ...

    Cancellation: stops without a drain.
    """

    async def run(stopping: anyio.Event) -> None:
        async with AsyncExitStack() as stack:
            sidecar = _Sidecar(config, stack)
            await sidecar.start()
            try:
                announce("listening", sidecar.addresses)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(sidecar.tell_ready, announce, name="ready line")
                    await stopping.wait()
                    tasks.cancel_scope.cancel()
            finally:
                with anyio.CancelScope(shield=True):
                    await sidecar.stop()

    await serve_until_signalled(run)


class _Sidecar:
    def __init__(self, config: SidecarConfig, stack: AsyncExitStack) -> None:
        self._config = config
        self._stack = stack
        self._http: HttpServer | None = None
        self._grpc: GrpcServer | None = None
        self._socket: SocketServer | None = None

    async def start(self) -> None:
        config, stack = self._config, self._stack
        await anyio.to_thread.run_sync(_check_providers, providers_of(config))
        sockets = {
            name: stack.enter_context(bind(config.host, port, f"{name}_port"))
            for name, port, wanted in (
                ("http", config.http_port, config.http),
                ("grpc", config.grpc_port, config.grpc),
                ("metrics", config.metrics_port, True),
            )
            if wanted
        }
        tls = await open_tls(config)
        grpc_tls, http_tls = (tls.grpc, tls.http) if tls is not None else (None, None)
        metrics = SidecarMetrics()
        limits = ProtocolLimits(
            max_request_bytes=config.max_request_bytes,
            idle_timeout_s=config.idle_timeout_s,
            repository_control=config.repository_control,
            shared_memory=config.shared_memory,
            loopback=config.loopback,
        )
        client = Client(config=await anyio.to_thread.run_sync(_client_config, config))
        stack.push_async_callback(client.aclose)
        self._service = service = await stack.enter_async_context(
            InferenceService(
                client,
                config.models,
                serving=partial(serving_of, config),
                cache_bytes=int(config.prediction_cache_mb * (1 << 20)),
                limits=limits,
                drain_timeout_s=config.drain_timeout_s,
            )
        )
        metrics.observe(service, version=package_version())
        self._tasks = await stack.enter_async_context(task_group())
        if tls is not None:
            self._tasks.start_soon(tls.watch, name="new TLS files")
            for gauge, (help_text, read) in tls.gauges().items():
                metrics.observe_gauge(gauge, help_text, read)
        memory: SharedMemory | None = None
        if config.shared_memory:
            # One namespace for both protocols.
            memory = SharedMemory()
            stack.callback(memory.close)
            self._tasks.start_soon(_sweep_for_ever, memory, name="shared memory of clients that are gone")
        if "http" in sockets:
            self._http = await stack.enter_async_context(
                HttpServer(
                    Routes(
                        service,
                        memory=memory,
                        repository=config.repository_control,
                        max_body_bytes=config.max_request_bytes,
                        loopback=config.loopback,
                    ),
                    max_body_bytes=config.max_request_bytes,
                    shares=_shares(config),
                    idle_timeout_s=config.idle_timeout_s,
                )
            )
            await self._http.listen(sockets["http"], http_tls)
            metrics.observe_gauge("modelbox_http_connections", "Open HTTP connections.", self._count_http)
        if "grpc" in sockets:
            self._grpc = make_server(
                service,
                Limits(
                    max_message_bytes=config.max_request_bytes,
                    max_connections=config.max_connections,
                    max_connections_per_address=config.share_of_address,
                    shared_address=config.shares_address,
                    max_streams=config.max_streams,
                ),
                memory,
            )
            await self._grpc.listen(sockets["grpc"], grpc_tls)
            metrics.observe_gauge("modelbox_grpc_connections", "Open gRPC connections.", self._count_grpc)
        scrape_shares = _shares(config)
        hello = HelloWatch(config.idle_timeout_s, scrape_shares)
        self._scrapes = await run_http(
            stack,
            scrape_app(metrics.render, hello),
            sockets["metrics"],
            hello=hello,
            tasks=self._tasks,
            drain_s=1.0,
            tls=http_tls,
        )
        metrics.observe_gauge(
            "modelbox_connections_refused",
            "Connections refused since the start, on any port, as there were too many.",
            lambda: (
                scrape_shares.refused
                + (self._http.shares.refused if self._http is not None else 0)
                + (self._grpc.refused if self._grpc is not None else 0)
            ),
        )
        if config.socket is not None:
            self._socket = await stack.enter_async_context(
                SocketServer(
                    service,
                    config.socket,
                    mode=config.socket_mode,
                    user_ids=frozenset(config.socket_users) if config.socket_users else None,
                    limits=SocketLimits(
                        max_connections=config.max_connections,
                        max_request_bytes=config.max_request_bytes,
                        stall_timeout_s=config.idle_timeout_s,
                        # With one processor, whoever looks takes it from whoever calls.
                        linger_s=config.socket_linger_us / 1e6 if available_cores() > 1 else 0.0,
                    ),
                    may_load=config.repository_control,
                )
            )
            metrics.observe_gauge(
                "modelbox_socket_connections", "Open connections of the Unix socket.", self._count_socket
            )
        self.addresses = Addresses(
            **{name: address_of(sock) for name, sock in sockets.items()},
            socket=str(config.socket) if config.socket is not None else "-",
        )

    def _count_http(self) -> float:
        return self._http.connections if self._http is not None else 0

    def _count_grpc(self) -> float:
        return self._grpc.connections if self._grpc is not None else 0

    def _count_socket(self) -> float:
        return self._socket.connections if self._socket is not None else 0

    async def tell_ready(self, announce: Callable[[str, Addresses], None]) -> None:
        """Says once that every configured model answers."""
        ready = anyio.Event()
        self._service.health.on_change(lambda now: ready.set() if now else None)
        if not self._service.ready():
            await ready.wait()
        announce("ready", self.addresses)

    async def stop(self) -> None:
        """Drains and closes what listens; the rest closes with the stack."""
        config = self._config
        self._service.drain()
        _LOG.info("draining: not ready any more, accepted calls have %s s to end", config.drain_timeout_s)
        await anyio.sleep(config.drain_delay_s)
        async with anyio.create_task_group() as closing:
            if self._grpc is not None:
                closing.start_soon(self._close_grpc, self._grpc, name="drain gRPC")
            if self._http is not None:
                closing.start_soon(self._close_http, self._http, name="drain HTTP")
            if self._socket is not None:
                closing.start_soon(self._close_socket, self._socket, name="drain the Unix socket")
        await self._scrapes.cleanup()

    async def _close_socket(self, server: SocketServer) -> None:
        with anyio.move_on_after(self._config.drain_timeout_s) as scope:
            await server.drain()
        if scope.cancelled_caught:
            _LOG.warning("cut off calls over the Unix socket after %s s", self._config.drain_timeout_s)

    async def _close_http(self, server: HttpServer) -> None:
        cut_off = await server.aclose(grace_s=self._config.drain_timeout_s)
        if cut_off:
            _LOG.warning("cut off %d HTTP calls that did not end within %s s", cut_off, self._config.drain_timeout_s)

    async def _close_grpc(self, server: GrpcServer) -> None:
        cut_off = await server.aclose(grace_s=self._config.drain_timeout_s)
        if cut_off:
            _LOG.warning("cut off %d gRPC calls that did not end within %s s", cut_off, self._config.drain_timeout_s)


async def _sweep_for_ever(memory: SharedMemory) -> None:
    while True:
        await anyio.sleep(IDLE_S / 4)
        memory.sweep()


def _shares(config: SidecarConfig) -> ConnectionShares:
    return ConnectionShares(config.max_connections, config.share_of_address, shared=config.shares_address)


def _client_config(config: SidecarConfig) -> ClientConfig:
    # It is the sidecar: its own models run here, whatever the environment tells applications.
    return load_client_config(url=config.server or None, cache_dir=config.cache_dir, sidecar="")


def _check_providers(providers: tuple[str, ...]) -> None:
    """Imports onnxruntime, and compares.

    Raises:
        ConfigError: A provider is not there.
    """
    there = runtime().get_available_providers()
    missing = [name for name in providers if name not in there]
    if missing:
        raise ConfigError(
            f"providers: the installed onnxruntime has no {', '.join(missing)}, only {', '.join(there)}; CUDA "
            "needs the package onnxruntime-gpu"
        )
