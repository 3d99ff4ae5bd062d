"""Who did what to which object, from where, with before and after: the audit log's data.

The log is the change feed, kept longer. Frozen data, no rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from modelbox.errors import InvalidError
from modelbox.feed import Action, Kind
from modelbox.objects import JsonValue
from modelbox.refs import check_name, shown

__all__ = ("AuditEntry", "AuditFilter", "Denial", "check_audit_filter")

_MAX_CHARS = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One change, or calls that were denied.

    Attributes:
        rev: The revision of the transaction; ``idx`` orders the entries inside it.
        actor: The account; without access control, what the caller said of itself.
        token_id: The public part of the token that the call came with.
        address: Where the call came from: of a proxy, if there is one.
        request_id: The call's name, as in its answer and in the server's log.
        namespace: Where the object is; empty for what belongs to the server.
        object: Its path or id, as in the change feed.
        kind: Of `modelbox.feed.Kind`.
        action: Of `modelbox.feed.Action`.
        before: The whole state before the change; None for what was created, and where no change of the object before
            this one is kept any more.
        after: The whole state after the change; None for what was deleted. Of a denial, a `Denial`.
        chain: The hash chain behind the revision, in hexadecimal: the same for all of its entries.
    """

    rev: int
    idx: int
    at: datetime
    actor: str
    token_id: str = ""
    address: str = ""
    request_id: str = ""
    namespace: str
    object: str
    kind: str
    action: str
    before: JsonValue = None
    after: JsonValue = None
    chain: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Denial:
    """Calls of one account, token and address about one object that were refused within a minute or so.

    Attributes:
        method: The gRPC method or HTTP route; empty for a sum of what was too much to tell one by one.
        permission: What the caller lacked; ``authentication`` where nobody knew who it was.
        object: As the call named it.
        count: How many.
        first_at: The first of them.
        last_at: The last.
        others: How many different ones this is the sum of; 0 for one.
    """

    method: str
    permission: str
    object: str
    count: int
    first_at: datetime
    last_at: datetime
    others: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """Which entries a reader wants; empty parts let everything through.

    Attributes:
        actor: Exactly this one.
        namespace: This namespace.
        object: A path or id; a model's path takes in its versions and aliases, an id its attributes and readme.
        kinds: Of `modelbox.feed.Kind`; `Kind.DENIAL` for what was refused.
        actions: Of `modelbox.feed.Action`.
        token_id: The public part of a token.
        address: Exactly this one.
        request_id: One call.
        since: Not before.
        until: Before.
    """

    actor: str = ""
    namespace: str = ""
    object: str = ""
    kinds: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    token_id: str = ""
    address: str = ""
    request_id: str = ""
    since: datetime | None = None
    until: datetime | None = None


def check_audit_filter(wanted: AuditFilter) -> AuditFilter:
    """Returns ``wanted`` if it can be asked.

    Raises:
        InvalidError: A name, kind or action is not valid, or a text too long.
    """
    if wanted.namespace:
        check_name(wanted.namespace, "namespace")
    for what in ("actor", "object", "token_id", "address", "request_id"):
        text = getattr(wanted, what)
        if len(text) > _MAX_CHARS:
            raise InvalidError(f"the {what} {shown(text)} is longer than {_MAX_CHARS} characters", what=what)
    for kind in wanted.kinds:
        if kind not in set(Kind):
            raise InvalidError(f"{shown(kind)} is not a kind of object: expected one of {', '.join(Kind)}", what="kind")
    for action in wanted.actions:
        if action not in set(Action):
            raise InvalidError(f"{shown(action)} is not an action: expected one of {', '.join(Action)}", what="action")
    for what in ("since", "until"):
        at = getattr(wanted, what)
        if at is not None and at.tzinfo is None:
            raise InvalidError(f"the time {what} {at} lacks a time zone", what=what)
    return wanted
