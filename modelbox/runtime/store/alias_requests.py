"""Moves of aliases that wait for a second person, in SQL: asking for them, and reading them.

A request says where the alias was, and is outdated once that is not so any more: what is approved is what was looked
at. Nothing runs when a request expires; that is found out by whoever reads it.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Select, and_, bindparam, func, insert, select

from modelbox.errors import LimitError, NotFoundError
from modelbox.feed import Action, Kind
from modelbox.rules import AliasRequest, RequestState
from modelbox.runtime.ports import Key, Listed
from modelbox.runtime.store.lookups import model_row
from modelbox.runtime.store.rows import from_us, new_uid, to_us
from modelbox.runtime.store.schema import alias_requests, aliases
from modelbox.runtime.store.writing import Writing

__all__ = ("Move", "add_request", "list_requests", "note_bypass", "note_request", "request_of", "request_row")

_MAX_PENDING = 100
"""Of one model."""

_MOD_REV = func.coalesce(aliases.c.mod_rev, 0)
_REQUESTS = select(alias_requests, _MOD_REV.label("mod_rev")).outerjoin(
    aliases, and_(aliases.c.model_id == alias_requests.c.model_id, aliases.c.name == alias_requests.c.alias)
)
_OF_MODEL = _REQUESTS.where(alias_requests.c.model_id == bindparam("the_model"))
_BY_UID = _OF_MODEL.where(alias_requests.c.uid == bindparam("the_uid"))


def _waiting(query: Select[Any], now_us: int) -> Select[Any]:
    return query.where(
        alias_requests.c.state == RequestState.PENDING.value,
        alias_requests.c.expires_at_us > now_us,
        alias_requests.c.from_mod_rev == _MOD_REV,
    )


def request_of(row: Any, model: Any, at: datetime) -> AliasRequest:
    """Of a row of a model's row, as it is at a time."""
    state = RequestState(row.state)
    if state is RequestState.PENDING and row.expires_at_us <= to_us(at):
        state = RequestState.EXPIRED
    elif state is RequestState.PENDING and row.from_mod_rev != row.mod_rev:
        state = RequestState.OUTDATED
    return AliasRequest(
        id=row.uid,
        namespace=model.namespace,
        model=model.name,
        alias=row.alias,
        from_version=row.from_version,
        to_version=row.to_version,
        reason=row.reason,
        state=state,
        requested_by=row.requested_by,
        requested_at=from_us(row.requested_at_us),
        expires_at=from_us(row.expires_at_us),
        decided_by=row.decided_by,
        decided_at=None if row.decided_at_us is None else from_us(row.decided_at_us),
        comment=row.comment,
    )


class Move:
    """A move that somebody wants: of a model's alias from its row, if it has one, to a version or to nothing."""

    __slots__ = ("alias", "before", "model", "reason", "to_version")

    def __init__(self, model: Any, alias: str, before: Any | None, to_version: int | None, reason: str) -> None:
        self.model = model
        self.alias = alias
        self.before = before
        self.to_version = to_version
        self.reason = reason

    @property
    def from_mod_rev(self) -> int:
        """Where the alias is in history; 0 where it does not exist."""
        return 0 if self.before is None else int(self.before.mod_rev)


def add_request(conn: Connection, move: Move, *, wait: timedelta, actor: str, at: datetime) -> AliasRequest:
    """Has a move wait for a second person; one that the same person asked for already is not asked for twice.

    Raises:
        LimitError: Too many moves of the model wait already.
    """
    found = conn.execute(_waiting(_OF_MODEL, to_us(at)).limit(_MAX_PENDING), {"the_model": move.model.id}).all()
    for row in found:
        same = (move.alias, move.to_version, move.from_mod_rev, actor)
        if same == (row.alias, row.to_version, row.from_mod_rev, row.requested_by):
            return request_of(row, move.model, at)
    if len(found) == _MAX_PENDING:
        raise LimitError(
            f"{_MAX_PENDING} moves of aliases of {move.model.namespace}/{move.model.name} wait for a second person "
            "already: approve or reject some of them first",
            limit=_MAX_PENDING,
        )
    writing = Writing(conn, actor=actor, at=at)
    uid = _insert(writing, move, RequestState.PENDING, at + wait)
    request = note_request(writing, move.model, uid, Action.CREATED)
    writing.finish()
    return request


def note_request(writing: Writing, model: Any, uid: str, action: Action) -> AliasRequest:
    """Notes the state that a request has now."""
    row = request_row(writing.conn, model, uid)
    request = request_of(row, model, writing.at)
    path = f"requests/{model.namespace}/{model.name}@{row.alias}/{uid}"
    writing.note(model.namespace, path, Kind.RULE, action, request)
    return request


def note_bypass(writing: Writing, move: Move) -> AliasRequest:
    """Notes a move that is made in the same revision although nobody approved it."""
    return note_request(writing, move.model, _insert(writing, move, RequestState.BYPASSED, writing.at), Action.CREATED)


def _insert(writing: Writing, move: Move, state: RequestState, until: datetime) -> str:
    uid = new_uid("req")
    decided = state is not RequestState.PENDING
    writing.conn.execute(
        insert(alias_requests).values(
            uid=uid,
            model_id=move.model.id,
            alias=move.alias,
            from_version=None if move.before is None else move.before.version,
            to_version=move.to_version,
            from_mod_rev=move.from_mod_rev,
            reason=move.reason,
            state=state.value,
            requested_by=writing.actor,
            requested_at_us=writing.at_us,
            expires_at_us=to_us(until),
            decided_by=writing.actor if decided else "",
            decided_at_us=writing.at_us if decided else None,
            comment="",
        )
    )
    return uid


def request_row(conn: Connection, model: Any, uid: str) -> Any:
    """The row of a model's request.

    Raises:
        NotFoundError: There is none; ``exists`` lists the newest.
    """
    row = conn.execute(_BY_UID, {"the_model": model.id, "the_uid": uid}).first()
    if row is None:
        newest = _OF_MODEL.order_by(alias_requests.c.id.desc()).limit(10)
        exists = [other.uid for other in conn.execute(newest, {"the_model": model.id})]
        instead = f"there are: {', '.join(exists)}" if exists else "there are none"
        raise NotFoundError(
            f"no request {uid} of {model.namespace}/{model.name}: {instead}", what="request", name=uid, exists=exists
        )
    return row


def list_requests(
    conn: Connection,
    namespace: str,
    model: str,
    *,
    alias: str,
    everything: bool,
    at: datetime,
    limit: int,
    after: Key | None,
) -> Listed[AliasRequest]:
    """Requests, newest first; those that wait, or all."""
    owner = model_row(conn, namespace, model)
    query = _OF_MODEL if everything else _waiting(_OF_MODEL, to_us(at))
    if alias:
        query = query.where(alias_requests.c.alias == alias)
    if after is not None:
        query = query.where(alias_requests.c.id < after[0])
    query = query.order_by(alias_requests.c.id.desc()).limit(limit + 1)
    rows = conn.execute(query, {"the_model": owner.id}).all()
    items = tuple(request_of(row, owner, at) for row in rows[:limit])
    return Listed(items=items, next_key=(rows[limit - 1].id,) if len(rows) > limit else None)
