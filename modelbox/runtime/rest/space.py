"""Retention, locks, quotas and usage over HTTP. Collections and checks, which last, are over gRPC only."""

from __future__ import annotations

from aiohttp import web

from modelbox._wire.retention import unpack_kind
from modelbox.errors import InvalidError
from modelbox.refs import shown
from modelbox.retention import RetentionPolicy
from modelbox.runtime.caller import current_actor, current_scope
from modelbox.runtime.rest.bodies import body_of, item_of, page_of, paging_of, read_body, text_of
from modelbox.runtime.services.retention import RetentionService
from modelbox.runtime.services.space import SpaceService

__all__ = ("SpaceRoutes",)

_LOCK = "/api/v1/models/{ns}/{model}/versions/{version}/lock"


class SpaceRoutes:
    """Handlers: decode, call a service, encode."""

    def __init__(self, retention: RetentionService, space: SpaceService) -> None:
        self._retention = retention
        self._space = space

    def routes(self) -> list[web.RouteDef]:
        """Which path leads where."""
        return [
            web.get("/api/v1/retention", self.list_policies),
            web.put("/api/v1/retention", self.set_policy),
            web.delete("/api/v1/retention", self.delete_policy),
            web.get("/api/v1/retention/plan", self.plan),
            web.post("/api/v1/retention/run", self.run),
            web.get("/api/v1/locks", self.list_locks),
            web.put(_LOCK, self.lock_version),
            web.delete(_LOCK, self.unlock_version),
            web.get("/api/v1/quotas", self.list_quotas),
            web.put("/api/v1/quotas/{namespace}", self.set_quota),
            web.delete("/api/v1/quotas/{namespace}", self.delete_quota),
            web.get("/api/v1/space", self.list_usage),
            web.get("/api/v1/space/totals", self.totals),
        ]

    # -- retention -------------------------------------------------------------------------------------------------

    async def list_policies(self, request: web.Request) -> web.StreamResponse:
        """GET ?namespace=."""
        return item_of(await self._retention.list_policies(text_of(request, "namespace"), visible=current_scope()))

    async def set_policy(self, request: web.Request) -> web.StreamResponse:
        """PUT a `RetentionPolicy`."""
        policy = await read_body(request, RetentionPolicy)
        return item_of(await self._retention.set_policy(policy, actor=current_actor()))

    async def delete_policy(self, request: web.Request) -> web.StreamResponse:
        """DELETE ?scope=&kind=."""
        await self._retention.delete_policy(text_of(request, "scope", None), unpack_kind(text_of(request, "kind")))
        return item_of({})

    async def plan(self, request: web.Request) -> web.StreamResponse:
        """GET ?scope=&kind=."""
        size, token = paging_of(request)
        kind = unpack_kind(text_of(request, "kind"))
        return page_of(
            await self._retention.plan(
                text_of(request, "scope"), kind, page_size=size, page_token=token, visible=current_scope()
            )
        )

    async def run(self, request: web.Request) -> web.StreamResponse:
        """POST ?scope=; again while ``more`` is true."""
        return item_of(await self._retention.run(text_of(request, "scope")))

    # -- locks -----------------------------------------------------------------------------------------------------

    async def list_locks(self, request: web.Request) -> web.StreamResponse:
        """GET ?scope=."""
        return item_of(await self._retention.list_locks(text_of(request, "scope"), visible=current_scope()))

    async def lock_version(self, request: web.Request) -> web.StreamResponse:
        """PUT ``{"reason"}``."""
        reason = (await body_of(request)).get("reason", "")
        if not isinstance(reason, str):
            raise InvalidError(f"the reason {shown(reason)} is not text", what="reason")
        namespace, model, version = _version_of(request)
        return item_of(
            await self._retention.lock_version(namespace, model, version, reason=reason, actor=current_actor())
        )

    async def unlock_version(self, request: web.Request) -> web.StreamResponse:
        """DELETE."""
        return item_of({"unlocked": await self._retention.unlock_version(*_version_of(request))})

    # -- space -----------------------------------------------------------------------------------------------------

    async def list_quotas(self, request: web.Request) -> web.StreamResponse:
        """GET ?namespace=."""
        return item_of(await self._space.list_quotas(text_of(request, "namespace"), scope=current_scope()))

    async def set_quota(self, request: web.Request) -> web.StreamResponse:
        """PUT ``{"limit_bytes"}``."""
        limit_bytes = (await body_of(request)).get("limit_bytes")
        if isinstance(limit_bytes, bool) or not isinstance(limit_bytes, int):
            raise InvalidError("the body lacks limit_bytes, a whole number", what="limit_bytes")
        namespace = request.match_info["namespace"]
        return item_of(await self._space.set_quota(namespace, limit_bytes, actor=current_actor()))

    async def delete_quota(self, request: web.Request) -> web.StreamResponse:
        """DELETE."""
        await self._space.delete_quota(request.match_info["namespace"])
        return item_of({})

    async def list_usage(self, request: web.Request) -> web.StreamResponse:
        """GET ?namespace=."""
        size, token = paging_of(request)
        return page_of(
            await self._space.list_usage(
                text_of(request, "namespace"), page_size=size, page_token=token, scope=current_scope()
            )
        )

    async def totals(self, request: web.Request) -> web.StreamResponse:
        """GET."""
        return item_of(await self._space.totals())


def _version_of(request: web.Request) -> tuple[str, str, int]:
    text = request.match_info["version"]
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise InvalidError(f"{shown(text)} is not the number of a version", what="version")
    return request.match_info["ns"], request.match_info["model"], int(text)
