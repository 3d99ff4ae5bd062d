"""The HTTP application: which route leads to which handler."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aiohttp import web

from modelbox._serving.admission import Admission
from modelbox._serving.health import Health
from modelbox._serving.hello import HelloWatch
from modelbox._serving.proxies import NO_PROXIES, TrustedProxies
from modelbox.objects import to_json
from modelbox.runtime.caller import current_scope
from modelbox.runtime.metrics import Metrics
from modelbox.runtime.permissions.gate import Gate
from modelbox.runtime.permissions.table import check_routes
from modelbox.runtime.rest.access import AccessRoutes
from modelbox.runtime.rest.audit import AuditRoutes
from modelbox.runtime.rest.boundary import boundary, json_response
from modelbox.runtime.rest.changes import ChangeRoutes
from modelbox.runtime.rest.files import FileRoutes, ref_of
from modelbox.runtime.rest.find import FindRoutes
from modelbox.runtime.rest.metrics import MetricRoutes
from modelbox.runtime.rest.records import RecordRoutes
from modelbox.runtime.rest.rules import RuleRoutes
from modelbox.runtime.rest.space import SpaceRoutes
from modelbox.runtime.rest.tracking import TrackingRoutes
from modelbox.runtime.roles import RoleRules
from modelbox.runtime.services.bundle import Services

__all__ = ("build_app", "routes_of")

_MAX_BODY_BYTES = 1 << 20
_VERSION = "/api/v1/models/{ns}/{model}/versions/{selector}"


def build_app(
    *,
    services: Services,
    health: Health,
    hello: HelloWatch,
    metrics: Metrics,
    server_info: Callable[[], Mapping[str, str]],
    gate: Gate,
    admission: Admission,
    call_timeout_s: float,
    rules: RoleRules,
    loopback: bool,
    send_timeout_s: float,
    stall_timeout_s: float,
    proxies: TrustedProxies = NO_PROXIES,
) -> web.Application:
    """Wires routes to services; starts nothing.

    Args:
        services: What handlers call.
        health: What the probes say.
        hello: Told of every request.
        metrics: Where requests are counted.
        server_info: Gives what GET /api/v1/server answers; an address that begins with a colon is completed with the
            host that the client used.
        gate: Which requests pass, and whose.
        admission: How many requests there may be.
        call_timeout_s: How long a request may take.
        rules: Which routes are for servers of another role.
        loopback: Whether only this machine can reach the server.
        send_timeout_s: See `ChangeRoutes` and `MetricRoutes`.
        stall_timeout_s: See `FileRoutes`.
        proxies: Who is believed where a request comes from.
    """
    files = FileRoutes(services.artifacts, metrics, stall_timeout_s=stall_timeout_s)
    changes = ChangeRoutes(services.feed, metrics, send_timeout_s=send_timeout_s)

    async def healthz(request: web.Request) -> web.StreamResponse:
        return web.Response(text="ok\n")

    async def readyz(request: web.Request) -> web.StreamResponse:
        return web.Response(text="ok\n") if health.ready else web.Response(text=f"{health.reason}\n", status=503)

    async def server(request: web.Request) -> web.StreamResponse:
        name = request.url.host or ""
        host = f"[{name}]" if ":" in name else name
        return json_response({k: host + v if v.startswith(":") else v for k, v in server_info().items()})

    async def members(request: web.Request) -> web.StreamResponse:
        return json_response(
            {"members": [to_json(one) for one in await services.members.list_members(scope=current_scope())]}
        )

    async def version(request: web.Request) -> web.StreamResponse:
        return json_response(to_json(await services.registry.get_version(ref_of(request))))

    app = web.Application(
        client_max_size=_MAX_BODY_BYTES,
        middlewares=[
            boundary(
                metrics=metrics,
                health=health,
                hello=hello,
                loopback=loopback,
                gate=gate,
                admission=admission,
                call_timeout_s=call_timeout_s,
                rules=rules,
                bytes_address=services.members.http_with_bytes,
                proxies=proxies,
            )
        ],
    )
    app.add_routes(
        [
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/api/v1/server", server),
            web.get("/api/v1/members", members),
            web.post("/api/v1/uploads", files.begin_upload),
            web.get("/api/v1/uploads/{id}", files.get_upload),
            web.patch("/api/v1/uploads/{id}", files.write_upload),
            web.post("/api/v1/uploads/{id}/urls", files.sign_upload),
            web.get(_VERSION, version),
            web.get(_VERSION + "/files/{path:.+}", files.get_version_file),
            web.get("/api/v1/artifacts/{id}/files/{path:.+}", files.get_artifact_file),
            web.get("/api/v1/changes", changes.follow),
            *TrackingRoutes(services.tracking).routes(),
            *MetricRoutes(services.metrics, metrics, send_timeout_s=send_timeout_s).routes(),
            *FindRoutes(services.find).routes(),
            *SpaceRoutes(services.retention, services.space).routes(),
            *AuditRoutes(services.audit, metrics, stall_timeout_s=stall_timeout_s).routes(),
            *RuleRoutes(services.rules).routes(),
            *AccessRoutes(services.access).routes(),
            *RecordRoutes(services.notes, services.datasets, services.lineage).routes(),
        ]
    )
    check_routes(routes_of(app))
    return app


def routes_of(app: web.Application) -> list[str]:
    """All routes, as ``METHOD /path/{part}``; those without a path as whatever they say of themselves."""
    return [f"{route.method} {route.resource.canonical if route.resource else route}" for route in app.router.routes()]
