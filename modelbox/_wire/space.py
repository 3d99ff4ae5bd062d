"""Quotas, usage, collections and checks as messages and back."""

from __future__ import annotations

from modelbox._proto.modelbox import v1 as pb
from modelbox._wire.values import member, pack_time, unpack_time
from modelbox.space import Collected, Finding, FindingKind, Quota, SpaceCheck, SpaceTotals, Usage


def pack_quota(value: Quota) -> pb.Quota:
    """As a message."""
    return pb.Quota(
        namespace=value.namespace,
        limit_bytes=value.limit_bytes,
        used_bytes=value.used_bytes,
        updated_at_us=pack_time(value.updated_at),
        updated_by=value.updated_by,
    )


def unpack_quota(message: pb.Quota) -> Quota:
    """From a message."""
    return Quota(
        namespace=message.namespace,
        limit_bytes=message.limit_bytes,
        used_bytes=message.used_bytes,
        updated_at=unpack_time(message.updated_at_us),
        updated_by=message.updated_by,
    )


def pack_usage(value: Usage) -> pb.Usage:
    """As a message."""
    return pb.Usage(
        path=value.path,
        versions=value.versions,
        bytes_versions=value.bytes_versions,
        bytes_artifacts=value.bytes_artifacts,
        bytes_held=value.bytes_held,
        bytes_unused=value.bytes_unused,
        quota_bytes=value.quota_bytes,
    )


def unpack_usage(message: pb.Usage) -> Usage:
    """From a message."""
    return Usage(
        path=message.path,
        versions=message.versions,
        bytes_versions=message.bytes_versions,
        bytes_artifacts=message.bytes_artifacts,
        bytes_held=message.bytes_held,
        bytes_unused=message.bytes_unused,
        quota_bytes=message.quota_bytes,
    )


def pack_totals(value: SpaceTotals) -> pb.SpaceTotals:
    """As a message."""
    return pb.SpaceTotals(
        blobs=value.blobs, bytes_blobs=value.bytes_blobs, uploads=value.uploads, removals=value.removals
    )


def unpack_totals(message: pb.SpaceTotals) -> SpaceTotals:
    """From a message."""
    return SpaceTotals(
        blobs=message.blobs, bytes_blobs=message.bytes_blobs, uploads=message.uploads, removals=message.removals
    )


def pack_collected(value: Collected) -> pb.Collected:
    """As a message."""
    return pb.Collected(
        holdings=value.holdings,
        blobs=value.blobs,
        bytes=value.bytes,
        orphans=value.orphans,
        seen=value.seen,
        dry_run=value.dry_run,
        done=value.done,
    )


def unpack_collected(message: pb.Collected) -> Collected:
    """From a message."""
    return Collected(
        holdings=message.holdings,
        blobs=message.blobs,
        bytes=message.bytes,
        orphans=message.orphans,
        seen=message.seen,
        dry_run=message.dry_run,
        done=message.done,
    )


def pack_check(value: SpaceCheck) -> pb.SpaceCheck:
    """As a message."""
    return pb.SpaceCheck(
        stage=value.stage,
        checked=value.checked,
        bytes_read=value.bytes_read,
        findings=[
            pb.SpaceFinding(
                kind=one.kind,
                subject=one.subject,
                detail=one.detail,
                used_by=list(one.used_by),
                repaired=one.repaired,
            )
            for one in value.findings
        ],
        done=value.done,
    )


def unpack_check(message: pb.SpaceCheck) -> SpaceCheck:
    """From a message."""
    return SpaceCheck(
        stage=message.stage,
        checked=message.checked,
        bytes_read=message.bytes_read,
        findings=tuple(
            Finding(
                kind=member(FindingKind, one.kind, "a kind of finding"),
                subject=one.subject,
                detail=one.detail,
                used_by=tuple(one.used_by),
                repaired=one.repaired,
            )
            for one in message.findings
        ),
        done=message.done,
    )
