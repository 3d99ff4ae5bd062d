"""Who uses how much space, what was removed, and what a check of the storage found. Frozen data, no rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

__all__ = ("Collected", "Finding", "FindingKind", "Quota", "SpaceCheck", "SpaceReport", "SpaceTotals", "Usage")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """How many bytes a namespace may hold, and how many it does.

    Bytes count once per namespace, however many of its versions and artifacts share them, from their upload until they
    are collected.
    """

    namespace: str
    limit_bytes: int
    used_bytes: int
    updated_at: datetime
    updated_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """The space of a namespace or model. Equal bytes count once in each line, so lines need not add up.

    Attributes:
        path: ``namespace`` or ``namespace/model``.
        versions: How many there are.
        bytes_versions: Of the files of its versions.
        bytes_artifacts: Of the files of its artifacts.
        bytes_held: Of everything that was uploaded to the namespace and not collected; 0 for a model.
        bytes_unused: Those of them that no version and no artifact has: collected after the grace time.
        quota_bytes: What the namespace may hold; None without a quota.
    """

    path: str
    versions: int
    bytes_versions: int
    bytes_artifacts: int
    bytes_held: int = 0
    bytes_unused: int = 0
    quota_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceTotals:
    """The space of everything, by the database.

    Attributes:
        blobs: How many different files there are.
        bytes_blobs: What they take.
        uploads: How many are unfinished.
        removals: Blobs that are being removed at this moment.
    """

    blobs: int
    bytes_blobs: int
    uploads: int
    removals: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """How far a collection has come; sums from its beginning.

    Attributes:
        holdings: Unused bytes that namespaces gave up, by number of files.
        blobs: Files that were removed.
        bytes: What these took.
        orphans: Those of them that no row of the database named: remains of broken uploads.
        seen: Files in the blob store that were looked at.
        dry_run: Nothing was removed; the numbers say what would be.
        done: The collection is at its end.
    """

    holdings: int = 0
    blobs: int = 0
    bytes: int = 0
    orphans: int = 0
    seen: int = 0
    dry_run: bool = False
    done: bool = False


class FindingKind(StrEnum):
    """What is wrong.

    ``missing``, ``size``, ``corrupt``: bytes are not there, of another length, or of another digest. ``unreadable``:
    the store failed. ``unlisted``: a version or artifact has a file that no row counts as in use, so it could be
    collected. ``orphan``: bytes that no row names. ``quota``: a counter is wrong. ``feed``: the chain is broken.
    ``metrics``: a series' totals are not those of its points.
    """

    MISSING = "missing"
    SIZE = "size"
    CORRUPT = "corrupt"
    UNREADABLE = "unreadable"
    UNLISTED = "unlisted"
    ORPHAN = "orphan"
    QUOTA = "quota"
    FEED = "feed"
    METRICS = "metrics"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        subject: What it is about: a digest, a namespace, a version.
        detail: What was found, and what was expected.
        used_by: Versions and artifacts that need it, some of them.
        repaired: It is right again.
    """

    kind: FindingKind
    subject: str
    detail: str
    used_by: tuple[str, ...] = ()
    repaired: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceCheck:
    """How far a check has come, with what it found since the last answer; counts are from its beginning.

    Attributes:
        stage: What it is at: ``blobs``, ``files``, ``orphans``, ``quotas``, ``metrics``, ``feed``.
        checked: Items of this stage that were looked at.
        bytes_read: Bytes that were read and summed.
        done: The check is at its end.
    """

    stage: str
    checked: int
    bytes_read: int = 0
    findings: tuple[Finding, ...] = ()
    done: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceReport:
    """What a whole check found.

    Attributes:
        checked: How many items each stage of `SpaceCheck` looked at.
        bytes_read: Bytes that were read and summed.
    """

    checked: Mapping[str, int]
    bytes_read: int
    findings: tuple[Finding, ...]
