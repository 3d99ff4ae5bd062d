"""RuleService over gRPC: decode, call the service, encode."""

from __future__ import annotations

from modelbox._proto.modelbox import v1 as pb
from modelbox._wire import rules as wire
from modelbox._wire.values import present
from modelbox.runtime.caller import current_actor, current_scope
from modelbox.runtime.services.rules import RuleService

__all__ = ("RuleAdapter",)


class RuleAdapter(pb.RuleServiceBase):
    """See ``protos/modelbox/v1/rules.proto``."""

    def __init__(self, rules: RuleService) -> None:
        self._rules = rules

    async def set_rule(self, message: pb.SetRuleRequest) -> pb.Rule:
        """See the proto."""
        rule = wire.unpack_rule(present(message.rule, "a rule"))
        return wire.pack_rule(await self._rules.set_rule(rule, actor=current_actor()))

    async def list_rules(self, message: pb.ListRulesRequest) -> pb.ListRulesResponse:
        """See the proto."""
        found = await self._rules.list_rules(message.scope, scope=current_scope())
        return pb.ListRulesResponse(rules=[wire.pack_rule(one) for one in found])

    async def delete_rule(self, message: pb.DeleteRuleRequest) -> pb.DeleteRuleResponse:
        """See the proto."""
        await self._rules.delete_rule(message.scope, message.alias, actor=current_actor())
        return pb.DeleteRuleResponse()

    async def check_rules(self, message: pb.CheckRulesRequest) -> pb.CheckRulesResponse:
        """See the proto."""
        found = await self._rules.check_rules(message.namespace, message.model, message.version, message.alias)
        return pb.CheckRulesResponse(missing=[wire.pack_missing(one) for one in found])

    async def protect_alias(self, message: pb.ProtectAliasRequest) -> pb.AliasProtection:
        """See the proto."""
        return wire.pack_protection(
            await self._rules.protect_alias(
                message.scope, message.alias, approval=message.approval, actor=current_actor()
            )
        )

    async def list_protections(self, message: pb.ListProtectionsRequest) -> pb.ListProtectionsResponse:
        """See the proto."""
        found = await self._rules.list_protections(message.scope, scope=current_scope())
        return pb.ListProtectionsResponse(protections=[wire.pack_protection(one) for one in found])

    async def unprotect_alias(self, message: pb.UnprotectAliasRequest) -> pb.UnprotectAliasResponse:
        """See the proto."""
        await self._rules.unprotect_alias(message.scope, message.alias, actor=current_actor())
        return pb.UnprotectAliasResponse()

    async def list_alias_requests(self, message: pb.ListAliasRequestsRequest) -> pb.ListAliasRequestsResponse:
        """See the proto."""
        page = await self._rules.list_requests(
            message.namespace,
            message.model,
            alias=message.alias,
            everything=message.all,
            page_size=message.page_size,
            page_token=message.page_token,
        )
        return pb.ListAliasRequestsResponse(
            requests=[wire.pack_request(one) for one in page.items], next_page_token=page.next_token
        )

    async def approve_alias_request(self, message: pb.DecideAliasRequestRequest) -> pb.AliasRequest:
        """See the proto."""
        return wire.pack_request(
            await self._rules.approve_request(
                message.namespace, message.model, message.id, comment=message.comment, actor=current_actor()
            )
        )

    async def reject_alias_request(self, message: pb.DecideAliasRequestRequest) -> pb.AliasRequest:
        """See the proto."""
        return wire.pack_request(
            await self._rules.reject_request(
                message.namespace, message.model, message.id, comment=message.comment, actor=current_actor()
            )
        )
