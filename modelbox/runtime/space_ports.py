"""What the services of retention and of space need of a database, as protocols.

The rules of `modelbox.runtime.ports` hold here too. Times that decide what is old enough to go are those of the
database's clock: replicas whose clocks disagree still agree on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from modelbox.access import ALL, Scope
from modelbox.refs import Digest
from modelbox.retention import Planned, Retained, RetentionPolicy, VersionLock
from modelbox.runtime.ports import Key, Listed
from modelbox.space import Finding, Quota, SpaceTotals, Usage

__all__ = (
    "Applied",
    "ChainPlace",
    "GivenUp",
    "Group",
    "IdleBlob",
    "RetentionStore",
    "SpaceStore",
    "StoredBlob",
    "WrongSeries",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Candidates that are decided together: the versions of a model, checkpoints of a run, runs of an experiment.

    Attributes:
        row_id: Of what they belong to.
        to_go: How many of them the policy lets go at the moment.
    """

    kind: Retained
    row_id: int
    to_go: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What following a policy in one group has done.

    Attributes:
        removed: Ids that are no more.
        versions: How many versions are among them.
        binned: How many objects went into the bin.
        more: There are more to go.
    """

    removed: tuple[str, ...] = ()
    versions: int = 0
    binned: int = 0
    more: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleBlob:
    """Bytes that some namespaces hold and have not used for the grace time.

    Attributes:
        last: Nobody else holds them.
    """

    row_id: int
    namespaces: tuple[str, ...]
    size_bytes: int
    last: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenUp:
    """Holdings that are gone, and the bytes that may be deleted now: digest and size."""

    holdings: int
    blobs: tuple[tuple[Digest, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBlob:
    """A row about bytes."""

    row_id: int
    digest: Digest
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongSeries:
    """A metric whose totals are not those of its points."""

    object_id: str
    key: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainPlace:
    """How far the chain of the change feed was recomputed.

    Attributes:
        chains: What the chain may be there: more than one value where something was tampered with.
        verified: Revisions so far that are as they were written.
        done: This was the head.
        faults: What is wrong with the revisions of this part: number and text.
    """

    rev: int
    chains: tuple[bytes, ...]
    verified: int
    done: bool
    faults: tuple[tuple[int, str], ...] = ()


class RetentionStore(Protocol):
    """Policies, what they come to, and locks."""

    async def set_policy(self, policy: RetentionPolicy, *, actor: str) -> RetentionPolicy:
        """Makes a policy, or replaces the one of the same scope and kind."""

    async def find_policy(self, scope: str, kind: Retained) -> RetentionPolicy | None:
        """The policy of exactly this scope and kind."""

    async def delete_policy(self, scope: str, kind: Retained) -> bool:
        """Removes a policy; returns whether there was one."""

    async def list_policies(self, namespace: str, *, visible: Scope = ALL) -> Sequence[RetentionPolicy]:
        """Policies by scope and kind; of all namespaces for an empty one."""

    async def plan(
        self,
        scope: str,
        kind: Retained,
        override: RetentionPolicy | None,
        *,
        limit: int,
        after: Key | None,
        visible: Scope = ALL,
    ) -> Listed[Planned]:
        """What becomes of everything in a scope, group by group, newest first. Key: (row of the group, order).

        Args:
            scope: As of a policy; empty for everything.
            kind: What is decided about; not the bin.
            override: Stands in for the policy of its scope, as if it were set.
            limit: Lines of a page.
            after: Where the page before ended.
            visible: What the caller may see.
        """

    async def find_groups(self, scope: str, kind: Retained, *, limit: int, after: Key | None) -> Listed[Group]:
        """Groups that have a policy, and what it lets go. Key: (row of the group,)."""

    async def apply(self, group: Group, *, limit: int, actor: str, at: datetime) -> Applied:
        """Decides anew about a group, and lets go of up to ``limit`` of it, in one transaction."""

    async def lock_version(self, namespace: str, model: str, version: int, *, reason: str, actor: str) -> VersionLock:
        """Locks a version; one that is locked stays as it is."""

    async def unlock_version(self, namespace: str, model: str, version: int) -> bool:
        """Unlocks a version; returns whether it was locked."""

    async def list_locks(
        self, namespace: str, model: str, *, limit: int, visible: Scope = ALL
    ) -> Sequence[VersionLock]:
        """Locks of a namespace or model, of all for empty names."""


class SpaceStore(Protocol):
    """Who uses how much, which bytes nobody needs, and whether all of it is right."""

    async def set_quota(self, namespace: str, limit_bytes: int | None, *, actor: str) -> Quota | None:
        """Makes or changes a quota, or removes it for None."""

    async def list_quotas(self, namespace: str, *, scope: Scope = ALL) -> Sequence[Quota]:
        """Quotas by namespace; of all for an empty one."""

    async def list_usage(self, namespace: str, *, limit: int, after: Key | None, scope: Scope = ALL) -> Listed[Usage]:
        """Namespaces by name, or the models of one. Key: (name,)."""

    async def totals(self) -> SpaceTotals:
        """Sums over everything."""

    # Removing bytes: modelbox.runtime.store.removal says what each step is for.

    async def find_idle(self, *, grace_s: float, limit: int, after: Key | None) -> Listed[IdleBlob]:
        """Blobs that namespaces hold and have not used for so long. Key: (internal number,)."""

    async def find_unheld(self, *, limit: int, after: Key | None) -> Listed[IdleBlob]:
        """Blobs that nothing needs although they have a row. Key: (internal number,)."""

    async def give_up(self, row_ids: Sequence[int], *, grace_s: float, batch: str) -> GivenUp:
        """Removes holdings out of use, and the rows of bytes that nothing needs: these may be deleted now."""

    async def find_orphans(self, digests: Sequence[Digest]) -> tuple[Sequence[Digest], datetime]:
        """Those of some stored blobs that nothing names, and the time now."""

    async def condemn_orphans(self, digests: Sequence[Digest], *, batch: str) -> Sequence[Digest]:
        """Those of some stored blobs that nothing names: they may be deleted now."""

    async def take_over(self, *, older_than_s: float, limit: int, batch: str) -> Sequence[Digest]:
        """Removals that somebody began so long ago and never ended: they may be deleted now."""

    async def finish_removal(self, digests: Sequence[Digest], *, batch: str) -> None:
        """Lets these bytes be uploaded again."""

    # Checking.

    async def list_blobs(self, *, limit: int, after: Key | None) -> Listed[StoredBlob]:
        """Rows about bytes. Key: (internal number,)."""

    async def users_of(self, digest: Digest, *, limit: int) -> Sequence[str]:
        """Versions and artifacts that have these bytes, some of them."""

    async def check_files(
        self, *, limit: int, after: Key | None, repair: bool
    ) -> tuple[Sequence[Finding], int, Key | None]:
        """Whether files of versions and artifacts count as in use. Key: (0 versions or 1 artifacts, internal number).

        Returns:
            What is wrong, how many were looked at, and where to go on.
        """

    async def check_quotas(self, *, repair: bool) -> tuple[Sequence[Finding], int]:
        """Whether the counters of quotas are the sums that they stand for; what is wrong, and how many there are."""

    async def check_series(self, *, limit: int, after: Key | None) -> tuple[Sequence[WrongSeries], int, Key | None]:
        """Whether the totals of metrics are those of their points; what is being purged is left out.

        Returns:
            What is wrong, how many series were looked at, and where to go on. Key: (internal number,).
        """

    async def verify_feed(self, after: ChainPlace | None) -> ChainPlace:
        """Recomputes some more of the change feed's chain, from its beginning on for None.

        Raises:
            StorageError: It is broken; says where.
        """
