"""Aliases in SQL: moved by compare-and-set under the lock of their model's row, with their history.

`modelbox.runtime.store.registry` runs these functions, and moves ``latest`` by them.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from modelbox.errors import ConflictError
from modelbox.feed import Action, Kind
from modelbox.objects import Alias, AliasMove, to_json
from modelbox.refs import Digest
from modelbox.rules import AliasRequest
from modelbox.runtime.ports import Key, Listed
from modelbox.runtime.store.alias_requests import Move, add_request, note_bypass
from modelbox.runtime.store.guard import Guard, check_promotion
from modelbox.runtime.store.lookups import alias_row, find_alias_row, model_row, version_row
from modelbox.runtime.store.rows import ALIASES, alias_of, move_of, to_us
from modelbox.runtime.store.schema import alias_moves, aliases
from modelbox.runtime.store.writing import Writing

__all__ = ("AliasWriting", "delete_alias", "list_alias_moves", "list_aliases", "move_alias", "rollback_alias")

_ADD_MOVE = insert(alias_moves)
_ADD_ALIAS = insert(aliases)
_SET_ALIAS = (
    update(aliases)
    .where(aliases.c.id == bindparam("row_id"))
    .values(
        version_id=bindparam("new_version_id"),
        moved_at_us=bindparam("new_moved_at_us"),
        moved_by=bindparam("new_moved_by"),
        reason=bindparam("new_reason"),
        mod_rev=bindparam("new_mod_rev"),
    )
)
_LAST_MOVE = (
    select(alias_moves.c.from_version)
    .where(alias_moves.c.model_id == bindparam("row_id"), alias_moves.c.name == bindparam("alias"))
    .order_by(alias_moves.c.id.desc())
    .limit(1)
)


class AliasWriting(Writing):
    """A revision that moves aliases."""

    def point(self, model: Any, name: str, before: Any | None, target: Any, reason: str) -> Alias:
        """Moves (``before`` is its row) or makes an alias of the model's row to a version's row, and notes it."""
        values = {
            "version_id": target.id,
            "moved_at_us": self.at_us,
            "moved_by": self.actor,
            "reason": reason,
            "mod_rev": self.rev,
        }
        if before is None:
            self.conn.execute(_ADD_ALIAS, {"model_id": model.id, "name": name, **values})
        else:
            new = {f"new_{key}": value for key, value in values.items()}
            self.conn.execute(_SET_ALIAS, {"row_id": before.id, **new})
        self._moved(model, name, None if before is None else before.version, target.version, reason)
        alias = Alias(
            namespace=model.namespace,
            model=model.name,
            name=name,
            version=target.version,
            digest=Digest(target.digest),
            moved_at=self.at,
            moved_by=self.actor,
            reason=reason,
            mod_rev=self.rev,
        )
        action = Action.CREATED if before is None else Action.MOVED
        self.note(model.namespace, f"{model.namespace}/{model.name}@{name}", Kind.ALIAS, action, alias)
        return alias

    def drop_alias(self, model: Any, row: Any, reason: str) -> None:
        """Deletes an alias's row (`ALIASES`), and notes it."""
        self.conn.execute(delete(aliases).where(aliases.c.id == row.id))
        self._moved(model, row.name, row.version, None, reason)
        path = f"{model.namespace}/{model.name}@{row.name}"
        self.note(model.namespace, path, Kind.ALIAS, Action.DELETED, alias_of(row))

    def _moved(self, model: Any, name: str, old: int | None, new: int | None, reason: str) -> None:
        self.conn.execute(
            _ADD_MOVE,
            {
                "model_id": model.id,
                "name": name,
                "from_version": old,
                "to_version": new,
                "moved_at_us": self.at_us,
                "moved_by": self.actor,
                "reason": reason,
                "rev": self.rev,
            },
        )


def _compare(row: Any | None, path: str, expected_mod_rev: int | None) -> None:
    """The compare of compare-and-set, under the lock of the model's row."""
    if expected_mod_rev is None or expected_mod_rev == (0 if row is None else row.mod_rev):
        return
    if row is None:
        raise ConflictError(f"{path} does not exist any more: it was at revision {expected_mod_rev}", current=None)
    state = "exists already" if expected_mod_rev == 0 else "was moved meanwhile"
    raise ConflictError(
        f"{path} {state}: {row.moved_by or 'somebody'} pointed it to version {row.version} in revision {row.mod_rev}",
        current=to_json(alias_of(row)),
    )


def move_alias(
    conn: Connection,
    namespace: str,
    model: str,
    alias: str,
    version: int,
    expected_mod_rev: int | None,
    reason: str,
    actor: str,
    at: datetime,
    guard: Guard,
    wait: timedelta,
) -> Alias | AliasRequest:
    """Moves or makes an alias, or has that wait for a second person."""
    row = model_row(conn, namespace, model, lock=True)
    waits = guard.check_alias(conn, namespace, model, alias)
    before = find_alias_row(conn, row, alias)
    _compare(before, f"{namespace}/{model}@{alias}", expected_mod_rev)
    target = version_row(conn, row, version)
    if before is not None and before.version_id == target.id:
        return alias_of(before)
    check_promotion(conn, guard, row, target, [alias])
    if waits:
        move = Move(row, alias, before, target.version, reason)
        return add_request(conn, move, wait=wait, actor=actor, at=at)
    writing = AliasWriting(conn, actor=actor, at=at)
    moved = writing.point(row, alias, before, target, reason)
    writing.finish()
    return moved


def rollback_alias(
    conn: Connection,
    namespace: str,
    model: str,
    alias: str,
    expected_mod_rev: int | None,
    reason: str,
    actor: str,
    at: datetime,
    guard: Guard,
) -> Alias:
    """Undoes the last move.

    The way out when something is wrong: a promoter does it at once, whatever a version must have and whoever has to
    approve a move. That nobody approved it is noted in the same revision.
    """
    row = model_row(conn, namespace, model, lock=True)
    path = f"{namespace}/{model}@{alias}"
    waits = guard.check_alias(conn, namespace, model, alias)
    before = find_alias_row(conn, row, alias)
    _compare(before, path, expected_mod_rev)
    if before is None:
        before = alias_row(conn, row, alias)
    earlier = conn.execute(_LAST_MOVE, {"row_id": row.id, "alias": alias}).scalar()
    if earlier is None:
        raise ConflictError(
            f"{path} has always pointed to version {before.version}: there is nothing to roll back to",
            current=to_json(alias_of(before)),
        )
    target = version_row(conn, row, earlier)
    writing = AliasWriting(conn, actor=actor, at=at)
    reason = reason or f"rolled back from version {before.version}"
    if waits:
        note_bypass(writing, Move(row, alias, before, target.version, reason))
        reason = f"{reason} (without approval)"
    moved = writing.point(row, alias, before, target, reason)
    writing.finish()
    return moved


def delete_alias(
    conn: Connection,
    namespace: str,
    model: str,
    alias: str,
    expected_mod_rev: int | None,
    reason: str,
    actor: str,
    at: datetime,
    guard: Guard,
    wait: timedelta,
) -> AliasRequest | None:
    """Deletes an alias, or has that wait for a second person; its history stays."""
    row = model_row(conn, namespace, model, lock=True)
    waits = guard.check_alias(conn, namespace, model, alias)
    before = find_alias_row(conn, row, alias)
    _compare(before, f"{namespace}/{model}@{alias}", expected_mod_rev)
    if before is None:
        before = alias_row(conn, row, alias)
    if waits:
        return add_request(conn, Move(row, alias, before, None, reason), wait=wait, actor=actor, at=at)
    writing = AliasWriting(conn, actor=actor, at=at)
    writing.drop_alias(row, before, reason)
    writing.finish()
    return None


def list_aliases(conn: Connection, namespace: str, model: str) -> tuple[Alias, ...]:
    """Aliases by name."""
    row = model_row(conn, namespace, model)
    query = ALIASES.where(aliases.c.model_id == row.id).order_by(aliases.c.name)
    return tuple(alias_of(alias) for alias in conn.execute(query))


def list_alias_moves(
    conn: Connection,
    namespace: str,
    model: str,
    alias: str,
    at: datetime | None,
    limit: int,
    after: Key | None,
) -> Listed[AliasMove]:
    """Moves, newest first."""
    row = model_row(conn, namespace, model)
    query = select(alias_moves).where(alias_moves.c.model_id == row.id).order_by(alias_moves.c.id.desc())
    if alias:
        query = query.where(alias_moves.c.name == alias)
    if at is not None:
        query = query.where(alias_moves.c.moved_at_us <= to_us(at))
    if after is not None:
        query = query.where(alias_moves.c.id < after[0])
    found = conn.execute(query.limit(limit + 1)).all()
    page = found[:limit]
    return Listed(
        items=tuple(move_of(move, namespace, model) for move in page),
        next_key=(page[-1].id,) if len(found) > limit else None,
    )
