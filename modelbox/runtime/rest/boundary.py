"""The boundary that every HTTP request passes: errors become JSON, calls are counted, other sites are kept out.

Owns the middleware and nothing of any route. Unexpected exceptions are logged here, once, and leave as a 500 without
details.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import anyio
from aiohttp import web
from aiohttp.typedefs import Middleware

from modelbox._serving.admission import Admission
from modelbox._serving.health import Health
from modelbox._serving.hello import HelloWatch
from modelbox._serving.peers import peer_of
from modelbox._serving.proxies import FORWARDED_FOR, TrustedProxies
from modelbox._wire import ACTOR_KEY, REQUEST_KEY
from modelbox._wire.values import loads
from modelbox.errors import (
    AuthError,
    DeadlineExceeded,
    InvalidError,
    LimitError,
    ModelBoxError,
    NotAuthenticated,
    NotFoundError,
    ServerBusy,
)
from modelbox.objects import JsonValue
from modelbox.refs import shown
from modelbox.runtime.caller import REQUEST_ID, current_caller, given_request_id, new_request_id
from modelbox.runtime.metrics import Metrics
from modelbox.runtime.permissions.gate import Gate, without_hidden
from modelbox.runtime.permissions.rules import Asked
from modelbox.runtime.permissions.table import rule_of_route
from modelbox.runtime.roles import RoleRules
from modelbox.runtime.status import statuses_of

__all__ = ("boundary", "json_response")

_LOG = logging.getLogger(__name__)
_REQUEST_HEADER = "X-Request-Id"
_ALWAYS = ("/healthz", "/readyz")
_VERSION_FILE = "/api/v1/models/{ns}/{model}/versions/{selector}/files/{path}"
_LASTING = frozenset(
    [
        "PATCH /api/v1/uploads/{id}",
        f"GET {_VERSION_FILE}",
        f"HEAD {_VERSION_FILE}",
        "GET /api/v1/artifacts/{id}/files/{path}",
        "HEAD /api/v1/artifacts/{id}/files/{path}",
        "GET /api/v1/changes",
        "GET /api/v1/metrics/series",
        "GET /api/v1/audit/export",
        "POST /api/v1/retention/run",
    ]
)
"""As long as their bytes move; each looks after that itself."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def json_response(data: object, *, status: int = 200) -> web.Response:
    """``data`` as JSON."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return web.Response(text=text, status=status, content_type="application/json")


def boundary(
    *,
    metrics: Metrics,
    health: Health,
    hello: HelloWatch,
    loopback: bool,
    gate: Gate,
    admission: Admission,
    call_timeout_s: float,
    rules: RoleRules,
    bytes_address: Callable[[], str],
    proxies: TrustedProxies,
) -> Middleware:
    """The middleware.

    Args:
        metrics: Where requests are counted.
        health: While it accepts none, requests are refused as busy, but those for health.
        hello: Told of every request.
        loopback: The server listens on loopback only, so a host name that is not this machine's own comes from a page
            of another site that made its name point here (DNS rebinding).
        gate: Which requests pass, and whose.
        admission: How many requests there may be, apart from those for files and from those that last.
        call_timeout_s: How long a request may take, its body included; not for those.
        rules: Which routes are for servers of another role.
        bytes_address: Gives the HTTP address of a server with bytes, empty if there is none.
        proxies: Who is believed where a request comes from.
    """

    @web.middleware
    async def pass_boundary(request: web.Request, handler: Handler) -> web.StreamResponse:
        begun = time.monotonic()
        hello.greet(request)
        REQUEST_ID.set(given_request_id(request.headers.get(REQUEST_KEY, "")) or new_request_id())
        peer = peer_of(request.transport)
        gate.know(
            request.headers.getall("Authorization", ()),
            declared=request.headers.get(ACTOR_KEY, ""),
            address=proxies.caller(peer.address, request.headers.getall(FORWARDED_FOR, ())),
            certificate_names=peer.certificate_names,
        )
        resource = request.match_info.route.resource
        route = f"{request.method} {resource.canonical}" if resource is not None else "unknown"
        status = "CANCELLED"
        try:
            with metrics.running("http"):
                response = await _guard(request, handler, route)
                status = str(response.status)
                return response
        finally:
            metrics.observe_call("http", route, status, time.monotonic() - begun)

    async def _guard(request: web.Request, handler: Handler, route: str) -> web.StreamResponse:
        try:
            _check_origin(request, loopback=loopback)
            if not health.accepting and request.path not in _ALWAYS:
                raise ServerBusy(f"the server is {health.reason}: try again", retry_after_s=1.0)
            if route in _LASTING or request.path in _ALWAYS:
                response = await _gated(request, handler, route)
            else:
                response = await _in_time(request, handler, route)
        except ModelBoxError as exc:
            response = _failed(request, without_hidden(exc, current_caller()) if gate.on else exc)
        except web.HTTPException as exc:
            response = _failed(request, _translated(request, exc), status=exc.status)
            if "Allow" in exc.headers:
                response.headers["Allow"] = exc.headers["Allow"]
        except ConnectionError:
            # The peer is gone, or does not read and was cut off: nobody will see this answer, and aiohttp logs none.
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=499, reason="Client Closed Request")
        except Exception:
            request_id = REQUEST_ID.get()
            _LOG.exception("%s %s failed unexpectedly (request %s)", request.method, shown(request.path), request_id)
            response = _failed(
                request, ModelBoxError(f"the server failed unexpectedly: see its log, request {request_id}")
            )
        if not response.prepared:
            response.headers.setdefault("X-Content-Type-Options", "nosniff")
            response.headers[_REQUEST_HEADER] = REQUEST_ID.get()
        return response

    async def _gated(request: web.Request, handler: Handler, route: str) -> web.StreamResponse:
        if gate.on and route != "unknown":
            await _pass_gate(gate, request, route)
        if rules.refuses_route(route):
            return _elsewhere(request, rules.refusal(route, bytes_address=bytes_address()))
        try:
            return await handler(request)
        except AuthError as exc:
            if gate.on:
                gate.note_refusal(route, current_caller(), exc)
            raise

    async def _in_time(request: web.Request, handler: Handler, route: str) -> web.StreamResponse:
        admission.enter()
        try:
            # The gate may have to read the body, too.
            with anyio.fail_after(call_timeout_s):
                return await _gated(request, handler, route)
        except TimeoutError as exc:
            raise DeadlineExceeded(f"{route} took longer than {call_timeout_s:g} s, its body included") from exc
        finally:
            admission.leave()

    return pass_boundary


async def _pass_gate(gate: Gate, request: web.Request, route: str) -> None:
    rule = rule_of_route(route)
    if not rule.token:
        return
    caller = await gate.enter(route, lasting=True)
    if gate.settles(rule, caller):
        return
    body: JsonValue = {}
    if rule.reads_body and request.can_read_body:
        body = loads(await request.read(), "the body")
        if not isinstance(body, dict):
            raise InvalidError("the body must be one JSON object")
    asked = Asked(request.match_info, lambda name: request.query.getall(name, []), body)
    await gate.check(route, rule, caller, asked)


def _failed(request: web.Request, error: ModelBoxError, *, status: int | None = None) -> web.Response:
    response = json_response(error.to_dict(), status=status or statuses_of(error).http)
    if isinstance(error, ServerBusy):
        response.headers["Retry-After"] = str(_whole_seconds(error.fields.get("retry_after_s")))
    if isinstance(error, NotAuthenticated):
        response.headers["WWW-Authenticate"] = "Bearer"
    if request.can_read_body and not request.content.is_eof():
        # What is still on its way could be gigabytes; nobody will read it.
        response.force_close()
    return response


def _whole_seconds(value: object) -> int:
    return max(1, math.ceil(value)) if isinstance(value, int | float) else 1


def _elsewhere(request: web.Request, error: ModelBoxError) -> web.Response:
    """A refusal by role; where another server has the bytes, its answer leads there."""
    address = error.fields.get("bytes_address")
    if not address:
        return _failed(request, error)
    response = _failed(request, error, status=307)
    response.headers["Location"] = f"{request.scheme}://{address}{request.raw_path}"
    return response


def _translated(request: web.Request, error: web.HTTPException) -> ModelBoxError:
    what = f"{request.method} {shown(request.path)}"
    if error.status == 404:
        return NotFoundError(f"there is nothing at {what}: the API is below /api/v1")
    if error.status == 413:
        return LimitError(f"the body of {what} is too large")
    return InvalidError(f"{what}: {error.reason}")


def _check_origin(request: web.Request, *, loopback: bool) -> None:
    host = request.headers.get("Host", "")
    if loopback and not _is_local(host):
        raise AuthError(f"the host {shown(host)} is not this server's: use its address, such as 127.0.0.1")
    origin = request.headers.get("Origin")
    if origin is not None and _host_of(origin) != host:
        raise AuthError(f"requests from pages of {shown(origin)} are not taken")


def _host_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _is_local(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
