"""Remote calls about retention and space, with our objects in and out.

Owns which of these calls may be repeated: all that set something to a value, and all that read.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from modelbox._proto.modelbox import v1 as pb
from modelbox._transport.grpc import Connection, page, rpc
from modelbox._wire import retention, space
from modelbox._wire.values import pack_int64
from modelbox.objects import Page
from modelbox.retention import Planned, Retained, RetentionPolicy, RetentionRun, VersionLock
from modelbox.space import Collected, Quota, SpaceCheck, SpaceTotals, Usage

__all__ = ("SpaceCalls",)

_R = "RetentionService"
_SET_POLICY = rpc(_R, "SetPolicy", pb.SetPolicyRequest, pb.RetentionPolicy, idempotent=True)
_GET_POLICY = rpc(_R, "GetPolicy", pb.GetPolicyRequest, pb.RetentionPolicy, idempotent=True)
_LIST_POLICIES = rpc(_R, "ListPolicies", pb.ListPoliciesRequest, pb.ListPoliciesResponse, idempotent=True)
_DELETE_POLICY = rpc(_R, "DeletePolicy", pb.DeletePolicyRequest, pb.DeletePolicyResponse)
_PLAN = rpc(_R, "Plan", pb.PlanRequest, pb.PlanResponse, idempotent=True)
_RUN = rpc(_R, "RunRetention", pb.RunRetentionRequest, pb.RunRetentionResponse)
_LOCK = rpc(_R, "LockVersion", pb.LockVersionRequest, pb.VersionLock, idempotent=True)
_UNLOCK = rpc(_R, "UnlockVersion", pb.UnlockVersionRequest, pb.UnlockVersionResponse)
_LIST_LOCKS = rpc(_R, "ListLocks", pb.ListLocksRequest, pb.ListLocksResponse, idempotent=True)
_S = "SpaceService"
_SET_QUOTA = rpc(_S, "SetQuota", pb.SetQuotaRequest, pb.Quota, idempotent=True)
_DELETE_QUOTA = rpc(_S, "DeleteQuota", pb.DeleteQuotaRequest, pb.DeleteQuotaResponse, idempotent=True)
_LIST_QUOTAS = rpc(_S, "ListQuotas", pb.ListQuotasRequest, pb.ListQuotasResponse, idempotent=True)
_LIST_USAGE = rpc(_S, "ListUsage", pb.ListUsageRequest, pb.ListUsageResponse, idempotent=True)
_TOTALS = rpc(_S, "GetSpaceTotals", pb.GetSpaceTotalsRequest, pb.SpaceTotals, idempotent=True)
_COLLECT = rpc(_S, "Collect", pb.CollectRequest, pb.Collected, streaming=True)
_CHECK = rpc(_S, "CheckSpace", pb.CheckSpaceRequest, pb.SpaceCheck, streaming=True)


class SpaceCalls:
    """The server's calls about retention and space, one method each.

    Concurrency: any number of tasks of one event loop.
    Errors: as those of `Connection`.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    # --- retention -----------------------------------------------------------------------------------------------

    async def set_policy(self, policy: RetentionPolicy) -> RetentionPolicy:
        """Makes or replaces a policy."""
        request = pb.SetPolicyRequest(policy=retention.pack_policy(policy))
        return await self._connection.unary(_SET_POLICY, request, retention.unpack_policy)

    async def get_policy(self, scope: str, kind: Retained) -> RetentionPolicy:
        """The policy of a scope."""
        request = pb.GetPolicyRequest(scope=scope, kind=kind)
        return await self._connection.unary(_GET_POLICY, request, retention.unpack_policy)

    async def list_policies(self, namespace: str) -> tuple[RetentionPolicy, ...]:
        """All policies, or those of a namespace."""
        return await self._connection.unary(
            _LIST_POLICIES,
            pb.ListPoliciesRequest(namespace=namespace),
            lambda answer: tuple(retention.unpack_policy(one) for one in answer.policies),
        )

    async def delete_policy(self, scope: str, kind: Retained) -> None:
        """Removes a policy."""
        request = pb.DeletePolicyRequest(scope=scope, kind=kind)
        await self._connection.unary(_DELETE_POLICY, request, lambda answer: None)

    async def plan(
        self, scope: str, kind: Retained, policy: RetentionPolicy | None, *, page_size: int = 0, page_token: str = ""
    ) -> Page[Planned]:
        """One page of what would become of everything in a scope."""
        return await self._connection.unary(
            _PLAN,
            pb.PlanRequest(
                scope=scope,
                kind=kind,
                policy=None if policy is None else retention.pack_policy(policy),
                page_size=page_size,
                page_token=page_token,
            ),
            lambda answer: page(answer.items, retention.unpack_planned, answer.next_page_token),
        )

    async def run_retention(self, scope: str) -> RetentionRun:
        """Follows the policies for some seconds."""
        return await self._connection.unary(_RUN, pb.RunRetentionRequest(scope=scope), retention.unpack_run)

    async def lock_version(self, namespace: str, model: str, version: int, reason: str) -> VersionLock:
        """Locks a version."""
        request = pb.LockVersionRequest(namespace=namespace, model=model, version=version, reason=reason)
        return await self._connection.unary(_LOCK, request, retention.unpack_lock)

    async def unlock_version(self, namespace: str, model: str, version: int) -> bool:
        """Unlocks a version; returns whether it was locked."""
        request = pb.UnlockVersionRequest(namespace=namespace, model=model, version=version)
        return await self._connection.unary(_UNLOCK, request, lambda answer: answer.unlocked)

    async def list_locks(self, scope: str) -> tuple[VersionLock, ...]:
        """All locks, or those of a scope."""
        return await self._connection.unary(
            _LIST_LOCKS,
            pb.ListLocksRequest(scope=scope),
            lambda answer: tuple(retention.unpack_lock(one) for one in answer.locks),
        )

    # --- space ---------------------------------------------------------------------------------------------------

    async def set_quota(self, namespace: str, limit_bytes: int) -> Quota:
        """Makes or changes a quota."""
        request = pb.SetQuotaRequest(namespace=namespace, limit_bytes=pack_int64(limit_bytes, "limit_bytes"))
        return await self._connection.unary(_SET_QUOTA, request, space.unpack_quota)

    async def delete_quota(self, namespace: str) -> None:
        """Removes a quota."""
        await self._connection.unary(_DELETE_QUOTA, pb.DeleteQuotaRequest(namespace=namespace), lambda answer: None)

    async def list_quotas(self, namespace: str) -> tuple[Quota, ...]:
        """All quotas, or that of a namespace."""
        return await self._connection.unary(
            _LIST_QUOTAS,
            pb.ListQuotasRequest(namespace=namespace),
            lambda answer: tuple(space.unpack_quota(one) for one in answer.quotas),
        )

    async def list_usage(self, namespace: str, *, page_size: int = 0, page_token: str = "") -> Page[Usage]:
        """One page of namespaces, or of the models of one."""
        return await self._connection.unary(
            _LIST_USAGE,
            pb.ListUsageRequest(namespace=namespace, page_size=page_size, page_token=page_token),
            lambda answer: page(answer.usage, space.unpack_usage, answer.next_page_token),
        )

    async def totals(self) -> SpaceTotals:
        """Sums over everything."""
        return await self._connection.unary(_TOTALS, pb.GetSpaceTotalsRequest(), space.unpack_totals)

    def collect(self, *, dry_run: bool) -> AsyncGenerator[Collected, None]:
        """Removes bytes that nobody needs; says how far it is."""
        return self._connection.stream(_COLLECT, pb.CollectRequest(dry_run=dry_run), space.unpack_collected)

    def check(self, *, checksums: bool, repair: bool) -> AsyncGenerator[SpaceCheck, None]:
        """Compares rows and bytes; says how far it is."""
        request = pb.CheckSpaceRequest(checksums=checksums, repair=repair)
        return self._connection.stream(_CHECK, request, space.unpack_check)
