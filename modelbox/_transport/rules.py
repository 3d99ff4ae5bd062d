"""Remote calls about rules, protected aliases and requests, with our objects in and out.

Owns which of these calls may be repeated: all that set something to a value, and all that read.
"""

from __future__ import annotations

from modelbox._proto.modelbox import v1 as pb
from modelbox._transport.grpc import Connection, page, rpc
from modelbox._wire import rules as wire
from modelbox.objects import Page
from modelbox.rules import AliasProtection, AliasRequest, Missing, Rule

__all__ = ("RuleCalls",)

_R = "RuleService"
_SET = rpc(_R, "SetRule", pb.SetRuleRequest, pb.Rule, idempotent=True)
_LIST = rpc(_R, "ListRules", pb.ListRulesRequest, pb.ListRulesResponse, idempotent=True)
_DELETE = rpc(_R, "DeleteRule", pb.DeleteRuleRequest, pb.DeleteRuleResponse)
_CHECK = rpc(_R, "CheckRules", pb.CheckRulesRequest, pb.CheckRulesResponse, idempotent=True)
_PROTECT = rpc(_R, "ProtectAlias", pb.ProtectAliasRequest, pb.AliasProtection, idempotent=True)
_PROTECTIONS = rpc(_R, "ListProtections", pb.ListProtectionsRequest, pb.ListProtectionsResponse, idempotent=True)
_UNPROTECT = rpc(_R, "UnprotectAlias", pb.UnprotectAliasRequest, pb.UnprotectAliasResponse)
_REQUESTS = rpc(_R, "ListAliasRequests", pb.ListAliasRequestsRequest, pb.ListAliasRequestsResponse, idempotent=True)
_APPROVE = rpc(_R, "ApproveAliasRequest", pb.DecideAliasRequestRequest, pb.AliasRequest)
_REJECT = rpc(_R, "RejectAliasRequest", pb.DecideAliasRequestRequest, pb.AliasRequest)


class RuleCalls:
    """The server's calls about rules, one method each.

    Concurrency: any number of tasks of one event loop.
    Errors: as those of `Connection`.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def set_rule(self, rule: Rule) -> Rule:
        """Makes or replaces a rule."""
        return await self._connection.unary(_SET, pb.SetRuleRequest(rule=wire.pack_rule(rule)), wire.unpack_rule)

    async def list_rules(self, scope: str) -> tuple[Rule, ...]:
        """All rules, or those of a scope."""
        return await self._connection.unary(
            _LIST,
            pb.ListRulesRequest(scope=scope),
            lambda answer: tuple(wire.unpack_rule(one) for one in answer.rules),
        )

    async def delete_rule(self, scope: str, alias: str) -> None:
        """Removes a rule."""
        await self._connection.unary(_DELETE, pb.DeleteRuleRequest(scope=scope, alias=alias), lambda answer: None)

    async def check_rules(self, namespace: str, model: str, version: int, alias: str) -> tuple[Missing, ...]:
        """What a version lacks."""
        return await self._connection.unary(
            _CHECK,
            pb.CheckRulesRequest(namespace=namespace, model=model, version=version, alias=alias),
            lambda answer: tuple(wire.unpack_missing(one) for one in answer.missing),
        )

    async def protect_alias(self, scope: str, alias: str, *, approval: bool) -> AliasProtection:
        """Makes or replaces a protection."""
        request = pb.ProtectAliasRequest(scope=scope, alias=alias, approval=approval)
        return await self._connection.unary(_PROTECT, request, wire.unpack_protection)

    async def list_protections(self, scope: str) -> tuple[AliasProtection, ...]:
        """All protections, or those of a scope."""
        return await self._connection.unary(
            _PROTECTIONS,
            pb.ListProtectionsRequest(scope=scope),
            lambda answer: tuple(wire.unpack_protection(one) for one in answer.protections),
        )

    async def unprotect_alias(self, scope: str, alias: str) -> None:
        """Removes a protection."""
        request = pb.UnprotectAliasRequest(scope=scope, alias=alias)
        await self._connection.unary(_UNPROTECT, request, lambda answer: None)

    async def list_requests(
        self, namespace: str, model: str, *, alias: str, everything: bool, page_token: str = ""
    ) -> Page[AliasRequest]:
        """One page of requests."""
        return await self._connection.unary(
            _REQUESTS,
            pb.ListAliasRequestsRequest(
                namespace=namespace, model=model, alias=alias, all=everything, page_token=page_token
            ),
            lambda answer: page(answer.requests, wire.unpack_request, answer.next_page_token),
        )

    async def approve_request(self, namespace: str, model: str, request_id: str, comment: str) -> AliasRequest:
        """Approves a request."""
        request = pb.DecideAliasRequestRequest(namespace=namespace, model=model, id=request_id, comment=comment)
        return await self._connection.unary(_APPROVE, request, wire.unpack_request)

    async def reject_request(self, namespace: str, model: str, request_id: str, comment: str) -> AliasRequest:
        """Rejects a request."""
        request = pb.DecideAliasRequestRequest(namespace=namespace, model=model, id=request_id, comment=comment)
        return await self._connection.unary(_REJECT, request, wire.unpack_request)
