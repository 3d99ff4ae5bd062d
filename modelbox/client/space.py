"""Retention, locks, quotas and space, as methods of the client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from modelbox.client.arguments import numbered
from modelbox.client.connection import ClientConnection
from modelbox.errors import Unavailable
from modelbox.refs import ModelRef
from modelbox.retention import Best, Planned, RetentionPolicy, RetentionRun, VersionLock, check_kind
from modelbox.space import Collected, Finding, Quota, SpaceCheck, SpaceReport, SpaceTotals, Usage

if TYPE_CHECKING:
    from modelbox._transport.source import RemoteSource

__all__ = ("SpaceCalls",)

_PAGE = 1000


class SpaceCalls(ClientConnection):
    """The part of `Client` about what is kept and how much space it takes."""

    async def set_retention(
        self,
        scope: str,
        *,
        kind: str = "versions",
        keep_last: int | None = None,
        keep_younger_s: float | None = None,
        keep_best: Sequence[Best] = (),
        keep_all: bool = False,
    ) -> RetentionPolicy:
        """Says what is kept of a namespace or model; the server lets the rest go, within an hour.

        What any one rule keeps stays, and whatever the rules: what is held by an alias, a lock, something made from it,
        an instance that serves it, or a run that goes on.

        Args:
            scope: ``namespace``, or ``namespace/model``, whose policy is stronger.
            kind: ``versions`` (deleted), ``checkpoints`` of ended runs or ``runs`` (both go into the bin), or ``bin``.
            keep_last: The newest so many: of each model, run or experiment.
            keep_younger_s: What is younger, in seconds.
            keep_best: The best by metrics.
            keep_all: Everything, instead of all other rules.

        Raises:
            InvalidError: There is no rule, or one that is out of range.
        """
        policy = RetentionPolicy(
            scope=scope,
            kind=check_kind(kind),
            keep_all=keep_all,
            keep_last=keep_last,
            keep_younger_s=keep_younger_s,
            keep_best=tuple(keep_best),
        )
        return await self._call(lambda source: source.space.set_policy(policy))

    async def get_retention(self, scope: str, *, kind: str = "versions") -> RetentionPolicy:
        """The policy of exactly this scope.

        Raises:
            NotFoundError: There is none.
        """
        return await self._call(lambda source: source.space.get_policy(scope, check_kind(kind)))

    async def list_retention(self, namespace: str = "") -> tuple[RetentionPolicy, ...]:
        """All policies, or those of a namespace and its models."""
        return await self._call(lambda source: source.space.list_policies(namespace))

    async def delete_retention(self, scope: str, *, kind: str = "versions") -> None:
        """Removes a policy.

        Raises:
            NotFoundError: There is none.
        """
        await self._call(lambda source: source.space.delete_policy(scope, check_kind(kind)))

    def iter_retention_plan(
        self, scope: str = "", *, kind: str = "versions", policy: RetentionPolicy | None = None
    ) -> AsyncIterator[Planned]:
        """What would become of everything in a scope, and why; changes nothing.

        Args:
            scope: ``namespace``, ``namespace/model``, or empty for everything.
            kind: As in `set_retention`.
            policy: Instead of the one that is set: what would it do?
        """
        return self._pages(
            lambda source, token: source.space.plan(scope, check_kind(kind), policy, page_size=_PAGE, page_token=token)
        )

    async def run_retention(self, scope: str = "") -> RetentionRun:
        """Follows the policies now, to the end.

        Cancellation: what was deleted stays deleted.
        """
        versions = binned = purged = 0
        while True:
            done = await self._call(lambda source: source.space.run_retention(scope))
            versions, binned, purged = versions + done.versions, binned + done.binned, purged + done.purged
            if not done.more:
                return RetentionRun(versions=versions, binned=binned, purged=purged)

    async def lock_version(self, ref: str | ModelRef, *, reason: str = "") -> VersionLock:
        """Locks a version (``namespace/model@7``): nobody deletes it, nor its model, until it is unlocked.

        Raises:
            NotFoundError: The version does not exist.
            InvalidError: ``ref`` names no number.
        """
        namespace, name, version = numbered(ref)
        return await self._call(lambda source: source.space.lock_version(namespace, name, version, reason))

    async def unlock_version(self, ref: str | ModelRef) -> bool:
        """Unlocks a version; returns whether it was locked.

        Raises:
            NotFoundError: The version does not exist.
            InvalidError: ``ref`` names no number.
        """
        namespace, name, version = numbered(ref)
        return await self._call(lambda source: source.space.unlock_version(namespace, name, version))

    async def list_locks(self, scope: str = "") -> tuple[VersionLock, ...]:
        """Locked versions: all, or those of a namespace or model."""
        return await self._call(lambda source: source.space.list_locks(scope))

    # --- space ---------------------------------------------------------------------------------------------------

    async def set_quota(self, namespace: str, limit_bytes: int) -> Quota:
        """Limits how many bytes a namespace may hold; a limit below what it holds refuses new bytes only."""
        return await self._call(lambda source: source.space.set_quota(namespace, limit_bytes))

    async def delete_quota(self, namespace: str) -> None:
        """Lets a namespace hold as much as there is room for."""
        await self._call(lambda source: source.space.delete_quota(namespace))

    async def list_quotas(self, namespace: str = "") -> tuple[Quota, ...]:
        """All quotas, or that of a namespace."""
        return await self._call(lambda source: source.space.list_quotas(namespace))

    def iter_usage(self, namespace: str = "") -> AsyncIterator[Usage]:
        """The space of each namespace, or of each model of one, by name."""
        return self._pages(lambda source, token: source.space.list_usage(namespace, page_token=token))

    async def space_totals(self) -> SpaceTotals:
        """The space of everything."""
        return await self._call(lambda source: source.space.totals())

    async def collect_garbage(
        self, *, dry_run: bool = False, on_progress: Callable[[Collected], None] | None = None
    ) -> Collected:
        """Removes bytes that nobody has used for the server's grace time; the server does so by itself every hour.

        Args:
            dry_run: Only say what would go.
            on_progress: Called now and then, on the engine's thread; must return at once.

        Cancellation: what is removed stays removed.
        """

        async def run(source: RemoteSource) -> Collected:
            async with aclosing(source.space.collect(dry_run=dry_run)) as said:
                async for one in said:
                    if one.done:
                        return one
                    if on_progress is not None:
                        on_progress(one)
            raise Unavailable("the server ended the collection early: begin it again")

        return await self._call(run)

    async def check_space(
        self,
        *,
        checksums: bool = False,
        repair: bool = False,
        on_progress: Callable[[SpaceCheck], None] | None = None,
    ) -> SpaceReport:
        """Compares what the server knows with the bytes that it has.

        Args:
            checksums: Read every byte, and every point of metrics.
            repair: Put right what can be put right for sure: files that do not count as in use, counters of quotas.
            on_progress: Called about every second, on the engine's thread; must return at once.
        """

        async def run(source: RemoteSource) -> SpaceReport:
            checked: dict[str, int] = {}
            findings: list[Finding] = []
            async with aclosing(source.space.check(checksums=checksums, repair=repair)) as said:
                async for one in said:
                    checked[one.stage] = one.checked
                    findings += one.findings
                    if one.done:
                        return SpaceReport(checked=checked, bytes_read=one.bytes_read, findings=tuple(findings))
                    if on_progress is not None:
                        on_progress(one)
            raise Unavailable("the server ended the check early: begin it again")

        return await self._call(run)
