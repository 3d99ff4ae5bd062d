"""The audit log as messages and back."""

from __future__ import annotations

from modelbox._proto.modelbox import v1 as pb
from modelbox._wire.values import dumps, loads, pack_time, unpack_time
from modelbox.audit import AuditEntry, AuditFilter


def pack_audit_filter(value: AuditFilter) -> pb.AuditFilter:
    """As a message."""
    return pb.AuditFilter(
        actor=value.actor,
        namespace=value.namespace,
        object=value.object,
        kinds=list(value.kinds),
        actions=list(value.actions),
        token_id=value.token_id,
        address=value.address,
        request_id=value.request_id,
        since_us=None if value.since is None else pack_time(value.since),
        until_us=None if value.until is None else pack_time(value.until),
    )


def unpack_audit_filter(message: pb.AuditFilter | None) -> AuditFilter:
    """From a message; an absent one lets everything through."""
    if message is None:
        return AuditFilter()
    return AuditFilter(
        actor=message.actor,
        namespace=message.namespace,
        object=message.object,
        kinds=tuple(message.kinds),
        actions=tuple(message.actions),
        token_id=message.token_id,
        address=message.address,
        request_id=message.request_id,
        since=None if message.since_us is None else unpack_time(message.since_us),
        until=None if message.until_us is None else unpack_time(message.until_us),
    )


def pack_audit_entry(value: AuditEntry) -> pb.AuditEntry:
    """As a message."""
    return pb.AuditEntry(
        rev=value.rev,
        idx=value.idx,
        at_us=pack_time(value.at),
        actor=value.actor,
        token_id=value.token_id,
        address=value.address,
        request_id=value.request_id,
        namespace=value.namespace,
        object=value.object,
        kind=value.kind,
        action=value.action,
        before_json=dumps(value.before),
        after_json=dumps(value.after),
        chain=bytes.fromhex(value.chain),
    )


def unpack_audit_entry(message: pb.AuditEntry) -> AuditEntry:
    """From a message."""
    return AuditEntry(
        rev=message.rev,
        idx=message.idx,
        at=unpack_time(message.at_us),
        actor=message.actor,
        token_id=message.token_id,
        address=message.address,
        request_id=message.request_id,
        namespace=message.namespace,
        object=message.object,
        kind=message.kind,
        action=message.action,
        before=loads(message.before_json.encode(), "a state"),
        after=loads(message.after_json.encode(), "a state"),
        chain=message.chain.hex(),
    )
