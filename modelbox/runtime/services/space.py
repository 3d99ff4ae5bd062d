"""The use cases of space: who uses how much, quotas, collecting bytes that nobody needs, checking that all is there.

Owns the order in which bytes go: rows first, then the bytes; `modelbox.runtime.store.removal` says why no row ever
loses its bytes, however many replicas collect, upload and publish at once. Owns the two times of that proof.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import anyio
from anyio import to_thread

from modelbox.access import ALL, Scope
from modelbox.errors import InvalidError, StorageError
from modelbox.objects import Page
from modelbox.refs import Digest, check_name, shown
from modelbox.runtime.ports import BlobEntry, BlobStore, Key, Listed
from modelbox.runtime.services.naming import check_actor
from modelbox.runtime.services.paging import decode_key, page_of, page_size_of
from modelbox.runtime.space_ports import IdleBlob, SpaceStore, StoredBlob
from modelbox.space import Collected, Finding, FindingKind, Quota, SpaceCheck, SpaceTotals, Usage

__all__ = ("GRACE_S", "TAKE_OVER_S", "SpaceService")

_LOG = logging.getLogger(__name__)
GRACE_S = 24 * 3600.0
"""Bytes stay for this long after the last upload, question for them, or end of a use."""
TAKE_OVER_S = 20 * 60.0
"""A removal that is not ended after this long was left; much longer than `_REMOVE_S`, and than S3 takes an old request
for a new one (15 minutes)."""
_REMOVE_S = 60.0
"""A remover deletes nothing later than this after it began: it may have stood still, and somebody took over."""
_Find = Callable[..., Awaitable[Listed[IdleBlob]]]
_CLOCK_SET_BACK_S = 100 * 366 * 86400.0
_BATCH = 100
_SERIES = 20
_AT_ONCE = 8
_SAY_EVERY_S = 1.0
_MAX_QUOTA = 1 << 62
_USERS = 5
_FEED_FAULTS = 20


@dataclass(slots=True)
class _Tally:
    """A `Collected` in the making."""

    dry_run: bool
    holdings: int = 0
    blobs: int = 0
    bytes: int = 0
    orphans: int = 0
    seen: int = 0

    def result(self, *, done: bool = False) -> Collected:
        return Collected(
            holdings=self.holdings,
            blobs=self.blobs,
            bytes=self.bytes,
            orphans=self.orphans,
            seen=self.seen,
            dry_run=self.dry_run,
            done=done,
        )


@dataclass(slots=True)
class _Progress:
    """A `SpaceCheck` in the making."""

    stage: str = "blobs"
    checked: int = 0
    bytes_read: int = 0
    findings: list[Finding] = field(default_factory=list)
    said_at: float = field(default_factory=anyio.current_time)

    def enter(self, stage: str) -> None:
        self.stage, self.checked = stage, 0

    def due(self) -> bool:
        return len(self.findings) >= _BATCH or anyio.current_time() - self.said_at >= _SAY_EVERY_S

    def say(self, *, done: bool = False) -> SpaceCheck:
        findings, self.findings = tuple(self.findings), []
        self.said_at = anyio.current_time()
        return SpaceCheck(
            stage=self.stage, checked=self.checked, bytes_read=self.bytes_read, findings=findings, done=done
        )


class SpaceService:
    """Usage, quotas, collection and check.

    Args:
        store: The rows.
        blobs: The bytes.
        grace_s: How long bytes stay that nobody needs.
        take_over_s: After how long a removal counts as left by who began it.
    """

    def __init__(
        self, store: SpaceStore, blobs: BlobStore, *, grace_s: float = GRACE_S, take_over_s: float = TAKE_OVER_S
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._grace_s = grace_s
        self._take_over_s = take_over_s

    # -- quotas and usage ------------------------------------------------------------------------------------------

    async def set_quota(self, namespace: str, limit_bytes: int, *, actor: str) -> Quota:
        """Limits how many bytes a namespace may hold. A limit below what it holds refuses new bytes only.

        Raises:
            InvalidError: The limit is negative or absurd.
        """
        check_name(namespace, "namespace")
        if isinstance(limit_bytes, bool) or not isinstance(limit_bytes, int) or not 0 <= limit_bytes <= _MAX_QUOTA:
            raise InvalidError(f"{shown(limit_bytes)} is not a quota: expected bytes, 0 or more", what="limit_bytes")
        quota = await self._store.set_quota(namespace, limit_bytes, actor=check_actor(actor))
        assert quota is not None
        return quota

    async def delete_quota(self, namespace: str) -> None:
        """Lets a namespace hold as much as there is room for; nothing happens if it has no quota."""
        await self._store.set_quota(check_name(namespace, "namespace"), None, actor="")

    async def list_quotas(self, namespace: str = "", *, scope: Scope = ALL) -> Sequence[Quota]:
        """Quotas by namespace, or that of one."""
        if namespace:
            check_name(namespace, "namespace")
        return await self._store.list_quotas(namespace, scope=scope)

    async def list_usage(
        self, namespace: str = "", *, page_size: int = 0, page_token: str = "", scope: Scope = ALL
    ) -> Page[Usage]:
        """The space of each namespace, or of each model of one, by name."""
        if namespace:
            check_name(namespace, "namespace")
        listing = f"usage:{namespace}"
        return page_of(
            listing,
            await self._store.list_usage(
                namespace, limit=page_size_of(page_size), after=decode_key(listing, page_token, str), scope=scope
            ),
        )

    async def totals(self) -> SpaceTotals:
        """Sums over everything."""
        return await self._store.totals()

    # -- collection ------------------------------------------------------------------------------------------------

    async def collect(self, *, dry_run: bool = False) -> AsyncIterator[Collected]:
        """Removes bytes that nobody needs; says now and then how far it is, at last with ``done``.

        Three kinds of bytes go: those that no version and no artifact of a namespace has had for the grace time; those
        that lost their row in a crash; and those whose removal somebody else began and left. Any number of collections
        may run at once, on any replicas.

        Cancellation: what is removed stays removed; the next collection goes on.

        Raises:
            StorageError: The blob store or the database failed; the next collection goes on.
        """
        tally = _Tally(dry_run=dry_run)
        if not dry_run:
            while left := await self._take_over(tally, self._take_over_s):
                yield tally.result()
                if left < _BATCH:
                    break
        finds: tuple[_Find, ...] = (self._find_idle, self._store.find_unheld)
        for find in finds:
            after, first = None, True
            while first or after is not None:
                first = False
                page = await find(limit=_BATCH, after=after)
                after = page.next_key
                if page.items:
                    await self._give_up(page.items, tally)
                    yield tally.result()
        some: list[BlobEntry] = []
        async for entry in self._blobs.iter_blobs():
            some.append(entry)
            if len(some) == _BATCH:
                await self._collect_orphans(some, tally)
                some = []
                yield tally.result()
        if some:
            await self._collect_orphans(some, tally)
        yield tally.result(done=True)

    async def sweep(self) -> int:
        """Collects; returns how many blobs went. What a server does by itself now and then."""
        blobs = 0
        async for done in self.collect():
            blobs = done.blobs
        return blobs

    async def _find_idle(self, *, limit: int, after: Key | None) -> Listed[IdleBlob]:
        return await self._store.find_idle(grace_s=self._grace_s, limit=limit, after=after)

    async def resume_removals(self) -> None:
        """Ends the removals that this server began before it was stopped.

        Call it before it serves, and only where no other server has the same database. Others have to wait until they
        are sure that nobody is at it. What the blob store refuses is left to a collection.
        """
        tally = _Tally(dry_run=False)
        try:
            while await self._take_over(tally, -_CLOCK_SET_BACK_S):
                pass
        except StorageError as exc:
            _LOG.warning("cannot remove what was to be removed before the last stop, and try again later: %s", exc)

    async def _take_over(self, tally: _Tally, older_than_s: float) -> int:
        batch, began = _new_batch(), anyio.current_time()
        digests = await self._store.take_over(older_than_s=older_than_s, limit=_BATCH, batch=batch)
        removed = await self._remove(digests, batch, began)
        tally.blobs += len(removed)
        tally.bytes += sum(removed.values())
        return len(digests)

    async def _give_up(self, idle: Sequence[IdleBlob], tally: _Tally) -> None:
        if tally.dry_run:
            tally.holdings += sum(len(one.namespaces) for one in idle)
            tally.blobs += sum(one.last for one in idle)
            tally.bytes += sum(one.size_bytes for one in idle if one.last)
            return
        batch, began = _new_batch(), anyio.current_time()
        # Shielded up to the end of a batch: a removal that is broken off keeps its bytes from being uploaded again.
        with anyio.CancelScope(shield=True):
            given = await self._store.give_up([one.row_id for one in idle], grace_s=self._grace_s, batch=batch)
            await self._remove([digest for digest, _ in given.blobs], batch, began)
        tally.holdings += given.holdings
        tally.blobs += len(given.blobs)
        tally.bytes += sum(size_bytes for _, size_bytes in given.blobs)

    async def _collect_orphans(self, entries: Sequence[BlobEntry], tally: _Tally) -> None:
        tally.seen += len(entries)
        unnamed, now = await self._store.find_orphans([entry.digest for entry in entries])
        before = now - timedelta(seconds=self._grace_s)
        by_digest = {entry.digest: entry for entry in entries}
        old = [digest for digest in unnamed if by_digest[digest].stored_at < before]
        if not old:
            return
        if not tally.dry_run:
            batch, began = _new_batch(), anyio.current_time()
            with anyio.CancelScope(shield=True):
                old = list(await self._store.condemn_orphans(old, batch=batch))
                await self._remove(old, batch, began)
        tally.orphans += len(old)
        tally.blobs += len(old)
        tally.bytes += sum(by_digest[digest].size_bytes for digest in old)

    async def _remove(self, digests: Sequence[Digest], batch: str, began: float) -> dict[Digest, int]:
        """Steps 2 and 3; returns what was there and is gone."""
        removed: dict[Digest, int] = {}
        finished: list[Digest] = []
        failures: list[StorageError] = []
        limiter = anyio.CapacityLimiter(_AT_ONCE)

        async def one(digest: Digest) -> None:
            async with limiter:
                try:
                    entry = await self._blobs.find_blob(digest)
                    # The clock after the look: what was found then cannot be what was uploaded after a take-over.
                    if anyio.current_time() - began > _REMOVE_S:
                        return
                    if entry is not None and await self._blobs.delete(entry):
                        removed[digest] = entry.size_bytes
                    finished.append(digest)
                except StorageError as exc:
                    # It may be gone or not, now or later: nobody uploads it before somebody takes over.
                    failures.append(exc)

        async with anyio.create_task_group() as tasks:
            for digest in digests:
                tasks.start_soon(one, digest, name="remove a blob")
        await self._store.finish_removal(finished, batch=batch)
        if failures:
            raise failures[0]
        return removed

    # -- check -----------------------------------------------------------------------------------------------------

    async def check(self, *, checksums: bool = False, repair: bool = False) -> AsyncIterator[SpaceCheck]:
        """Compares rows and bytes; says about every second how far it is, and at last ``done``.

        Args:
            checksums: Reads every byte and sums it, and every point of metrics; without, lengths are compared.
            repair: Puts right what can be put right for sure: files that do not count as in use, and counters of
                quotas. Lost or damaged bytes are for people: restore them, or upload them again.

        Raises:
            StorageError: The blob store or the database cannot be read.
        """
        progress = _Progress()
        async for said in self._check_blobs(progress, checksums):
            yield said
        progress.enter("files")
        after, first = None, True
        while first or after is not None:
            first = False
            findings, count, after = await self._store.check_files(limit=_BATCH, after=after, repair=repair)
            progress.findings += findings
            progress.checked += count
            if progress.due():
                yield progress.say()
        progress.enter("orphans")
        async for said in self._check_orphans(progress):
            yield said
        progress.enter("quotas")
        findings, progress.checked = await self._store.check_quotas(repair=repair)
        progress.findings += findings
        yield progress.say()
        if checksums:
            progress.enter("metrics")
            async for said in self._check_metrics(progress):
                yield said
        progress.enter("feed")
        async for said in self._check_feed(progress):
            yield said
        yield progress.say(done=True)

    async def _check_blobs(self, progress: _Progress, checksums: bool) -> AsyncIterator[SpaceCheck]:
        after, first = None, True
        while first or after is not None:
            first = False
            page = await self._store.list_blobs(limit=_BATCH, after=after)
            after = page.next_key
            sizes = await self._blobs.find_sizes([blob.digest for blob in page.items])
            for blob in page.items:
                progress.checked += 1
                size = sizes.get(blob.digest)
                if size is None:
                    await self._found(progress, blob, FindingKind.MISSING, "the bytes are not in the blob store")
                elif size != blob.size_bytes:
                    detail = f"{size} bytes are stored, {blob.size_bytes} expected"
                    await self._found(progress, blob, FindingKind.SIZE, detail)
                elif checksums:
                    async for said in self._sum(progress, blob):
                        yield said
                if progress.due():
                    yield progress.say()
        yield progress.say()

    async def _sum(self, progress: _Progress, blob: StoredBlob) -> AsyncIterator[SpaceCheck]:
        found = hashlib.sha256()
        try:
            async for chunk in self._blobs.read(blob.digest, offset=0, length=None):
                await to_thread.run_sync(found.update, chunk)
                progress.bytes_read += len(chunk)
                if progress.due():
                    yield progress.say()
        except StorageError as exc:
            await self._found(progress, blob, FindingKind.UNREADABLE, str(exc))
            return
        if f"sha256:{found.hexdigest()}" != blob.digest:
            await self._found(progress, blob, FindingKind.CORRUPT, f"the bytes sum to sha256:{found.hexdigest()}")

    async def _found(self, progress: _Progress, blob: StoredBlob, kind: FindingKind, detail: str) -> None:
        again = await self._store.list_blobs(limit=1, after=(blob.row_id - 1,))
        if not again.items or again.items[0].row_id != blob.row_id:
            # It was collected meanwhile.
            return
        used_by = tuple(await self._store.users_of(blob.digest, limit=_USERS))
        progress.findings.append(Finding(kind=kind, subject=blob.digest, detail=detail, used_by=used_by))

    async def _check_orphans(self, progress: _Progress) -> AsyncIterator[SpaceCheck]:
        some: list[BlobEntry] = []
        async for entry in self._blobs.iter_blobs():
            some.append(entry)
            if len(some) == _BATCH:
                await self._find_orphans(progress, some)
                some = []
                if progress.due():
                    yield progress.say()
        if some:
            await self._find_orphans(progress, some)
        yield progress.say()

    async def _find_orphans(self, progress: _Progress, entries: Sequence[BlobEntry]) -> None:
        progress.checked += len(entries)
        unnamed, now = await self._store.find_orphans([entry.digest for entry in entries])
        by_digest = {entry.digest: entry for entry in entries}
        for digest in unnamed:
            entry = by_digest[digest]
            if entry.stored_at < now - timedelta(seconds=self._grace_s):
                detail = f"{entry.size_bytes} bytes that no row names: a collection removes them"
                progress.findings.append(Finding(kind=FindingKind.ORPHAN, subject=digest, detail=detail))

    async def _check_metrics(self, progress: _Progress) -> AsyncIterator[SpaceCheck]:
        after, first = None, True
        while first or after is not None:
            first = False
            wrong, count, after = await self._store.check_series(limit=_SERIES, after=after)
            progress.checked += count
            progress.findings += [
                Finding(kind=FindingKind.METRICS, subject=f"{one.object_id} {one.key}", detail=one.detail)
                for one in wrong
            ]
            if progress.due():
                yield progress.say()
        yield progress.say()

    async def _check_feed(self, progress: _Progress) -> AsyncIterator[SpaceCheck]:
        place = None
        faults = 0
        while place is None or not place.done:
            place = await self._store.verify_feed(place)
            progress.checked = place.verified
            for _, fault in place.faults[: max(0, _FEED_FAULTS - faults)]:
                progress.findings.append(Finding(kind=FindingKind.FEED, subject="feed", detail=fault))
            faults += len(place.faults)
            if progress.due():
                yield progress.say()
        if faults > _FEED_FAULTS:
            more = f"{faults - _FEED_FAULTS} more revisions of the change feed were tampered with"
            progress.findings.append(Finding(kind=FindingKind.FEED, subject="feed", detail=more))


def _new_batch() -> str:
    return f"rmv_{secrets.token_hex(12)}"
