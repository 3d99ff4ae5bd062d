"""Rules, protected aliases and requests over HTTP."""

from __future__ import annotations

from aiohttp import web

from modelbox.errors import InvalidError
from modelbox.refs import shown
from modelbox.rules import AliasProtection, Rule
from modelbox.runtime.caller import current_actor, current_scope
from modelbox.runtime.rest.bodies import body_of, flag_of, int_of, item_of, page_of, paging_of, read_exactly, text_of
from modelbox.runtime.services.rules import RuleService

__all__ = ("RuleRoutes",)

_MODEL = "/api/v1/models/{ns}/{model}"


class RuleRoutes:
    """Handlers: decode, call the service, encode."""

    def __init__(self, rules: RuleService) -> None:
        self._rules = rules

    def routes(self) -> list[web.RouteDef]:
        """Which path leads where."""
        return [
            web.get("/api/v1/rules", self.list_rules),
            web.put("/api/v1/rules", self.set_rule),
            web.delete("/api/v1/rules", self.delete_rule),
            web.get("/api/v1/protections", self.list_protections),
            web.put("/api/v1/protections", self.protect_alias),
            web.delete("/api/v1/protections", self.unprotect_alias),
            web.get(f"{_MODEL}/rules/missing", self.check_rules),
            web.get(f"{_MODEL}/requests", self.list_requests),
            web.post(f"{_MODEL}/requests/{{id}}/approve", self.approve),
            web.post(f"{_MODEL}/requests/{{id}}/reject", self.reject),
        ]

    async def list_rules(self, request: web.Request) -> web.StreamResponse:
        """GET ?scope=."""
        return item_of(await self._rules.list_rules(text_of(request, "scope"), scope=current_scope()))

    async def set_rule(self, request: web.Request) -> web.StreamResponse:
        """PUT a `Rule`."""
        # A word that is not known would be a part that nobody asks for.
        rule = await read_exactly(request, Rule)
        return item_of(await self._rules.set_rule(rule, actor=current_actor()))

    async def delete_rule(self, request: web.Request) -> web.StreamResponse:
        """DELETE ?scope=&alias=."""
        await self._rules.delete_rule(text_of(request, "scope", None), text_of(request, "alias"), actor=current_actor())
        return item_of({})

    async def list_protections(self, request: web.Request) -> web.StreamResponse:
        """GET ?scope=."""
        return item_of(await self._rules.list_protections(text_of(request, "scope"), scope=current_scope()))

    async def protect_alias(self, request: web.Request) -> web.StreamResponse:
        """PUT an `AliasProtection`."""
        asked = await read_exactly(request, AliasProtection)
        return item_of(
            await self._rules.protect_alias(asked.scope, asked.alias, approval=asked.approval, actor=current_actor())
        )

    async def unprotect_alias(self, request: web.Request) -> web.StreamResponse:
        """DELETE ?scope=&alias=."""
        await self._rules.unprotect_alias(
            text_of(request, "scope", None), text_of(request, "alias", None), actor=current_actor()
        )
        return item_of({})

    async def check_rules(self, request: web.Request) -> web.StreamResponse:
        """GET ?version=&alias=."""
        version = int_of(request, "version", None)
        if version is None:
            raise InvalidError("the query parameter version is missing", what="version")
        namespace, model = _model_of(request)
        return item_of(await self._rules.check_rules(namespace, model, version, text_of(request, "alias")))

    async def list_requests(self, request: web.Request) -> web.StreamResponse:
        """GET ?alias=&all=."""
        size, token = paging_of(request)
        return page_of(
            await self._rules.list_requests(
                *_model_of(request),
                alias=text_of(request, "alias"),
                everything=flag_of(request, "all"),
                page_size=size,
                page_token=token,
            )
        )

    async def approve(self, request: web.Request) -> web.StreamResponse:
        """POST ``{"comment"}``."""
        comment = await _comment_of(request)
        namespace, model = _model_of(request)
        return item_of(
            await self._rules.approve_request(
                namespace, model, request.match_info["id"], comment=comment, actor=current_actor()
            )
        )

    async def reject(self, request: web.Request) -> web.StreamResponse:
        """POST ``{"comment"}``."""
        comment = await _comment_of(request)
        namespace, model = _model_of(request)
        return item_of(
            await self._rules.reject_request(
                namespace, model, request.match_info["id"], comment=comment, actor=current_actor()
            )
        )


def _model_of(request: web.Request) -> tuple[str, str]:
    return request.match_info["ns"], request.match_info["model"]


async def _comment_of(request: web.Request) -> str:
    comment = (await body_of(request)).get("comment", "")
    if not isinstance(comment, str):
        raise InvalidError(f"the comment {shown(comment)} is not text", what="comment")
    return comment
