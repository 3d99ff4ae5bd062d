"""Reports of instances, and members, as messages and back."""

from __future__ import annotations

from modelbox._proto.modelbox import v1 as pb
from modelbox._wire.values import pack_time, present, unpack_time
from modelbox.errors import (
    InvalidError,
)
from modelbox.objects import (
    Instance,
    InstanceReport,
    InstanceState,
    Member,
)
from modelbox.refs import shown


def pack_report(value: InstanceReport) -> pb.InstanceReport:
    """As a message."""
    return pb.InstanceReport(
        instance_id=value.instance_id,
        host=value.host,
        pid=value.pid,
        ref=value.ref,
        state=value.state,
        version=value.version,
        digest=value.digest,
        target_version=value.target_version,
        target_digest=value.target_digest,
        mod_rev=value.mod_rev,
        stage=value.stage,
        reason=value.reason,
        stale=value.stale,
    )


def unpack_report(message: pb.InstanceReport) -> InstanceReport:
    """From a message."""
    try:
        state = InstanceState(message.state)
    except ValueError as exc:
        raise InvalidError(
            f"{shown(message.state)} is not an instance's state: expected {', '.join(InstanceState)}"
        ) from exc
    return InstanceReport(
        instance_id=message.instance_id,
        host=message.host,
        pid=message.pid,
        ref=message.ref,
        state=state,
        version=message.version,
        digest=message.digest,
        target_version=message.target_version,
        target_digest=message.target_digest,
        mod_rev=message.mod_rev,
        stage=message.stage,
        reason=message.reason,
        stale=message.stale,
    )


def pack_member(value: Member) -> pb.Member:
    """As a message."""
    return pb.Member(
        id=value.id,
        name=value.name,
        role=value.role,
        state=value.state,
        grpc_address=value.grpc_address,
        http_address=value.http_address,
        version=value.version,
        started_at_us=pack_time(value.started_at),
        last_seen_at_us=pack_time(value.last_seen_at),
        alive=value.alive,
        clock_ahead_s=value.clock_ahead_s,
        rev=value.rev,
        leases=list(value.leases),
    )


def unpack_member(message: pb.Member) -> Member:
    """From a message."""
    return Member(
        id=message.id,
        name=message.name,
        role=message.role,
        state=message.state,
        grpc_address=message.grpc_address,
        http_address=message.http_address,
        version=message.version,
        started_at=unpack_time(message.started_at_us),
        last_seen_at=unpack_time(message.last_seen_at_us),
        alive=message.alive,
        clock_ahead_s=message.clock_ahead_s,
        rev=message.rev,
        leases=tuple(message.leases),
    )


def pack_instance(value: Instance) -> pb.Instance:
    """As a message."""
    return pb.Instance(
        report=pack_report(value.report),
        first_seen_at_us=pack_time(value.first_seen_at),
        last_seen_at_us=pack_time(value.last_seen_at),
        alive=value.alive,
    )


def unpack_instance(message: pb.Instance) -> Instance:
    """From a message."""
    return Instance(
        report=unpack_report(present(message.report, "the report")),
        first_seen_at=unpack_time(message.first_seen_at_us),
        last_seen_at=unpack_time(message.last_seen_at_us),
        alive=message.alive,
    )
