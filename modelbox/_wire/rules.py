"""Rules, protections and requests as messages and back."""

from __future__ import annotations

from modelbox._proto.modelbox import v1 as pb
from modelbox._wire.values import member, pack_optional_int64, pack_optional_time, pack_time, unpack_time
from modelbox.rules import AliasProtection, AliasRequest, Missing, RequestState, Rule


def pack_rule(value: Rule) -> pb.Rule:
    """As a message."""
    return pb.Rule(
        scope=value.scope,
        alias=value.alias,
        labels=list(value.labels),
        metadata=list(value.metadata),
        owner=value.owner,
        description=value.description,
        dataset=value.dataset,
        signed=value.signed,
        updated_at_us=pack_optional_time(value.updated_at),
        updated_by=value.updated_by,
    )


def unpack_rule(message: pb.Rule) -> Rule:
    """From a message."""
    return Rule(
        scope=message.scope,
        alias=message.alias,
        labels=tuple(message.labels),
        metadata=tuple(message.metadata),
        owner=message.owner,
        description=message.description,
        dataset=message.dataset,
        signed=message.signed,
        updated_at=unpack_time(message.updated_at_us) if message.updated_at_us else None,
        updated_by=message.updated_by,
    )


def pack_missing(value: Missing) -> pb.MissingPart:
    """As a message."""
    return pb.MissingPart(what=value.what, key=value.key, scope=value.scope, fix=value.fix)


def unpack_missing(message: pb.MissingPart) -> Missing:
    """From a message."""
    return Missing(what=message.what, key=message.key, scope=message.scope, fix=message.fix)


def pack_protection(value: AliasProtection) -> pb.AliasProtection:
    """As a message."""
    return pb.AliasProtection(
        scope=value.scope,
        alias=value.alias,
        approval=value.approval,
        updated_at_us=pack_optional_time(value.updated_at),
        updated_by=value.updated_by,
    )


def unpack_protection(message: pb.AliasProtection) -> AliasProtection:
    """From a message."""
    return AliasProtection(
        scope=message.scope,
        alias=message.alias,
        approval=message.approval,
        updated_at=unpack_time(message.updated_at_us) if message.updated_at_us else None,
        updated_by=message.updated_by,
    )


def pack_request(value: AliasRequest) -> pb.AliasRequest:
    """As a message."""
    return pb.AliasRequest(
        id=value.id,
        namespace=value.namespace,
        model=value.model,
        alias=value.alias,
        from_version=pack_optional_int64(value.from_version, "from_version"),
        to_version=pack_optional_int64(value.to_version, "to_version"),
        reason=value.reason,
        state=value.state,
        requested_by=value.requested_by,
        requested_at_us=pack_time(value.requested_at),
        expires_at_us=pack_time(value.expires_at),
        decided_by=value.decided_by,
        decided_at_us=pack_optional_time(value.decided_at),
        comment=value.comment,
    )


def unpack_request(message: pb.AliasRequest) -> AliasRequest:
    """From a message."""
    return AliasRequest(
        id=message.id,
        namespace=message.namespace,
        model=message.model,
        alias=message.alias,
        from_version=message.from_version,
        to_version=message.to_version,
        reason=message.reason,
        state=member(RequestState, message.state, "a state of a request"),
        requested_by=message.requested_by,
        requested_at=unpack_time(message.requested_at_us),
        expires_at=unpack_time(message.expires_at_us),
        decided_by=message.decided_by,
        decided_at=unpack_time(message.decided_at_us) if message.decided_at_us else None,
        comment=message.comment,
    )
