"""The composition root: builds the server of its parts, runs it, and stops it without losing a call.

Owns the order of start and stop, signals and sockets. Start: settings, sockets, database, services, adapters; then one
line on stdout says where it listens. Stop, on SIGTERM or SIGINT: not ready, no new work, watches end with a bookmark,
calls finish within ``drain_timeout_s``, connections close, database closes. A second signal exits at once; that is as
safe as a crash, which loses nothing that was acknowledged.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta

import anyio
import anyio.to_thread

from modelbox._serving.admission import Admission
from modelbox._serving.guard import Limits
from modelbox._serving.health import Health
from modelbox._serving.hello import HelloWatch
from modelbox._serving.process import address_of, bind, package_version, run_http, serve_until_signalled, task_group
from modelbox._serving.proxies import TrustedProxies
from modelbox._serving.scrapes import scrape_app
from modelbox._serving.shares import ConnectionShares
from modelbox._serving.tls import open_tls
from modelbox.errors import ModelBoxError, ServerBusy, TransportError
from modelbox.feed import Kind
from modelbox.rules import parse_patterns
from modelbox.runtime.blobs.opening import S3Options, open_blobs
from modelbox.runtime.config import ServerConfig
from modelbox.runtime.data_dir import check_data_dir
from modelbox.runtime.first_admin import make_first_admin
from modelbox.runtime.grpc.calls import Boundary, CallLimits
from modelbox.runtime.grpc.server import make_server
from modelbox.runtime.metrics import Metrics
from modelbox.runtime.permissions.gate import Gate
from modelbox.runtime.permissions.places import Places
from modelbox.runtime.permissions.table import check_routes
from modelbox.runtime.replica_ports import Lease
from modelbox.runtime.rest.app import build_app, routes_of
from modelbox.runtime.roles import RoleRules
from modelbox.runtime.services.access import AccessService
from modelbox.runtime.services.artifacts import ArtifactService
from modelbox.runtime.services.audit import AuditService
from modelbox.runtime.services.bundle import Services
from modelbox.runtime.services.datasets import DatasetService
from modelbox.runtime.services.denials import Denials
from modelbox.runtime.services.feed import FeedService
from modelbox.runtime.services.find import FindService
from modelbox.runtime.services.fleet import FleetService
from modelbox.runtime.services.housekeeping import Housekeeping
from modelbox.runtime.services.lineage import LineageService
from modelbox.runtime.services.members import MemberService
from modelbox.runtime.services.metrics import MetricService
from modelbox.runtime.services.notes import NoteService
from modelbox.runtime.services.registry import RegistryService
from modelbox.runtime.services.retention import RetentionService
from modelbox.runtime.services.rules import RuleService
from modelbox.runtime.services.space import SpaceService
from modelbox.runtime.services.tracking import TrackingService
from modelbox.runtime.store.access import SqlAccessStore
from modelbox.runtime.store.approvals import SqlRuleStore
from modelbox.runtime.store.artifacts import SqlArtifactStore
from modelbox.runtime.store.audit import SqlAuditStore
from modelbox.runtime.store.datasets import SqlDatasetStore
from modelbox.runtime.store.feed import SqlFeedStore
from modelbox.runtime.store.find import SqlFindStore
from modelbox.runtime.store.fleet import SqlFleetStore
from modelbox.runtime.store.importing import refuse_unfinished_import
from modelbox.runtime.store.leases import SqlLeases
from modelbox.runtime.store.lineage import SqlLineageStore
from modelbox.runtime.store.members import SqlMemberStore
from modelbox.runtime.store.metrics import SqlMetricStore
from modelbox.runtime.store.notes import SqlNoteStore
from modelbox.runtime.store.opening import open_database
from modelbox.runtime.store.places import SqlPlaceStore
from modelbox.runtime.store.registry import SqlRegistryStore
from modelbox.runtime.store.retention import SqlRetentionStore
from modelbox.runtime.store.space import SqlSpaceStore
from modelbox.runtime.store.tracking import SqlTrackingStore

__all__ = ("Addresses", "serve")

_LOG = logging.getLogger(__name__)
_SWEEP_INTERVAL_S = 3600.0
_COMPACT_INTERVAL_S = 600.0
_LEASE_S = 15.0
_LEASE_ALONE_S = 600.0
"""Of a server that shares its database with none: nobody waits for it, and each renewal is a write."""


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

    async def run(stopping: anyio.Event) -> None:
        async with AsyncExitStack() as stack:
            server = _Server(config, stack)
            await server.start()
            try:
                on_ready(server.addresses)
                await server.run_until(stopping)
            finally:
                with anyio.CancelScope(shield=True):
                    await server.stop()

    await serve_until_signalled(run)


class _Server:
    def __init__(self, config: ServerConfig, stack: AsyncExitStack) -> None:
        self._config = config
        self._stack = stack
        self._health = Health()
        self._metrics = Metrics()
        self._stopping = False

    async def start(self) -> None:
        config, metrics, health = self._config, self._metrics, self._health
        sockets = [
            self._stack.enter_context(bind(config.host, port, key))
            for key, port in (
                ("grpc_port", config.grpc_port),
                ("http_port", config.http_port),
                ("metrics_port", config.metrics_port),
            )
        ]
        self.addresses = Addresses(
            grpc=address_of(sockets[0]), http=address_of(sockets[1]), metrics=address_of(sockets[2])
        )
        tls = await open_tls(config)
        grpc_tls, http_tls = (tls.grpc, tls.http) if tls is not None else (None, None)
        await anyio.to_thread.run_sync(check_data_dir, config.data_dir)
        self._database = await self._stack.enter_async_context(
            open_database(
                config.database_url,
                data_dir=config.data_dir,
                connections=config.database_connections,
                connect_timeout_s=config.database_connect_timeout_s,
                observe=metrics.observe_database,
                observe_metrics=lambda operation, *seen: metrics.observe_database(f"metrics_{operation}", *seen),
            )
        )
        await self._database.read(refuse_unfinished_import)
        blobs = await self._stack.enter_async_context(
            open_blobs(
                config.blobs_url,
                data_dir=config.data_dir,
                connect_timeout_s=config.database_connect_timeout_s,
                s3=S3Options(
                    endpoint=config.s3_endpoint,
                    region=config.s3_region,
                    path_style=config.s3_path_style,
                    public_endpoint=config.s3_public_endpoint,
                    presign=config.s3_presign,
                ),
            )
        )
        feed_store = SqlFeedStore(self._database)
        audit_store = SqlAuditStore(self._database)
        places = Places(SqlPlaceStore(self._database))
        self._feed = await self._stack.enter_async_context(
            FeedService(
                feed_store,
                bookmark_interval_s=config.bookmark_interval_s,
                keep_audit=timedelta(days=config.audit_retention_days),
                places=places.find,
                max_watches=config.max_watches,
                compact_interval_s=None,
            )
        )
        access_store = SqlAccessStore(self._database)
        if config.access_on:
            await make_first_admin(access_store, config.admin_token_path)
        access = AccessService(access_store, on=config.access_on)
        self._feed.observe(Kind.ACCESS, access.changed)
        access.on_change(self._feed.access_changed)
        await self._stack.enter_async_context(access)
        fixed = {
            "server_id": (await feed_store.head()).server_id,
            "version": package_version(),
            "grpc_address": config.advertise_grpc or _reachable(sockets[0]),
            "http_address": config.advertise_http or _reachable(sockets[1]),
        }
        rules = RoleRules(config.role)
        alone = not config.database_url
        lease_s = _LEASE_ALONE_S if alone else _LEASE_S
        self._members = MemberService(
            SqlMemberStore(self._database),
            name=config.replica_name or f"{socket.gethostname()}:{sockets[0].getsockname()[1]}",
            role=config.role,
            grpc_address=_complete(fixed["grpc_address"]),
            http_address=_complete(fixed["http_address"]),
            version=fixed["version"],
            rev=lambda: self._feed.rev,
            trouble=lambda: self._database.trouble,
            on_trouble=self._on_trouble,
            alone=alone,
            lease_s=lease_s,
        )

        def info() -> dict[str, str]:
            if config.role == "control":
                return {**fixed, "bytes_address": self._members.http_with_bytes()}
            return fixed

        tracking_store = SqlTrackingStore(self._database)
        metric_service = MetricService(SqlMetricStore(self._database.metrics), tracking_store)
        artifacts = ArtifactService(SqlArtifactStore(self._database), blobs, metrics=metric_service)
        tracking = TrackingService(tracking_store, metric_service)
        retention = RetentionService(SqlRetentionStore(self._database), tracking, metrics=metric_service)
        space = SpaceService(SqlSpaceStore(self._database), blobs, grace_s=config.blob_grace_s)
        if alone:
            await space.resume_removals()
        protected = parse_patterns(config.protected_aliases)
        registry = SqlRegistryStore(
            self._database, protected=protected, approval_wait=timedelta(seconds=config.approval_wait_s)
        )
        services = Services(
            registry=RegistryService(registry, blobs, metrics=metric_service),
            access=access,
            artifacts=artifacts,
            feed=self._feed,
            fleet=FleetService(SqlFleetStore(self._database.aside), clock=self._members.now),
            tracking=tracking,
            metrics=metric_service,
            notes=NoteService(SqlNoteStore(self._database)),
            datasets=DatasetService(SqlDatasetStore(self._database)),
            lineage=LineageService(SqlLineageStore(self._database)),
            find=FindService(SqlFindStore(self._database, limit_s=config.find_timeout_s)),
            retention=retention,
            rules=RuleService(SqlRuleStore(self._database, protected=protected)),
            space=space,
            audit=AuditService(audit_store),
            members=self._members,
        )
        tasks = await self._stack.enter_async_context(task_group())

        denials = Denials(audit_store)
        await self._stack.enter_async_context(denials.running())
        gate = Gate(access, places, denials=denials)
        admission = Admission(config.max_calls)
        proxies = TrustedProxies(config.trusted_proxies)
        self._boundary = Boundary(
            limits=CallLimits(
                call_timeout_s=config.call_timeout_s,
                send_timeout_s=config.send_timeout_s,
                stall_timeout_s=config.stall_timeout_s,
            ),
            metrics=metrics,
            health=health,
            gate=gate,
            admission=admission,
            rules=rules,
            bytes_address=self._members.http_with_bytes,
            proxies=proxies,
        )
        self._grpc = make_server(
            services,
            info=info,
            boundary=self._boundary,
            limits=Limits(
                max_message_bytes=config.max_message_bytes,
                max_connections=config.max_connections,
                max_connections_per_address=config.max_connections_per_address,
                shared_address=proxies.trusts,
                max_streams=config.max_streams,
                hello_timeout_s=config.hello_timeout_s,
                keepalive_s=config.keepalive_s,
            ),
            stall_s=config.stall_timeout_s,
            health=health,
            metrics=metrics,
        )

        http_shares, scrape_shares = (
            ConnectionShares(config.max_connections, config.max_connections_per_address, shared=proxies.trusts)
            for _ in range(2)
        )
        hello = HelloWatch(config.hello_timeout_s, http_shares)
        app = build_app(
            services=services,
            health=health,
            hello=hello,
            metrics=metrics,
            server_info=info,
            gate=gate,
            admission=admission,
            rules=rules,
            loopback=config.loopback,
            call_timeout_s=config.call_timeout_s,
            send_timeout_s=config.send_timeout_s,
            stall_timeout_s=config.stall_timeout_s,
            proxies=proxies,
        )
        self._http = await run_http(
            self._stack,
            app,
            sockets[1],
            hello=hello,
            tasks=tasks,
            drain_s=config.drain_timeout_s,
            tls=http_tls,
            handshake_timeout_s=config.hello_timeout_s,
        )
        scrape_hello = HelloWatch(config.hello_timeout_s, scrape_shares)
        scrapes = scrape_app(metrics.render, scrape_hello)
        check_routes(routes_of(scrapes))
        self._scrapes = await run_http(
            self._stack,
            scrapes,
            sockets[2],
            hello=scrape_hello,
            tasks=tasks,
            drain_s=1.0,
            tls=http_tls,
            handshake_timeout_s=config.hello_timeout_s,
        )
        await self._grpc.listen(sockets[0], grpc_tls)
        if tls is not None:
            tasks.start_soon(tls.watch, name="new TLS files")
            for name, (help_text, read) in tls.gauges().items():
                metrics.observe_gauge(name, help_text, read)

        metrics.describe(version=fixed["version"], server_id=fixed["server_id"])
        metrics.observe_gauge("modelbox_grpc_connections", "Open gRPC connections.", lambda: self._grpc.connections)
        metrics.observe_gauge("modelbox_http_connections", "Open HTTP connections.", lambda: len(http_shares))
        metrics.observe_gauge(
            "modelbox_connections_refused",
            "Connections closed at once since the start, as there were too many.",
            lambda: self._grpc.refused + http_shares.refused + scrape_shares.refused,
        )
        metrics.observe_gauge(
            "modelbox_calls_refused",
            "Calls refused since the start, as too many were in work.",
            lambda: admission.refused,
        )
        metrics.observe_gauge("modelbox_watchers", "Open streams of the change feed.", lambda: self._feed.watchers)
        for name, (help_text, read) in self._database.gauges().items():
            metrics.observe_gauge(name, help_text, read)
        await self._stack.enter_async_context(self._members)

        async def keep_house(lease: Lease) -> None:
            async with anyio.create_task_group() as chores:
                for work, what, every_s in (
                    (artifacts.sweep_uploads, "stale uploads", _SWEEP_INTERVAL_S),
                    (tracking.finish_deletions, "what is below the bin", _SWEEP_INTERVAL_S),
                    (metric_service.sweep, "metrics of nothing", _SWEEP_INTERVAL_S),
                    (metric_service.keep_partitions, "empty months of metrics", _SWEEP_INTERVAL_S),
                    (retention.sweep, "what no policy keeps", config.retention_interval_s),
                    (space.sweep, "bytes that nobody needs", config.retention_interval_s),
                    (self._feed.compact, "old revisions of the change feed", _COMPACT_INTERVAL_S),
                ):
                    chores.start_soon(_sweep_for_ever, work, what, every_s, name=f"remove {what}")

        leases = SqlLeases(self._database)
        housekeeping = Housekeeping(leases, self._members.id, lease_s=lease_s)
        tasks.start_soon(housekeeping.run, "housekeeping", keep_house, name="housekeeping")
        health.set_ready()

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
        self._stopping = True
        self._health.set_unready("shutting down", accepting=True)
        await self._members.drain()
        await anyio.sleep(self._config.drain_delay_s)
        self._health.set_unready("shutting down")
        self._feed.drain(spread_s=self._config.drain_timeout_s / 2)
        self._boundary.end_ambient()
        _LOG.info("draining: new work is refused, calls have %s s to end", self._config.drain_timeout_s)
        async with anyio.create_task_group() as closing:
            closing.start_soon(self._close_grpc, name="drain gRPC")
            closing.start_soon(self._http.cleanup, name="drain HTTP")
        await self._scrapes.cleanup()

    def _on_trouble(self, reason: str) -> None:
        """Tells balancers that others may do better while the database is away; calls are tried all the same."""
        if self._stopping or bool(reason) != self._health.ready:
            return
        if reason:
            _LOG.warning("degraded: %s", reason)
            self._health.set_unready(f"degraded: {reason}", accepting=True)
        else:
            _LOG.info("all is well again")
            self._health.set_ready()

    async def _close_grpc(self) -> None:
        cut_off = await self._grpc.aclose(grace_s=self._config.drain_timeout_s)
        if cut_off:
            _LOG.warning("cut off %d gRPC calls that did not end within %s s", cut_off, self._config.drain_timeout_s)


async def _sweep_for_ever(sweep: Callable[[], Awaitable[int]], what: str, every_s: float) -> None:
    """Removes what nobody needs, at the start and then every so many seconds."""
    while True:
        try:
            removed = await sweep()
        except (ServerBusy, TransportError) as exc:
            _LOG.warning("could not remove %s: %s; trying again later", what, exc)
        except ModelBoxError:
            _LOG.exception("could not remove %s; trying again later", what)
        else:
            if removed:
                _LOG.info("removed %s: %d", what, removed)
        await anyio.sleep(every_s)


def _complete(address: str) -> str:
    """``address`` with this machine's name where it has none."""
    return f"{socket.gethostname()}{address}" if address.startswith(":") else address


def _reachable(sock: socket.socket) -> str:
    """What clients are told: an address, or the port alone where every address of this machine will do."""
    host, port = sock.getsockname()[:2]
    return f":{port}" if host in ("0.0.0.0", "::") else address_of(sock)
