"""Approving and rejecting moves of aliases, and the store of all that rules are about.

A move that is approved is made in the same transaction, by the same checks as any other: of the state that the alias
had when it was asked for, to a version that still is there and has what it must have.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, update

from modelbox.access import Caller
from modelbox.errors import AuthError, ConflictError, NotFoundError
from modelbox.feed import Action
from modelbox.objects import to_json
from modelbox.rules import AliasProtection, AliasRequest, Missing, RequestState, Rule
from modelbox.runtime.ports import Key, Listed
from modelbox.runtime.store.alias_requests import list_requests, note_request, request_of, request_row
from modelbox.runtime.store.aliases import AliasWriting
from modelbox.runtime.store.database import Database
from modelbox.runtime.store.guard import Guard, check_promotion, facts_of, find_missing_of, server_wide, with_dataset
from modelbox.runtime.store.lookups import find_alias_row, model_row, version_row
from modelbox.runtime.store.objects import object_id
from modelbox.runtime.store.rows import version_of
from modelbox.runtime.store.rules import (
    delete_rule,
    list_protections,
    list_rules,
    protect_alias,
    rules_for,
    set_rule,
    unprotect_alias,
)
from modelbox.runtime.store.schema import alias_requests

__all__ = ("SqlRuleStore", "approve_request", "reject_request")

_DECIDE = (
    update(alias_requests)
    .where(alias_requests.c.uid == bindparam("the_uid"))
    .values(
        state=bindparam("new_state"),
        decided_by=bindparam("new_decided_by"),
        decided_at_us=bindparam("new_decided_at_us"),
        comment=bindparam("new_comment"),
    )
)


def _waiting(conn: Connection, namespace: str, model: str, uid: str, at: datetime) -> tuple[Any, AliasRequest]:
    """The model's row, locked, and a request that still waits.

    Raises:
        NotFoundError: There is no such model or request.
        ConflictError: It does not wait any more; ``current`` says what became of it.
    """
    owner = model_row(conn, namespace, model, lock=True)
    request = request_of(request_row(conn, owner, uid), owner, at)
    if request.state is RequestState.PENDING:
        return owner, request
    path = f"{namespace}/{model}@{request.alias}"
    state = {
        RequestState.APPROVED: f"was approved by {request.decided_by} already",
        RequestState.REJECTED: f"was rejected by {request.decided_by}",
        RequestState.EXPIRED: "has expired: ask for the move again",
        RequestState.OUTDATED: f"is outdated, since {path} was moved meanwhile: ask for the move again",
        RequestState.BYPASSED: "was a rollback, which waits for nobody",
    }[request.state]
    raise ConflictError(f"the request {uid} {state}", current=to_json(request))


def approve_request(
    conn: Connection, namespace: str, model: str, uid: str, comment: str, guard: Guard, actor: str, at: datetime
) -> AliasRequest:
    """Moves the alias as was asked for, in the name of who approves it.

    Raises:
        AuthError: The caller is no promoter, or the one who asked for it.
        ConflictError: It does not wait any more.
        NotFoundError: There is no such request, or the version is gone.
        RuleError: The version lacks what a rule asks for by now.
    """
    owner, request = _waiting(conn, namespace, model, uid, at)
    path = f"{namespace}/{model}@{request.alias}"
    guard.check_promoter(namespace, model, f"the move of {path} waits for a promoter", name=path)
    if not actor or actor == request.requested_by:
        raise AuthError(
            f"{actor} asked for the move of {path}: somebody else has to approve it"
            if actor
            else f"the move of {path} waits for somebody who says who they are",
            what="request",
            namespace=namespace,
            name=path,
        )
    before = find_alias_row(conn, owner, request.alias)
    target = None
    if request.to_version is not None:
        target = version_row(conn, owner, request.to_version)
        check_promotion(conn, guard, owner, target, [request.alias])
    reason = f"asked for by {request.requested_by or 'somebody'}"
    reason = f"{request.reason} ({reason})" if request.reason else reason
    writing = AliasWriting(conn, actor=actor, at=at)
    _decide(writing, uid, RequestState.APPROVED, comment)
    approved = note_request(writing, owner, uid, Action.UPDATED)
    if target is not None:
        writing.point(owner, request.alias, before, target, reason)
    elif before is not None:
        writing.drop_alias(owner, before, reason)
    writing.finish()
    return approved


def reject_request(
    conn: Connection, namespace: str, model: str, uid: str, comment: str, guard: Guard, actor: str, at: datetime
) -> AliasRequest:
    """Has nobody approve a request any more; promoters may, and whoever asked for it.

    Raises:
        AuthError: The caller is neither.
        ConflictError: It does not wait any more.
        NotFoundError: There is no such request.
    """
    owner, request = _waiting(conn, namespace, model, uid, at)
    if not actor or actor != request.requested_by:
        why = f"{request.requested_by or 'somebody'} asked for this move"
        guard.check_promoter(namespace, model, why, name=f"{namespace}/{model}@{request.alias}")
    writing = AliasWriting(conn, actor=actor, at=at)
    _decide(writing, uid, RequestState.REJECTED, comment)
    rejected = note_request(writing, owner, uid, Action.UPDATED)
    writing.finish()
    return rejected


def _decide(writing: AliasWriting, uid: str, state: RequestState, comment: str) -> None:
    writing.conn.execute(
        _DECIDE,
        {
            "the_uid": uid,
            "new_state": state.value,
            "new_decided_by": writing.actor,
            "new_decided_at_us": writing.at_us,
            "new_comment": comment,
        },
    )


def _check_rules(
    conn: Connection, namespace: str, model: str, version: int, alias: str, caller: Caller
) -> tuple[Missing, ...]:
    owner = model_row(conn, namespace, model)
    row = version_row(conn, owner, version)
    rules = rules_for(conn, namespace, model)
    facts = facts_of(owner, version_of(row))
    if any(rule.dataset for rule in rules):
        facts = with_dataset(conn, caller, facts, [object_id(conn, row.uid)])
    return find_missing_of(rules, facts, alias)


def _unprotect(conn: Connection, protected: Sequence[str], scope: str, alias: str, actor: str, at: datetime) -> None:
    try:
        unprotect_alias(conn, scope, alias, actor=actor, at=at)
    except NotFoundError as exc:
        if alias not in protected:
            raise
        raise ConflictError(
            f"{alias} is protected everywhere by the server's setting protected_aliases: only that can change it",
            current=to_json(AliasProtection(scope="", alias=alias)),
        ) from exc


class SqlRuleStore:
    """`modelbox.runtime.rule_ports.RuleStore` over a database; see there for each method.

    Args:
        database: Where they are kept.
        protected: Patterns of aliases that the server's settings protect everywhere.
    """

    def __init__(self, database: Database, *, protected: Sequence[str] = ()) -> None:
        self._db = database
        self._protected = tuple(protected)

    async def set_rule(self, rule: Rule, *, actor: str, at: datetime) -> Rule:
        """See the port."""
        return await self._db.write(lambda conn: set_rule(conn, rule, actor=actor, at=at))

    async def list_rules(self, scope: str) -> Sequence[Rule]:
        """See the port."""
        return await self._db.scan(lambda conn: list_rules(conn, scope))

    async def delete_rule(self, scope: str, alias: str, *, actor: str, at: datetime) -> None:
        """See the port."""
        await self._db.write(lambda conn: delete_rule(conn, scope, alias, actor=actor, at=at))

    async def check_rules(
        self, namespace: str, model: str, version: int, alias: str, *, caller: Caller
    ) -> tuple[Missing, ...]:
        """See the port."""
        return await self._db.scan(lambda conn: _check_rules(conn, namespace, model, version, alias, caller))

    async def protect_alias(self, protection: AliasProtection, *, actor: str, at: datetime) -> AliasProtection:
        """See the port."""
        return await self._db.write(lambda conn: protect_alias(conn, protection, actor=actor, at=at))

    async def list_protections(self, scope: str) -> Sequence[AliasProtection]:
        """See the port."""
        found = await self._db.scan(lambda conn: list_protections(conn, scope))
        return [*server_wide(self._protected), *found]

    async def unprotect_alias(self, scope: str, alias: str, *, actor: str, at: datetime) -> None:
        """See the port."""
        await self._db.write(lambda conn: _unprotect(conn, self._protected, scope, alias, actor, at))

    async def list_requests(
        self, namespace: str, model: str, *, alias: str, everything: bool, at: datetime, limit: int, after: Key | None
    ) -> Listed[AliasRequest]:
        """See the port."""
        return await self._db.scan(
            lambda conn: list_requests(
                conn, namespace, model, alias=alias, everything=everything, at=at, limit=limit, after=after
            )
        )

    async def approve_request(
        self, namespace: str, model: str, request_id: str, *, comment: str, caller: Caller, actor: str, at: datetime
    ) -> AliasRequest:
        """See the port."""
        guard = Guard(caller=caller, protected=self._protected)
        return await self._db.write(
            lambda conn: approve_request(conn, namespace, model, request_id, comment, guard, actor, at)
        )

    async def reject_request(
        self, namespace: str, model: str, request_id: str, *, comment: str, caller: Caller, actor: str, at: datetime
    ) -> AliasRequest:
        """See the port."""
        guard = Guard(caller=caller, protected=self._protected)
        return await self._db.write(
            lambda conn: reject_request(conn, namespace, model, request_id, comment, guard, actor, at)
        )
