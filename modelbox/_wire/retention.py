"""Policies of retention, plans and locks as messages and back."""

from __future__ import annotations

from modelbox._proto.modelbox import v1 as pb
from modelbox._wire.values import member, pack_int64, pack_optional_int64, pack_optional_time, pack_time, unpack_time
from modelbox.retention import Best, BestMode, Planned, Retained, RetentionPolicy, RetentionRun, VersionLock


def unpack_kind(text: str) -> Retained:
    """What a policy is about; versions where nothing is said."""
    return member(Retained, text or Retained.VERSIONS.value, "a kind of policy")


def pack_policy(value: RetentionPolicy) -> pb.RetentionPolicy:
    """As a message."""
    return pb.RetentionPolicy(
        scope=value.scope,
        kind=value.kind,
        keep_all=value.keep_all,
        keep_last=pack_optional_int64(value.keep_last, "keep_last"),
        keep_younger_s=None if value.keep_younger_s is None else float(value.keep_younger_s),
        keep_best=[
            pb.BestRule(metric=one.metric, count=pack_int64(one.count, "count"), mode=one.mode)
            for one in value.keep_best
        ],
        updated_at_us=pack_optional_time(value.updated_at),
        updated_by=value.updated_by,
    )


def unpack_policy(message: pb.RetentionPolicy) -> RetentionPolicy:
    """From a message."""
    return RetentionPolicy(
        scope=message.scope,
        kind=unpack_kind(message.kind),
        keep_all=message.keep_all,
        keep_last=message.keep_last,
        keep_younger_s=message.keep_younger_s,
        keep_best=tuple(
            Best(
                metric=one.metric,
                count=one.count,
                mode=member(BestMode, one.mode or BestMode.MAX.value, "a mode"),
            )
            for one in message.keep_best
        ),
        updated_at=unpack_time(message.updated_at_us) if message.updated_at_us else None,
        updated_by=message.updated_by,
    )


def pack_planned(value: Planned) -> pb.PlannedItem:
    """As a message."""
    return pb.PlannedItem(
        kind=value.kind,
        policy=value.policy,
        id=value.id,
        name=value.name,
        keep=value.keep,
        reasons=list(value.reasons),
        size_bytes=value.size_bytes,
    )


def unpack_planned(message: pb.PlannedItem) -> Planned:
    """From a message."""
    return Planned(
        kind=unpack_kind(message.kind),
        policy=message.policy,
        id=message.id,
        name=message.name,
        keep=message.keep,
        reasons=tuple(message.reasons),
        size_bytes=message.size_bytes,
    )


def pack_run(value: RetentionRun) -> pb.RunRetentionResponse:
    """As an answer."""
    return pb.RunRetentionResponse(versions=value.versions, binned=value.binned, purged=value.purged, more=value.more)


def unpack_run(message: pb.RunRetentionResponse) -> RetentionRun:
    """From an answer."""
    return RetentionRun(versions=message.versions, binned=message.binned, purged=message.purged, more=message.more)


def pack_lock(value: VersionLock) -> pb.VersionLock:
    """As a message."""
    return pb.VersionLock(
        namespace=value.namespace,
        model=value.model,
        version=value.version,
        reason=value.reason,
        locked_at_us=pack_time(value.locked_at),
        locked_by=value.locked_by,
    )


def unpack_lock(message: pb.VersionLock) -> VersionLock:
    """From a message."""
    return VersionLock(
        namespace=message.namespace,
        model=message.model,
        version=message.version,
        reason=message.reason,
        locked_at=unpack_time(message.locked_at_us),
        locked_by=message.locked_by,
    )
