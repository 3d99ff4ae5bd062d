"""Rules and protections in SQL: setting them, reading them, and which of them hold for a model.

What they mean is `modelbox.rules`; a change of one is a revision of the feed, as everything else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Table, bindparam, delete, insert, select, update

from modelbox.errors import NotFoundError
from modelbox.feed import Action, Kind
from modelbox.rules import AliasProtection, Rule
from modelbox.runtime.store.rows import from_us
from modelbox.runtime.store.schema import alias_protections, rules
from modelbox.runtime.store.writing import Writing

__all__ = (
    "delete_rule",
    "list_protections",
    "list_rules",
    "protect_alias",
    "protections_for",
    "rules_for",
    "set_rule",
    "unprotect_alias",
)

_RULES_FOR = select(rules).where(rules.c.scope.in_(bindparam("scopes", expanding=True)))
_PROTECTIONS_FOR = select(alias_protections).where(alias_protections.c.scope.in_(bindparam("scopes", expanding=True)))


def _rule_of(row: Any) -> Rule:
    return Rule(
        scope=row.scope,
        alias=row.alias,
        labels=tuple(json.loads(row.labels)),
        metadata=tuple(json.loads(row.metadata)),
        owner=bool(row.owner),
        description=bool(row.description),
        dataset=bool(row.dataset),
        signed=bool(row.signed),
        updated_at=from_us(row.updated_at_us),
        updated_by=row.updated_by,
    )


def _protection_of(row: Any) -> AliasProtection:
    return AliasProtection(
        scope=row.scope,
        alias=row.alias,
        approval=bool(row.approval),
        updated_at=from_us(row.updated_at_us),
        updated_by=row.updated_by,
    )


def _scopes(namespace: str, model: str) -> dict[str, list[str]]:
    return {"scopes": [namespace, f"{namespace}/{model}"]}


def rules_for(conn: Connection, namespace: str, model: str) -> list[Rule]:
    """All rules that hold for a model."""
    return [_rule_of(row) for row in conn.execute(_RULES_FOR, _scopes(namespace, model))]


def protections_for(conn: Connection, namespace: str, model: str) -> list[AliasProtection]:
    """All protections of a model's aliases, but for those of the server's settings."""
    return [_protection_of(row) for row in conn.execute(_PROTECTIONS_FOR, _scopes(namespace, model))]


def list_rules(conn: Connection, scope: str) -> list[Rule]:
    """Rules by scope and alias: of a namespace and its models, those that hold for a model, or all."""
    return [_rule_of(row) for row in _listed(conn, rules, scope)]


def list_protections(conn: Connection, scope: str) -> list[AliasProtection]:
    """As `list_rules`."""
    return [_protection_of(row) for row in _listed(conn, alias_protections, scope)]


def _listed(conn: Connection, table: Table, scope: str) -> list[Any]:
    found = conn.execute(select(table).order_by(table.c.scope, table.c.alias)).all()
    namespace, slash, _ = scope.partition("/")
    if slash:
        return [row for row in found if row.scope in (namespace, scope)]
    return [row for row in found if scope in ("", row.scope.partition("/")[0])]


def _key(table: Table, scope: str, alias: str) -> Any:
    return (table.c.scope == scope) & (table.c.alias == alias)


def set_rule(conn: Connection, rule: Rule, *, actor: str, at: datetime) -> Rule:
    """Makes or replaces a rule; the same one again makes no revision."""
    row = conn.execute(select(rules).where(_key(rules, rule.scope, rule.alias))).first()
    before = None if row is None else _rule_of(row)
    new = replace(rule, updated_at=at, updated_by=actor)
    if before is not None and before == replace(new, updated_at=before.updated_at, updated_by=before.updated_by):
        return before
    values = {
        "labels": json.dumps(rule.labels),
        "metadata": json.dumps(rule.metadata),
        "owner": rule.owner,
        "description": rule.description,
        "dataset": rule.dataset,
        "signed": rule.signed,
    }
    _write(conn, rules, new, values, existed=before is not None, actor=actor, at=at)
    return new


def protect_alias(conn: Connection, protection: AliasProtection, *, actor: str, at: datetime) -> AliasProtection:
    """Makes or replaces a protection; the same one again makes no revision."""
    key = _key(alias_protections, protection.scope, protection.alias)
    row = conn.execute(select(alias_protections).where(key)).first()
    before = None if row is None else _protection_of(row)
    if before is not None and before.approval == protection.approval:
        return before
    new = replace(protection, updated_at=at, updated_by=actor)
    values = {"approval": protection.approval}
    _write(conn, alias_protections, new, values, existed=before is not None, actor=actor, at=at)
    return new


def _write(
    conn: Connection,
    table: Table,
    new: Rule | AliasProtection,
    values: dict[str, Any],
    *,
    existed: bool,
    actor: str,
    at: datetime,
) -> None:
    writing = Writing(conn, actor=actor, at=at)
    values |= {"updated_at_us": writing.at_us, "updated_by": actor}
    if existed:
        conn.execute(update(table).where(_key(table, new.scope, new.alias)).values(**values))
    else:
        conn.execute(insert(table).values(scope=new.scope, alias=new.alias, **values))
    _note(writing, new, Action.UPDATED if existed else Action.CREATED)
    writing.finish()


def _note(writing: Writing, state: Rule | AliasProtection, action: Action) -> None:
    kind = "rules" if isinstance(state, Rule) else "protections"
    path = f"{kind}/{state.scope}" + (f"@{state.alias}" if state.alias else "")
    writing.note(state.scope.partition("/")[0], path, Kind.RULE, action, state)


def delete_rule(conn: Connection, scope: str, alias: str, *, actor: str, at: datetime) -> None:
    """Removes a rule.

    Raises:
        NotFoundError: There is none; ``exists`` lists those of the scope.
    """
    row = conn.execute(select(rules).where(_key(rules, scope, alias))).first()
    if row is None:
        raise _missing("rule", scope, alias, [(one.scope, one.alias) for one in list_rules(conn, scope)])
    _remove(conn, rules, _rule_of(row), actor=actor, at=at)


def unprotect_alias(conn: Connection, scope: str, alias: str, *, actor: str, at: datetime) -> None:
    """Removes a protection.

    Raises:
        NotFoundError: There is none; ``exists`` lists those of the scope.
    """
    row = conn.execute(select(alias_protections).where(_key(alias_protections, scope, alias))).first()
    if row is None:
        found = [(one.scope, one.alias) for one in list_protections(conn, scope)]
        raise _missing("protection", scope, alias, found)
    _remove(conn, alias_protections, _protection_of(row), actor=actor, at=at)


def _remove(conn: Connection, table: Table, old: Rule | AliasProtection, *, actor: str, at: datetime) -> None:
    writing = Writing(conn, actor=actor, at=at)
    conn.execute(delete(table).where(_key(table, old.scope, old.alias)))
    _note(writing, old, Action.DELETED)
    writing.finish()


def _missing(what: str, scope: str, alias: str, found: Sequence[tuple[str, str]]) -> NotFoundError:
    exists = [f"{scope}@{alias}" if alias else scope for scope, alias in found][:10]
    instead = f"{what}s there are: {', '.join(exists)}" if exists else f"there are no {what}s there"
    name = f"{scope}@{alias}" if alias else scope
    return NotFoundError(f"no {what} {name}: {instead}", what=what, name=name, exists=exists)
