"""Accounts, roles and tokens over HTTP."""

from __future__ import annotations

from aiohttp import web

from modelbox.access import Grant, Role
from modelbox.accounts import AccountPatch, NewToken
from modelbox.errors import InvalidError
from modelbox.objects import JsonValue, to_json
from modelbox.refs import shown
from modelbox.runtime.caller import current_caller
from modelbox.runtime.rest.bodies import (
    body_of,
    created,
    flag_of,
    item_of,
    page_of,
    paging_of,
    read_exactly,
    text_of,
)
from modelbox.runtime.rest.boundary import json_response
from modelbox.runtime.services.access import AccessService

__all__ = ("AccessRoutes",)

_ACCOUNT = "/api/v1/accounts/{account}"
_NEW_ACCOUNT = frozenset(["name", "description", "certificate_names"])
_GRANT = frozenset(["account", "namespace", "model", "role"])


class AccessRoutes:
    """The routes below ``/api/v1/accounts``, ``roles`` and ``tokens``, and ``/api/v1/whoami``."""

    def __init__(self, access: AccessService) -> None:
        self._access = access

    def routes(self) -> list[web.RouteDef]:
        """Which path leads where."""
        return [
            web.get("/api/v1/whoami", self.whoami),
            web.get("/api/v1/accounts", self.list_accounts),
            web.post("/api/v1/accounts", self.create_account),
            web.patch(_ACCOUNT, self.update_account),
            web.delete(_ACCOUNT, self.delete_account),
            web.get("/api/v1/roles", self.list_grants),
            web.put("/api/v1/roles", self.grant_role),
            web.delete("/api/v1/roles", self.revoke_role),
            web.get("/api/v1/tokens", self.list_tokens),
            web.post("/api/v1/tokens", self.create_token),
            web.delete("/api/v1/tokens/{id}", self.revoke_token),
        ]

    async def whoami(self, request: web.Request) -> web.StreamResponse:
        """GET."""
        return item_of(self._access.whoami(current_caller()))

    # -- accounts --------------------------------------------------------------------------------------------------

    async def list_accounts(self, request: web.Request) -> web.StreamResponse:
        """GET."""
        size, token = paging_of(request)
        return page_of(await self._access.list_accounts(page_size=size, page_token=token, caller=current_caller()))

    async def create_account(self, request: web.Request) -> web.StreamResponse:
        """POST ``{"name", "description", "certificate_names"}``."""
        body = _only(await body_of(request), _NEW_ACCOUNT)
        return created(
            await self._access.create_account(
                _text(body, "name"),
                description=_text(body, "description"),
                certificate_names=_texts(body, "certificate_names"),
                caller=current_caller(),
            )
        )

    async def update_account(self, request: web.Request) -> web.StreamResponse:
        """PATCH an `AccountPatch`."""
        patch = await read_exactly(request, AccountPatch)
        account = request.match_info["account"]
        return item_of(await self._access.update_account(account, patch, caller=current_caller()))

    async def delete_account(self, request: web.Request) -> web.StreamResponse:
        """DELETE."""
        await self._access.delete_account(request.match_info["account"], caller=current_caller())
        return item_of({})

    # -- roles -----------------------------------------------------------------------------------------------------

    async def list_grants(self, request: web.Request) -> web.StreamResponse:
        """GET ?account=&namespace=."""
        size, token = paging_of(request)
        return page_of(
            await self._access.list_grants(
                account=text_of(request, "account"),
                namespace=text_of(request, "namespace"),
                page_size=size,
                page_token=token,
                caller=current_caller(),
            )
        )

    async def grant_role(self, request: web.Request) -> web.StreamResponse:
        """PUT ``{"account", "namespace", "model", "role"}``."""
        body = _only(await body_of(request), _GRANT)
        grant = Grant(
            namespace=_text(body, "namespace"), model=_text(body, "model"), role=Role.parse(_text(body, "role"))
        )
        return item_of(await self._access.grant_role(_text(body, "account"), grant, caller=current_caller()))

    async def revoke_role(self, request: web.Request) -> web.StreamResponse:
        """DELETE ?account=&namespace=&model=."""
        revoked = await self._access.revoke_role(
            text_of(request, "account", None),
            text_of(request, "namespace"),
            text_of(request, "model"),
            caller=current_caller(),
        )
        return item_of({"revoked": revoked})

    # -- tokens ----------------------------------------------------------------------------------------------------

    async def list_tokens(self, request: web.Request) -> web.StreamResponse:
        """GET ?account=&include_ended=."""
        size, token = paging_of(request)
        return page_of(
            await self._access.list_tokens(
                account=text_of(request, "account"),
                include_ended=flag_of(request, "include_ended"),
                page_size=size,
                page_token=token,
                caller=current_caller(),
            )
        )

    async def create_token(self, request: web.Request) -> web.StreamResponse:
        """POST a `NewToken`; the token is in the answer, this once."""
        new = await read_exactly(request, NewToken)
        made = await self._access.create_token(new, caller=current_caller())
        answer = json_response(to_json(made), status=201)
        answer.headers["Cache-Control"] = "no-store"
        return answer

    async def revoke_token(self, request: web.Request) -> web.StreamResponse:
        """DELETE."""
        return item_of(await self._access.revoke_token(request.match_info["id"], caller=current_caller()))


def _only(body: dict[str, JsonValue], known: frozenset[str]) -> dict[str, JsonValue]:
    if unknown := sorted(set(body) - known):
        raise InvalidError(
            f"the body has the unknown field {shown(unknown[0])}: expected {', '.join(sorted(known))}", what="body"
        )
    return body


def _text(body: dict[str, JsonValue], name: str) -> str:
    value = body.get(name, "")
    if not isinstance(value, str):
        raise InvalidError(f"the body's {name} is {shown(value)}: expected text", what=name)
    return value


def _texts(body: dict[str, JsonValue], name: str) -> tuple[str, ...]:
    value = body.get(name, [])
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise InvalidError(f"the body's {name} is {shown(value)}: expected a list of texts", what=name)
    return tuple(value)
