"""RetentionService over gRPC: decode, call the service, encode."""

from __future__ import annotations

from modelbox._proto.modelbox import v1 as pb
from modelbox._wire import retention as wire
from modelbox._wire.values import present
from modelbox.runtime.caller import current_actor, current_scope
from modelbox.runtime.services.retention import RetentionService

__all__ = ("RetentionAdapter",)


class RetentionAdapter(pb.RetentionServiceBase):
    """See ``protos/modelbox/v1/retention.proto``."""

    def __init__(self, retention: RetentionService) -> None:
        self._retention = retention

    async def set_policy(self, message: pb.SetPolicyRequest) -> pb.RetentionPolicy:
        """See the proto."""
        policy = wire.unpack_policy(present(message.policy, "a policy"))
        return wire.pack_policy(await self._retention.set_policy(policy, actor=current_actor()))

    async def get_policy(self, message: pb.GetPolicyRequest) -> pb.RetentionPolicy:
        """See the proto."""
        return wire.pack_policy(await self._retention.get_policy(message.scope, wire.unpack_kind(message.kind)))

    async def list_policies(self, message: pb.ListPoliciesRequest) -> pb.ListPoliciesResponse:
        """See the proto."""
        found = await self._retention.list_policies(message.namespace, visible=current_scope())
        return pb.ListPoliciesResponse(policies=[wire.pack_policy(one) for one in found])

    async def delete_policy(self, message: pb.DeletePolicyRequest) -> pb.DeletePolicyResponse:
        """See the proto."""
        await self._retention.delete_policy(message.scope, wire.unpack_kind(message.kind))
        return pb.DeletePolicyResponse()

    async def plan(self, message: pb.PlanRequest) -> pb.PlanResponse:
        """See the proto."""
        page = await self._retention.plan(
            message.scope,
            wire.unpack_kind(message.kind),
            policy=None if message.policy is None else wire.unpack_policy(message.policy),
            page_size=message.page_size,
            page_token=message.page_token,
            visible=current_scope(),
        )
        return pb.PlanResponse(items=[wire.pack_planned(one) for one in page.items], next_page_token=page.next_token)

    async def run_retention(self, message: pb.RunRetentionRequest) -> pb.RunRetentionResponse:
        """See the proto."""
        return wire.pack_run(await self._retention.run(message.scope))

    async def lock_version(self, message: pb.LockVersionRequest) -> pb.VersionLock:
        """See the proto."""
        return wire.pack_lock(
            await self._retention.lock_version(
                message.namespace, message.model, message.version, reason=message.reason, actor=current_actor()
            )
        )

    async def unlock_version(self, message: pb.UnlockVersionRequest) -> pb.UnlockVersionResponse:
        """See the proto."""
        unlocked = await self._retention.unlock_version(message.namespace, message.model, message.version)
        return pb.UnlockVersionResponse(unlocked=unlocked)

    async def list_locks(self, message: pb.ListLocksRequest) -> pb.ListLocksResponse:
        """See the proto."""
        return pb.ListLocksResponse(
            locks=[
                wire.pack_lock(one) for one in await self._retention.list_locks(message.scope, visible=current_scope())
            ]
        )
