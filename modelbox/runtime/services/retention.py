"""The use cases of retention: policies, dry runs, following policies, locks on versions.

Owns the checks of what callers send, and the order "rows first, then metrics". What is deleted and why is decided by
`modelbox.retention`, on facts that the store reads in the deletion's own transaction. Bytes stay; see
`modelbox.runtime.services.space`.

Any number of replicas may follow the policies at once: a version goes once, or not at all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

import anyio
import anyio.lowlevel

from modelbox.access import ALL, Scope
from modelbox.errors import ConflictError, InvalidError, NotFoundError
from modelbox.objects import Page
from modelbox.refs import check_name, shown
from modelbox.retention import (
    Planned,
    Retained,
    RetentionPolicy,
    RetentionRun,
    VersionLock,
    check_kind,
    check_policy,
    check_scope,
)
from modelbox.runtime.limits import check_text
from modelbox.runtime.services.naming import check_actor
from modelbox.runtime.services.paging import decode_key, page_of, page_size_of
from modelbox.runtime.space_ports import Group, RetentionStore
from modelbox.runtime.tracking_ports import MetricSink

__all__ = ("RETENTION_ACTOR", "Bin", "RetentionService")

_LOG = logging.getLogger(__name__)
RETENTION_ACTOR = "retention"
"""Who the change feed says has deleted what a policy let go."""
_GROUPS = 50
_AT_ONCE = 20
"""Versions that one transaction deletes, so that nobody else waits long for the writer."""
_MAX_LOCKS = 10_000
_BUDGET_S = 10.0


class Bin(Protocol):
    """Where runs and checkpoints go; `modelbox.runtime.services.tracking` is one."""

    async def purge(self, namespace: str, before: datetime, *, dry_run: bool = False, actor: str) -> int:
        """Removes for good what was put there before a time; returns how many objects, or would be."""

    async def finish_deletions(self) -> int:
        """Takes along what is below the bin and not in it yet."""


@dataclass(slots=True)
class _Tally:
    versions: int = 0
    binned: int = 0
    purged: int = 0

    def result(self, *, more: bool) -> RetentionRun:
        return RetentionRun(versions=self.versions, binned=self.binned, purged=self.purged, more=more)


def _now() -> datetime:
    return datetime.now(UTC)


class RetentionService:
    """Policies and locks.

    Args:
        store: Where they are kept.
        bin: Where runs and checkpoints go.
        metrics: Where series of what is deleted are removed.
        clock: Gives the time of a change, aware and in UTC.
    """

    def __init__(
        self,
        store: RetentionStore,
        bin: Bin,
        *,
        metrics: MetricSink | None = None,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        self._store = store
        self._bin = bin
        self._metrics = metrics
        self._clock = clock

    # -- policies --------------------------------------------------------------------------------------------------

    async def set_policy(self, policy: RetentionPolicy, *, actor: str) -> RetentionPolicy:
        """Makes a policy, or replaces the one of its scope and kind; it is followed from the next run on.

        The namespace or model need not exist yet, and the policy outlives it.

        Raises:
            InvalidError: It has no rule, or one that is out of range.
        """
        return await self._store.set_policy(check_policy(policy), actor=check_actor(actor))

    async def get_policy(self, scope: str, kind: Retained = Retained.VERSIONS) -> RetentionPolicy:
        """The policy of exactly this scope.

        Raises:
            NotFoundError: There is none; a model then follows its namespace's.
        """
        found = await self._store.find_policy(check_scope(scope), check_kind(kind))
        if found is None:
            raise NotFoundError(f"{scope} has no policy for {kind}", what="policy", name=scope)
        return found

    async def delete_policy(self, scope: str, kind: Retained = Retained.VERSIONS) -> None:
        """Removes a policy.

        Raises:
            NotFoundError: There is none.
        """
        if not await self._store.delete_policy(check_scope(scope), check_kind(kind)):
            raise NotFoundError(f"{scope} has no policy for {kind}", what="policy", name=scope)

    async def list_policies(self, namespace: str = "", *, visible: Scope = ALL) -> Sequence[RetentionPolicy]:
        """Policies of a namespace and its models, or all, by scope and kind."""
        if namespace:
            check_name(namespace, "namespace")
        return await self._store.list_policies(namespace, visible=visible)

    # -- following them --------------------------------------------------------------------------------------------

    async def plan(
        self,
        scope: str = "",
        kind: Retained = Retained.VERSIONS,
        *,
        policy: RetentionPolicy | None = None,
        page_size: int = 0,
        page_token: str = "",
        visible: Scope = ALL,
    ) -> Page[Planned]:
        """What becomes of everything in a scope, and why, without doing it. One line for each candidate.

        Args:
            scope: ``namespace``, ``namespace/model``, or empty for everything.
            kind: What is decided about.
            policy: Instead of the one that is set for its scope: what would it do?
            page_size: Lines, 1 to 1000; 0 for 100.
            page_token: Where the page before ended.
            visible: What the caller may see.
        """
        if scope:
            check_scope(scope)
        check_kind(kind)
        if policy is not None:
            check_policy(policy)
            if policy.kind is not kind:
                raise InvalidError(f"the policy is for {policy.kind}, the plan for {kind}", what="kind")
        if kind is not Retained.VERSIONS and "/" in scope:
            raise InvalidError(f"{kind} are planned for a namespace, not for {shown(scope)}", what="scope")
        if kind is Retained.BIN:
            return Page(items=tuple(await self._plan_bin(scope, policy, visible)))
        listing = f"plan:{kind}:{scope}"
        return page_of(
            listing,
            await self._store.plan(
                scope,
                kind,
                policy,
                limit=page_size_of(page_size),
                after=decode_key(listing, page_token, int, int),
                visible=visible,
            ),
        )

    async def _plan_bin(self, scope: str, override: RetentionPolicy | None, visible: Scope) -> list[Planned]:
        policies = await self._store.list_policies(scope, visible=visible)
        found = {one.scope: one for one in policies if one.kind is Retained.BIN}
        if override is not None:
            found[override.scope] = override
        lines = []
        for policy in found.values():
            count = await self._bin.purge(policy.scope, self._bin_limit(policy), dry_run=True, actor=RETENTION_ACTOR)
            days = (policy.keep_younger_s or 0.0) / 86400
            lines.append(
                Planned(
                    kind=Retained.BIN,
                    policy=policy.scope,
                    id="",
                    name=policy.scope,
                    keep=not count,
                    reasons=(f"{count} objects are in the bin for longer than {days:.6g} days",),
                )
            )
        return lines

    def _bin_limit(self, policy: RetentionPolicy) -> datetime:
        return max(self._clock() - timedelta(seconds=policy.keep_younger_s or 0.0), datetime(1970, 1, 1, tzinfo=UTC))

    async def run(self, scope: str = "", *, budget_s: float = _BUDGET_S) -> RetentionRun:
        """Follows the policies: deletes versions, puts runs and checkpoints into the bin, and empties the bin.

        Args:
            scope: Only there; empty for everything.
            budget_s: Ends after about so many seconds; the result says whether there is more to do.

        Cancellation: what was deleted stays deleted; the next run goes on.
        """
        if scope:
            check_scope(scope)
        tally = _Tally()
        with anyio.move_on_after(budget_s):
            for kind in (Retained.VERSIONS, Retained.CHECKPOINTS, Retained.RUNS):
                if kind is Retained.VERSIONS or "/" not in scope:
                    await self._follow(scope, kind, tally)
            if tally.binned:
                await self._bin.finish_deletions()
            for policy in await self._store.list_policies(scope.partition("/")[0]):
                if policy.kind is Retained.BIN and scope in ("", policy.scope):
                    tally.purged += await self._bin.purge(policy.scope, self._bin_limit(policy), actor=RETENTION_ACTOR)
            return tally.result(more=False)
        return tally.result(more=True)

    async def _follow(self, scope: str, kind: Retained, tally: _Tally) -> None:
        after, first = None, True
        while first or after is not None:
            first = False
            page = await self._store.find_groups(scope, kind, limit=_GROUPS, after=after)
            for group in page.items:
                more = group.to_go > 0
                while more:
                    try:
                        more = await self._apply(group, tally)
                    except (ConflictError, NotFoundError) as exc:
                        # What one group is held by must not keep the others from their turn.
                        _LOG.warning("cannot follow the policy for %s of row %d: %s", group.kind, group.row_id, exc)
                        more = False
                    await anyio.lowlevel.checkpoint()
            after = page.next_key

    async def _apply(self, group: Group, tally: _Tally) -> bool:
        """Lets go of some of a group; returns whether there is more."""
        # Shielded: the metrics of what is deleted go with it.
        with anyio.CancelScope(shield=True):
            applied = await self._store.apply(group, limit=_AT_ONCE, actor=RETENTION_ACTOR, at=self._clock())
            if applied.removed and self._metrics is not None:
                await self._metrics.delete_series(applied.removed)
        tally.versions += applied.versions
        tally.binned += applied.binned
        return applied.more

    async def sweep(self) -> int:
        """Follows all policies to the end; returns how much went. What a server does by itself now and then."""
        count, more = 0, True
        while more:
            done = await self.run(budget_s=60.0)
            went = done.versions + done.binned + done.purged
            count += went
            more = done.more and went > 0
        return count

    # -- locks -----------------------------------------------------------------------------------------------------

    async def lock_version(
        self, namespace: str, model: str, version: int, *, reason: str = "", actor: str
    ) -> VersionLock:
        """Locks a version: nobody deletes it, nor its model, until it is unlocked. One that is locked stays as it is.

        Raises:
            NotFoundError: There is no such version.
        """
        _check_version(namespace, model, version)
        check_text(reason, "reason", max_chars=1024)
        return await self._store.lock_version(namespace, model, version, reason=reason, actor=check_actor(actor))

    async def unlock_version(self, namespace: str, model: str, version: int) -> bool:
        """Unlocks a version; returns whether it was locked.

        Raises:
            NotFoundError: There is no such version.
        """
        _check_version(namespace, model, version)
        return await self._store.unlock_version(namespace, model, version)

    async def list_locks(self, scope: str = "", *, visible: Scope = ALL) -> Sequence[VersionLock]:
        """Locked versions of a namespace or model, or all; at most 10,000."""
        namespace, _, model = check_scope(scope).partition("/") if scope else ("", "", "")
        return await self._store.list_locks(namespace, model, limit=_MAX_LOCKS, visible=visible)


def _check_version(namespace: str, model: str, version: int) -> None:
    check_name(namespace, "namespace")
    check_name(model, "model")
    if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version < 2**63:
        raise InvalidError(f"{shown(version)} is not the number of a version", what="version")
